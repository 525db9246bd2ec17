"""The protocol on balls: what its rivals score is known, and every claim becomes a check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.bench import parallel
from scanfield.bench.kept import BenchRun, Kept
from scanfield.bench.protocols import cell_shapes as protocol
from scanfield.data.cohort import read_cohort
from scanfield.data.sequences import MaskSequence, read_sequence
from scanfield.methods.synthesis import cell_shapes
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((18, 18, 18), 0.5)
TINY = replace(cell_shapes.Config.tiny(), epochs=40)


def ball(radius: float, growth: float, way: float = 0.0) -> MaskSequence:
    moments = torch.linspace(0, 1, protocol.FRAMES)
    x = GRID.points()
    frames = [
        ((x - torch.tensor([way * (float(t) - 0.5), 0.1, 0.0])).norm(dim=1) < radius + growth * t).reshape(GRID.shape)
        for t in moments
    ]
    return MaskSequence(torch.stack(frames), GRID, 1.0)


def case(name: str, divides: bool) -> protocol.Case:
    seen = [ball(1.6, 0.5, 1.0), ball(1.9, 0.4), ball(2.2, 0.6), ball(2.4, 0.4, -0.5)]
    return protocol.Case(name, seen, [divides, False, False, False], [ball(2.0, 0.5)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    members = protocol.cohort(case("balls", False), tmp_path_factory.mktemp("cohort"))
    return cell_shapes.train(TINY, members, Run())


def test_the_training_sees_every_second_frame_alone(tmp_path):
    protocol.cohort(case("balls", False), tmp_path)
    members = read_cohort(tmp_path / "cohort.csv").part("train")
    assert len(members) == 4
    for member, whole in zip(members, case("balls", False).seen, strict=True):
        part = read_sequence(member.path)
        assert torch.equal(part.frames, whole.frames[::2]) and part.duration_s == whole.duration_s


def test_rivals_score_what_they_must(model):
    linear, pca = protocol.rivals(model, case("balls", True))
    assert linear["dice_seen"] == 1 and 0.9 < linear["dice_between"] < 1
    assert linear["dice_between_least"] <= linear["dice_between_dividing"]
    assert 0.9 < pca["dice_seen"] < 1 and pca["dice_between"] != linear["dice_between"]


def test_all_frames_lie_around_the_centre_of_those_seen(model):
    sequence = ball(1.6, 0.5, 2.0)
    around = protocol._around(model, sequence)
    assert around.frames.sum() == sequence.frames.sum()
    off = np.abs(around.grid.centre_mm - sequence.every(2).centre_mm)
    assert off.max() <= GRID.spacing_mm[0] / 2 + 1e-6


def test_a_run_makes_a_row_of_each_contender_and_a_check_of_each_claim(monkeypatch, tmp_path):
    monkeypatch.setattr(protocol, "CONFIG", TINY)
    monkeypatch.setattr(protocol, "DRAWN", 3)
    monkeypatch.setattr(protocol, "nuclei", lambda: case("nuclei", True))
    monkeypatch.setattr(protocol, "hippocampi", lambda: case("hippocampi", False))
    monkeypatch.setattr(parallel, "_processors", lambda: 1)
    result = protocol.run(BenchRun(kept=Kept(tmp_path / "kept", {})))
    again = BenchRun(kept=Kept(tmp_path / "kept", {}))
    assert protocol.run(again) == result and len(again.kept.taken_s) == 4
    rows = [row["row"] for row in result.table if row["case"] == "nuclei"]
    assert rows == [
        "sine",
        "relu",
        "linear interpolation of distances",
        "PCA, 2 modes",
        "sine, unseen sequences",
        "PCA, unseen sequences",
        "generated",
        "PCA, generated",
    ]
    names = [check.name for check in result.checks]
    assert len(set(names)) == len(names) == 7 + 6, "dividing cells have a check of their own"
    assert all(np.isfinite(check.value) for check in result.checks)
    by_name = {check.name: check for check in result.checks}
    sine, linear = (next(r for r in result.table if r["row"] == name) for name in (rows[0], rows[2]))
    gain = by_name["nuclei: frames between, over linear"]
    assert gain.value == pytest.approx(sine["dice_between"] - linear["dice_between"])
    assert by_name["nuclei: overlap of a new sequence with a real one"].sense == "<="
