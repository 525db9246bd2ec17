"""The protocol's data, rows and checks, with trainings too short to mean anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.bench.labelled_people import People, Row, cohorts, splits
from scanfield.bench.protocols import iosnet as protocol
from scanfield.data.labels import LabelTable
from scanfield.data.nifti import write_nifti
from scanfield.methods.segmentation import iosnet
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((14, 13, 12), 1.0)


@pytest.fixture
def balls(tmp_path, monkeypatch):
    """The only case: balls of two parts."""
    rows = []
    for k, split in enumerate(splits(6, judges=2, watched=1)):
        x = GRID.points() - torch.tensor([k / 3, 0.0, 0.0])
        inside = x.norm(dim=1) < 4.5
        label = (inside.int() + (inside & (x[:, 1] > 0.7)).int()).reshape(GRID.shape)
        image, classes = tmp_path / f"{k}.nii.gz", tmp_path / f"{k}_label.nii.gz"
        write_nifti(image, 100.0 * label + GRID.points()[:, 0].reshape(GRID.shape), GRID)
        write_nifti(classes, label.to(torch.uint8), GRID)
        rows.append(Row(image, classes, f"{k}", split))
    people = People(LabelTable((0, 1, 2), ("background", "front", "the back")), "the back", tuple(rows))
    monkeypatch.setattr(protocol, "hippocampi", lambda: people)
    monkeypatch.setattr(protocol, "cases", lambda: {"balls": protocol.Case(lambda: people, protocol.CONFIG)})
    return people


def test_the_u_net_gets_the_encoder_and_the_budget_of_the_field():
    config = protocol.rival_config(protocol.CONFIG)
    for name in ("encoder", "crops", "batch", "steps", "learning_rate", "final_rate", "weight_decay", "clip_norm"):
        assert vars(config)[name] == vars(protocol.CONFIG)[name]
    assert config.dice == 0.5


def test_a_part_of_a_training_keeps_the_rates_of_the_whole(balls, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    _, half = cohorts(balls, folder)
    config = replace(iosnet.Config.tiny(), steps=20, validate_every=50)
    run = Run(seed=1)
    log = iosnet.train(config, half, protocol._stopping(run, 20, 0.25)).logs[0]
    assert (log.steps, log.stopped) == (5, "interrupted")
    assert not run.stop.is_set()
    assert iosnet.train(config, half, protocol._stopping(run, 20, 1.0)).logs[0].steps == 20


def test_jobs_differ_in_what_their_names_say():
    found = protocol.jobs("balls", protocol.CONFIG)
    assert len({(job.name, job.seed) for job in found}) == len(found) == 13
    for job in found:
        assert job.full == (job.name in (protocol.FINE, protocol.DETAILED)) == bool(job.config.crops.spacing_mm)
        assert (job.config.crops.detail == 2) == (job.name == protocol.DETAILED)
        assert (job.until == protocol.EARLY) == job.name.endswith(protocol.TENTH)
        assert (job.config.levels == "last") == (job.name == protocol.LAST)
        assert job.config.steps == protocol.CONFIG.steps


def test_every_row_and_check_is_there(balls, monkeypatch):
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
    assert {"dice_front", "dice_the_back"} < found.table[0].keys()
    assert [check.sense for check in found.checks] == [">=", ">=", ">=", ">=", ">=", "<="]
    assert [check.name.startswith("balls: ") for check in found.checks] == [True] * 5 + [False]
    coarse, rival = found.table[1]["dice"], max(found.table[3]["dice"], found.table[4]["dice"])
    assert found.checks[0].value == pytest.approx(coarse - rival, abs=0.02)
    assert found.checks[1].value == pytest.approx(found.table[0]["dice"] - rival, abs=0.02)
    early = max(found.table[7]["dice_the_back"], found.table[8]["dice_the_back"])
    assert found.checks[3].value == pytest.approx(found.table[6]["dice_the_back"] - early, abs=0.02)


def test_brains_are_learned_from_in_narrower_crops():
    cases = protocol.cases()
    assert list(cases) == ["hippocampi", "brains"]
    config = cases["brains"].config
    assert replace(config, crops=protocol.CONFIG.crops) == protocol.CONFIG
    assert config.crops == replace(protocol.CONFIG.crops, size=32)
