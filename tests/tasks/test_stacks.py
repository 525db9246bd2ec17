"""The pipeline from stacks to a judged volume: files, poses in headers, held-out slices, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.methods.reconstruction import nesvor
from scanfield.operators.simulate_stacks import StackScanOptions, simulate_stacks
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.tasks.stack_files import write_resimulated
from scanfield.tasks.stacks import held_out_slices, judged, output_grid, reconstruct_stacks

TINY = replace(nesvor.Config.tiny(), steps=60)


def volume():
    grid = Grid.centred((26, 26, 26), 2.0)
    inside = ((grid.points().reshape(*grid.shape, 3) / torch.tensor([21.0, 17.0, 15.0])) ** 2).sum(-1) < 1
    clouds = smoothed(torch.randn(grid.shape, generator=torch.Generator().manual_seed(4)), grid, 4.0)
    return Scan((200 + 80 * clouds / clouds.std()).clamp(min=20) * inside, grid, mask=inside)


@pytest.fixture(scope="module")
def stacks():
    options = StackScanOptions(thickness_mm=4.0, in_plane_mm=2.0, seed=2, margin_mm=4.0, motion_deg=2.0, motion_mm=1.0)
    return [part.stack for part in simulate_stacks(volume(), options)]


@pytest.fixture(scope="module")
def done(stacks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"preset": "tiny", "baselines": "fast", "holdout_slices": 3, "spacing_mm": 3.0}
    return folder, reconstruct_stacks(stacks, "nesvor", TINY, Run(folder, seed=2), **options)


def test_rows_are_judged_on_the_same_unseen_slices(done):
    outcome = done[1]
    assert [row.name for row in outcome.table.rows] == ["nesvor", "mean"]
    for row in outcome.table.rows:
        assert 0 < row.values["held_out_ncc"] <= 1 and 0 < row.values["held_out_rmse"] < 100
        assert {column.key for column in outcome.table.columns} >= set(row.values)
    assert outcome.grid.spacing_mm == (3.0, 3.0, 3.0)


def test_the_true_volume_judges_better_than_a_smoothed_one(stacks):
    truth, slices = volume(), slice_set(stacks)
    unseen = slices.subset(held_out_slices(slices, 4))
    good, poor = (judged(smoothed(truth.values, truth.grid, sigma), truth.grid, unseen, Run()) for sigma in (0.0, 5.0))
    assert good["held_out_ncc"] > poor["held_out_ncc"] and good["held_out_rmse"] < poor["held_out_rmse"]


def test_the_folder_holds_volume_mask_deviation_and_every_slice(done, stacks):
    folder, outcome = done
    grids = [read_nifti(folder / f"{name}.nii.gz").grid for name in ("nesvor", "mean", "mask", "deviation")]
    assert all(grid.same_as(outcome.grid) for grid in grids)
    table = json.loads((folder / "slices.json").read_text())
    slices = slice_set(stacks)
    assert len(table["slices"]) == slices.count - 3 == len(list((folder / "slices").glob("*.nii.gz")))
    assert all(0 <= entry["weight"] <= 1 and np.asarray(entry["pose"]).shape == (4, 4) for entry in table["slices"])
    assert np.mean([entry["scale"] for entry in table["slices"]]) == pytest.approx(1.0, abs=1e-3)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 6 and "Held-out slices" in page
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "complete" and facts["task"] == "reconstruction"


def test_slices_carry_their_pose_in_the_header(done, stacks):
    """A slice file lies in the world where slices.json says, with the measured intensities."""
    folder, _ = done
    entry = max(json.loads((folder / "slices.json").read_text())["slices"], key=lambda entry: entry["pixels"])
    scan = read_nifti(folder / entry["file"])
    pose = np.asarray(entry["pose"])
    assert np.allclose(scan.grid.centre_mm, pose[:3, 3], atol=1e-3)
    assert np.allclose(scan.grid.directions, pose[:3, :3], atol=1e-4)
    stack = stacks[entry["stack"]]
    inside = stack.planes(stack.scan.mask)[entry["number"]]
    plane = stack.planes(stack.scan.values)[entry["number"]]
    assert torch.allclose(scan.values[..., 0][inside], plane[inside], rtol=1e-4)
    assert stack.thickness_mm == pytest.approx(scan.grid.spacing_mm[2])


def test_the_result_resimulates_its_stacks(done, stacks, tmp_path):
    folder, _ = done
    rows = write_resimulated(tmp_path, stacks, open_result(folder))
    assert len(rows) == 3
    for k, (stack, row) in enumerate(zip(stacks, rows, strict=True)):
        predicted, residual = (read_nifti(tmp_path / f"{name}_{k}.nii.gz") for name in ("predicted", "residual"))
        assert predicted.grid.same_as(stack.scan.grid)
        total = predicted.values + residual.values
        assert torch.allclose(total[stack.scan.mask], stack.scan.values[stack.scan.mask], rtol=1e-3, atol=1e-2)
        assert (predicted.values[~stack.scan.mask] == 0).all()
        assert row["ncc"] > 0.3 and row["rms"] < 0.5 * float(stack.scan.values.max())


def test_a_whole_stack_can_judge(stacks):
    outcome = reconstruct_stacks(
        stacks, "nesvor", TINY, Run(seed=1), baselines="none", holdout_stack=2, spacing_mm=4.0, registration="none"
    )
    assert {name[0] for name in outcome.result.spec.facts["slices"]} == {0, 1}
    assert "held_out_ncc" in outcome.table.rows[0].values


def test_held_out_slices_are_inner_ones_of_every_stack(stacks):
    slices = slice_set(stacks)
    pixels = torch.bincount(slices.slice_index)
    chosen = held_out_slices(slices, 4)
    assert int(chosen.sum()) == 4 and len(slices.stack_index[chosen].unique()) >= 2
    for stack in slices.stack_index[chosen].unique().tolist():
        mine = slices.stack_index == stack
        assert (pixels[mine & chosen] >= 0.5 * pixels[mine].max()).all()
    assert int(held_out_slices(slices, 0).sum()) == 0
    assert int(held_out_slices(slices).sum()) == round(0.05 * slices.count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((99, None), "cannot be held out of"),
        ((None, 3), "stack 3 cannot be held out"),
        ((1, 0), "slices or a whole stack"),
    ],
)
def test_what_cannot_be_held_out_is_refused(arguments, message, stacks):
    with pytest.raises(InputError, match=message):
        held_out_slices(slice_set(stacks), *arguments)


def test_other_methods_refuse_stacks(stacks, tmp_path):
    with pytest.raises(InputError, match="does not take data of kind 'stacks'"):
        reconstruct_stacks(stacks, "siren", None, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_grid_holds_the_slices_or_the_whole_stacks(stacks):
    slices = slice_set(stacks)
    small, full = (output_grid(stacks, slices, None, full) for full in (False, True))
    assert small.spacing_mm == pytest.approx((2.0, 2.0, 2.0)) == full.spacing_mm
    x = small.to_voxel(slices.world())
    assert (x >= -0.5).all() and (x <= torch.tensor(small.shape) - 0.5).all()
    for stack in stacks:
        corners = full.to_voxel(torch.tensor(stack.scan.grid.corners_mm()))
        assert (corners >= -0.5 - 1e-6).all() and (corners <= torch.tensor(full.shape) - 0.5 + 1e-6).all()


def test_a_rival_that_fails_is_a_note(stacks, monkeypatch):
    from scanfield.tasks import stacks as pipeline

    def refuse(*_):
        raise InputError("it needs more slices")

    rival = replace(pipeline.BASELINES["mean"], label="M", reconstruct=refuse)
    monkeypatch.setattr(pipeline, "BASELINES", {"m": rival})
    run = Run()
    config = replace(TINY, steps=2)
    outcome = reconstruct_stacks(stacks, "nesvor", config, run, spacing_mm=5.0, registration="none")
    assert len(outcome.table.rows) == 1 and "M is missing from the table: it needs more slices." in run.notes


def test_the_volume_lies_where_the_body_is(done):
    folder, outcome = done
    image = read_nifti(folder / "nesvor.nii.gz")
    truth = volume()
    x = image.grid.points()[(image.values > 0.3 * image.values.max()).flatten()]
    assert ImageField(truth.values, truth.grid)(x).gt(0).float().mean() > 0.85
    assert outcome.folder == folder
