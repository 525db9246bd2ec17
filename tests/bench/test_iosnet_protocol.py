"""The protocol's data, rows and checks, with trainings too short to mean anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.bench.protocols import iosnet as protocol
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.methods.segmentation import iosnet
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((14, 13, 12), 1.0)


@pytest.fixture
def hippocampi(tmp_path, monkeypatch):
    """Balls of two parts, as files with the names of the data."""
    folder = tmp_path / "hippocampus"
    folder.mkdir()
    for k in range(6):
        x = GRID.points() - torch.tensor([k / 3, 0.0, 0.0])
        inside = x.norm(dim=1) < 4.5
        label = (inside.int() + (inside & (x[:, 1] > 0.7)).int()).reshape(GRID.shape)
        write_nifti(
            folder / f"hippocampus_{k + 6:03d}.nii.gz", 100.0 * label + GRID.points()[:, 0].reshape(GRID.shape), GRID
        )
        write_nifti(folder / f"hippocampus_{k + 6:03d}_label.nii.gz", label.to(torch.uint8), GRID)
    monkeypatch.setenv("SCANFIELD_DATA", str(tmp_path))
    monkeypatch.setattr(protocol, "TRAIN", 3)
    monkeypatch.setattr(protocol, "VALIDATION", 1)
    return tmp_path


def test_half_resolution_has_the_labels_of_most_voxels_and_lots_for_ties():
    classes = torch.zeros(4, 4, 4, dtype=torch.long)
    classes[:2, :2, :2] = 1
    classes[0, 0, 0] = 2  # seven of eight remain
    classes[2, 2:, :2] = 2  # four of eight: a tie
    grid = Grid.centred((4, 4, 4), 1.0)
    drawn = [protocol.halved_labels(classes, grid, torch.Generator().manual_seed(k))[0] for k in range(40)]
    assert all(int(found[0, 0, 0]) == 1 and int(found[0, 1, 1]) == 0 for found in drawn)
    ties = {int(found[1, 1, 0]) for found in drawn}
    assert ties == {0, 2}
    half = protocol.halved_labels(classes, grid, torch.Generator())[1]
    assert half.spacing_mm == pytest.approx((2, 2, 2))
    assert torch.allclose(half.to_world(torch.zeros(3)), grid.to_world(torch.full((3,), 0.5)))


def test_both_cohorts_have_the_same_splits(hippocampi, tmp_path):
    full, half = protocol.cohorts(tmp_path)
    splits = ["test"] * 2 + ["validation"] + ["train"] * 3
    assert [m.split for m in full.members] == [m.split for m in half.members] == splits
    assert [m.subject for m in full.members] == [m.subject for m in half.members]
    scan = read_nifti(half.members[0].path)
    assert scan.grid.shape == (7, 6, 6)


def test_the_u_net_gets_the_encoder_and_the_budget_of_the_field():
    config = protocol.rival_config(protocol.CONFIG)
    for name in ("encoder", "crops", "batch", "steps", "learning_rate", "final_rate", "weight_decay", "clip_norm"):
        assert vars(config)[name] == vars(protocol.CONFIG)[name]
    assert config.dice == 0.5


def test_a_part_of_a_training_keeps_the_rates_of_the_whole(hippocampi, tmp_path):
    _, half = protocol.cohorts(tmp_path)
    config = replace(iosnet.Config.tiny(), steps=20, validate_every=50)
    run = Run(seed=1)
    log = iosnet.train(config, half, protocol._stopping(run, 20, 0.25)).logs[0]
    assert (log.steps, log.stopped) == (5, "interrupted")
    assert not run.stop.is_set()
    assert iosnet.train(config, half, protocol._stopping(run, 20, 1.0)).logs[0].steps == 20


def test_jobs_differ_in_what_their_names_say():
    found = protocol.jobs(protocol.CONFIG)
    assert len({(job.name, job.seed) for job in found}) == len(found) == 11
    for job in found:
        assert job.full == (job.name in (protocol.FINE, protocol.DETAILED)) == bool(job.config.crops.spacing_mm)
        assert (job.config.crops.detail == 2) == (job.name == protocol.DETAILED)
        assert (job.until == protocol.EARLY) == job.name.endswith(protocol.TENTH)
        assert (job.config.levels == "last") == (job.name == protocol.LAST)
        assert job.config.steps == protocol.CONFIG.steps


def test_every_row_and_check_is_there(hippocampi, monkeypatch):
    monkeypatch.setattr(protocol, "CONFIG", replace(iosnet.Config.tiny(), steps=10, validate_every=5))
    monkeypatch.setattr(protocol, "each", lambda function, jobs, run: [function(job, run) for job in jobs])
    monkeypatch.setattr(protocol, "SEEDS", (0,))
    found = protocol.run(Run())
    assert [row["row"] for row in found.table] == [
        "IOSNet, labels at full resolution",
        "IOSNet, labels at half resolution",
        "IOSNet, labels and the image itself at full resolution",
        "U-Net, trilinear",
        "U-Net, nearest",
        "IOSNet, coarsest features alone",
        "IOSNet, labels at half resolution, first tenth of the steps",
        "U-Net, first tenth of the steps, trilinear",
        "U-Net, first tenth of the steps, nearest",
        "peak memory",
        "peak memory",
    ]
    assert all(0 <= row["dice"] <= 100 for row in found.table[:9])
    assert found.table[10]["voxels"] > 7 * found.table[9]["voxels"]
    assert [check.sense for check in found.checks] == [">=", ">=", ">=", ">=", "<=", ">="]
    coarse, rival = found.table[1]["dice"], max(found.table[3]["dice"], found.table[4]["dice"])
    assert found.checks[0].value == pytest.approx(coarse - rival, abs=0.02)
    assert found.checks[1].value == pytest.approx(found.table[0]["dice"] - rival, abs=0.02)
