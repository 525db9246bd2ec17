"""The scans of NIK's benchmark: what is compared with what."""

from dataclasses import replace

import numpy as np
import pytest

from scanfield.bench import parallel
from scanfield.bench.protocols import nik as protocol
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction.nik import Config
from scanfield.run import Run

pytest.importorskip("finufft")


@pytest.mark.data
def test_the_beat_is_one_and_its_truth_moves():
    data, truth = protocol.beating()
    geometry = data.acquisition
    assert geometry.views == protocol.SPOKES and geometry.when.cycle_s == pytest.approx(protocol.BEAT_S)
    assert geometry.frame_count == protocol.PHASES == len(truth)
    assert np.bincount(geometry.frame_of_view).max() <= 7, "a bin of the rivals is starved"
    assert float(truth.abs().std(dim=0).max()) > 0.1 * float(truth.abs().max())


@pytest.mark.data
def test_rest_has_one_image_of_the_same_heart():
    data, truth = protocol.resting()
    assert data.acquisition.frame_count == len(truth) == 1 and data.acquisition.views == protocol.SPOKES // 2


@pytest.mark.data
def test_real_scans_are_undersampled_and_judged_by_all_of_the_data():
    lines, image = protocol.brain()
    assert lines.acquisition.shape == (protocol.LINES, 8, 230) and image.shape == (1, 230, 180, 1)
    spokes, image = protocol.phantom()
    assert spokes.acquisition.shape == (35, 16, 384) and image.shape == (1, 192, 192, 1)
    spirals, reference = protocol.spiral()
    assert spirals.acquisition.shape == (30, 8, 1182) and reference.shape == (1, 240, 240, 1)
    for scan in (spokes, spirals):
        assert scan.sensitivities is None, "every row estimates them from what it sees"


def test_the_losses_differ_in_the_loss_alone():
    published, floored, squares = protocol.LOSSES.values()
    assert replace(floored, epsilon=published.epsilon) == published
    differing = {name for name in vars(published) if getattr(published, name) != getattr(squares, name)}
    assert differing == {"loss", "epsilon"} and published.epsilon == 0.01


def test_every_check_has_its_rows(monkeypatch):
    """All of it, on a small slice and with fits too short to mean anything."""
    volume = sample("mr_head_volume")
    middle = volume.grid.shape[2] // 2
    edge = min(volume.grid.shape[:2])
    own = volume.grid.part((0, 0, middle), (edge, edge, 1))
    head = Scan(volume.values[:edge, :edge, middle : middle + 1].clone(), own)
    tiny = replace(Config.tiny(), steps=2)
    for name, value in {"MATRIX": 16, "SPOKES": 40, "PHASES": 4, "BUDGETS": (1, 2), "FAST": tiny}.items():
        monkeypatch.setattr(protocol, name, value)
    monkeypatch.setattr(protocol, "LOSSES", {"published loss": tiny, "plain squares": replace(tiny, loss="l2")})
    monkeypatch.setattr(protocol, "heart", lambda: head)
    scenes = protocol.SCENES | {name: protocol.resting for name in ("brain", "phantom", "spiral phantom")}
    monkeypatch.setattr(protocol, "SCENES", scenes)
    monkeypatch.setattr(parallel, "_processors", lambda: 1)  # other processes would not know of these changes
    result = protocol.run(Run())
    rows = {(row["scene"], row["row"]) for row in result.table}
    assert len(rows) == 4 + 4 + 3 + 2 + 3 + 3 + 3 and ("one beat", "NIK, plain squares, 1 steps") in rows
    assert len(result.checks) == 9 and all(np.isfinite(check.value) for check in result.checks)
    over = next(check for check in result.checks if check.name == "one beat: NIK over binned gridding")
    found = {row["row"]: row["psnr_db"] for row in result.table if row["scene"] == "one beat"}
    assert over.value == pytest.approx(found["NIK"] - found["gridding"])
