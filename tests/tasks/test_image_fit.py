"""The image pipeline: what is held out, who the rivals are, and what the folder holds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.meshes import read_mesh
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.reconstruction import siren
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.image_fit import fit_image, hold_out
from scanfield.tasks.result import Reconstruction

TINY = siren.Config.tiny()
GRID = Grid((20, 16, 1), np.diag([-2.0, 2.0, 5.0, 1.0]))


def image() -> Scan:
    x = GRID.points() - torch.tensor(GRID.centre_mm, dtype=torch.float32)
    return Scan((200 * (x[:, 0] / 8).cos() * (x[:, 1] / 6).sin()).reshape(GRID.shape), GRID, "HU")


def ball() -> Scan:
    grid = Grid.centred((16, 16, 12), (1.0, 1.0, 1.5))
    inside = grid.points().norm(dim=-1) < 6
    return Scan(inside.reshape(grid.shape).to(torch.uint8), grid, "1")


def test_held_out_voxels_reach_no_row_of_the_table() -> None:
    """With the held-out voxels spoiled, every row's image stays the same."""
    run = Run(seed=3)
    first = fit_image(image(), "siren", TINY, run, holdout_fraction=0.2)
    drawn = hold_out(image(), 0.2, Run(seed=3).generator("held-out voxels"))[1]
    assert drawn is not None and drawn.mask is not None
    spoiled = replace(image(), values=torch.where(drawn.mask, torch.tensor(5e3), image().values))
    second = fit_image(spoiled, "siren", TINY, Run(seed=3), holdout_fraction=0.2)
    for a, b in zip(first.pictures[:-1], second.pictures[:-1], strict=True):
        assert a.name == b.name and torch.equal(a.values, b.values)
    rows = {row.name: row.values for row in first.table.rows}
    assert set(rows) == {"siren", "linear", "cubic"}
    difference = (first.pictures[0].values - image().values)[drawn.mask]
    assert rows["siren"]["rmse:held-out"] == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-5)
    assert "psnr_db:fitted" not in rows["cubic"]


def test_the_folder_holds_the_result_and_its_numbers(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    outcome = fit_image(image(), "siren", TINY, run, preset="tiny", reference=image())
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["status"] == "complete" and facts["measurements"] is None and facts["unit"] == "HU"
    assert facts["table"] == json.loads(json.dumps(outcome.table.to_json()))
    for picture in facts["images"]:
        assert read_nifti(tmp_path / picture["file"]).grid.same_as(GRID)
    loaded = Reconstruction.load(tmp_path / "field.safetensors")
    assert torch.equal(loaded.render(GRID), outcome.pictures[0].values)
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert "psnr_db:reference" in outcome.table.rows[0].values


def test_another_output_grid_changes_pictures_not_numbers() -> None:
    plain = fit_image(image(), "siren", TINY, Run())
    finer = fit_image(image(), "siren", TINY, Run(), grid=GRID.resampled(1.0))
    assert finer.pictures[0].values.shape == (40, 32, 1) and finer.pictures[1].values.shape == (40, 32, 1)
    assert finer.table.rows[0].values["rmse:held-out"] == plain.table.rows[0].values["rmse:held-out"]


@pytest.mark.parametrize("supervision", ["gradient", "laplacian"])
def test_derivatives_stand_beside_the_poisson_equation(supervision: str) -> None:
    outcome = fit_image(image(), "siren", replace(TINY, supervision=supervision), Run())
    assert [row.name for row in outcome.table.rows] == ["siren", f"poisson-{supervision}"]
    for picture in outcome.pictures:
        assert float(picture.values.mean()) == pytest.approx(float(image().values.mean()), abs=0.05)
    with pytest.raises(InputError, match="only be held out where values"):
        fit_image(image(), "siren", replace(TINY, supervision=supervision), Run(), holdout_fraction=0.1)


def test_surfaces_are_written_as_meshes_with_distances(tmp_path: Path) -> None:
    config = replace(TINY, supervision="surface", first_omega=5.0, hidden_omega=10.0, steps=150)
    outcome = fit_image(ball(), "siren", config, Run(folder=tmp_path))
    rows = {row.name: row.values for row in outcome.table.rows}
    assert set(rows) == {"siren", "distance-transform", "smoothed-mask"}
    assert rows["distance-transform"]["chamfer_mm"] < 0.4 and rows["distance-transform"]["closed"] == 1
    assert rows["siren"]["chamfer_mm"] < 1.5
    ply, gii = read_mesh(tmp_path / "surface.ply"), read_mesh(tmp_path / "surface.surf.gii")
    assert len(ply.faces) == len(gii.faces) and ply.volume_mm3 == pytest.approx(gii.volume_mm3, rel=1e-4)
    assert json.loads((tmp_path / "run.json").read_text())["unit"] == "mm"


def test_a_field_without_a_surface_is_a_warning_not_a_crash(tmp_path: Path) -> None:
    config = replace(TINY, supervision="surface", steps=0)
    run = Run(folder=tmp_path, seed=1)
    outcome = fit_image(ball(), "siren", config, run, baselines="none")
    crossed = bool(outcome.table.rows)
    assert crossed != any("no surface" in warning for warning in run.warnings)


def test_interruption_leaves_a_usable_folder(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    run.stop.set()
    outcome = fit_image(image(), "siren", TINY, run)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert [row.name for row in outcome.table.rows] == ["siren"]


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        fit_image(image(), "siren", TINY, Run(), holdout_fraction=1.5)
    with pytest.raises(InputError, match="does not take data of kind 'image'"):
        fit_image(image(), "scope", None, Run())
    two = Scan(torch.zeros(*GRID.shape, 2), GRID)
    with pytest.raises(InputError, match="one channel"):
        fit_image(two, "siren", TINY, Run())
    with pytest.raises(InputError, match="judged against the mask"):
        fit_image(ball(), "siren", replace(TINY, supervision="surface"), Run(), reference=ball())
