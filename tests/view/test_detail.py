"""Boxes of a field on finer grids."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.view.detail import MOST_VOXELS, Fields, box_grid

TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def oblique() -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = TURN * [2.0, 1.0, 3.0]
    affine[:3, 3] = [10, -20, 5]
    return Grid((40, 60, 20), affine)


def test_a_box_in_the_middle_of_a_turned_grid() -> None:
    grid = oblique()
    box = box_grid(grid, grid.centre_mm, 12.0, 24)
    assert box.shape == (24, 24, 24)
    np.testing.assert_allclose(box.spacing_mm, 0.5)
    np.testing.assert_allclose(box.centre_mm, grid.centre_mm, atol=1e-9)
    np.testing.assert_allclose(box.directions, grid.directions, atol=1e-12)


def test_a_box_over_the_edge_is_cut_off_there() -> None:
    grid = oblique()
    corner = grid.corners_mm()[0]
    box = box_grid(grid, corner, 12.0, 24)
    assert box.shape == (24, 24, 24), "6 mm are inside along every axis"
    np.testing.assert_allclose(box.spacing_mm, 0.25)
    inside = grid.to_voxel(box.points().double()).numpy()
    assert (inside > -0.5).all() and (inside < np.array(grid.shape) - 0.5).all()


def test_the_whole_box_at_the_grid_s_own_spacing_is_the_grid() -> None:
    grid = Grid.centred((32, 32, 32), 1.5)
    box = box_grid(grid, grid.centre_mm, 1e4, 32)
    np.testing.assert_allclose(box.affine, grid.affine, atol=1e-9)
    assert box.shape == grid.shape


def test_a_slice_stays_one_voxel_thick() -> None:
    grid = Grid.centred((64, 48, 1), (1.0, 1.0, 5.0))
    box = box_grid(grid, np.array([0.0, 0.0, 400.0]), 10.0, 100)
    assert box.shape == (100, 100, 1) and box.spacing_mm[2] == pytest.approx(5.0)
    assert box.centre_mm[2] == pytest.approx(0.0)


def test_memory_is_bounded_whatever_is_asked_for() -> None:
    grid = Grid.centred((300, 300, 300), 1.0)
    assert box_grid(grid, grid.centre_mm, 1e9, 512).size <= MOST_VOXELS


@pytest.mark.parametrize(
    ("centre", "size", "count"),
    [([0, 0, 0], 0.0, 8), ([0, 0, 0], float("nan"), 8), ([float("inf"), 0, 0], 1.0, 8), ([0, 0, 0], 1.0, 10**6)],
)
def test_nonsense_is_refused(centre: list[float], size: float, count: int) -> None:
    with pytest.raises(InputError, match="a detail needs"):
        box_grid(Grid.centred((8, 8, 8), 1.0), np.array(centre, dtype=float), size, count)


def test_a_box_outside_is_refused() -> None:
    with pytest.raises(InputError, match="outside the image"):
        box_grid(Grid.centred((8, 8, 8), 1.0), np.array([90.0, 0, 0]), 2.0, 8)


def test_what_is_rendered_is_the_field_there(finished: Path, tmp_path: Path) -> None:
    path = finished / "field.safetensors"
    fields, result = Fields(), open_result(finished)
    centre = result.spec.grid.centre_mm
    (tmp_path / "detail.nii.gz").write_bytes(fields.render(path, centre, 20.0, 64))
    image = nibabel.load(tmp_path / "detail.nii.gz")
    box = box_grid(result.spec.grid, centre, 20.0, 64)
    assert image.shape == box.shape and max(box.spacing_mm[:2]) < min(result.spec.grid.spacing_mm[:2])
    np.testing.assert_allclose(image.affine, box.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata(), result.render(box).numpy(), atol=1e-6)
    fields.render(path, centre, 10.0, 16)
    assert len(fields._kept) == 1, "the file was read once"
