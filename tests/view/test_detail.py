"""Boxes of a field on finer grids."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.view import detail as module
from scanfield.view.detail import (
    LEAST_VOXELS,
    MOST_VOXELS,
    OVERVIEW_VOXELS,
    box_grid,
    render_box,
    render_whole,
)
from scanfield.view.items import find
from scanfield.view.sources import Source, Sources

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


def image_of(data: bytes, path: Path) -> nibabel.Nifti1Image:
    path.write_bytes(data)
    return nibabel.load(path)


def test_what_is_rendered_is_the_field_there(finished: Path, tmp_path: Path) -> None:
    source, result = Sources().of(find([finished])[0]), open_result(finished)
    centre = result.spec.grid.centre_mm
    image = image_of(render_box(source, "image", centre, 20.0, 64), tmp_path / "detail.nii.gz")
    box = box_grid(result.spec.grid, centre, 20.0, 64)
    assert image.shape == box.shape and max(box.spacing_mm[:2]) < min(result.spec.grid.spacing_mm[:2])
    np.testing.assert_allclose(image.affine, box.affine, atol=1e-4)
    np.testing.assert_allclose(image.get_fdata(), result.render(box).numpy(), atol=1e-6)
    with pytest.raises(InputError, match="'colour' cannot be rendered here; known: image"):
        render_box(source, "colour", centre, 20.0, 64)


def test_a_slow_field_gets_fewer_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFFORDABLE_S", 0.5)
    grid = Grid.centred((200, 200, 200), 1.0)
    asked: list[int] = []

    def slow(box: Grid) -> torch.Tensor:
        asked.append(box.size)
        time.sleep(5e-6 * box.size)
        return torch.zeros(box.shape)

    render_box(Source(grid, {"image": slow}), "image", grid.centre_mm, 100.0, 512)
    assert asked[0] == asked[1] < 10_000, "how fast it is comes from small renderings"
    assert LEAST_VOXELS <= asked[2] <= 0.5 * 2e5, "half a second's worth"


def test_an_overview_is_the_whole_grid_or_as_fine_as_may_be(tmp_path: Path) -> None:
    small, large = Grid.centred((30, 20, 10), (1.0, 2.0, 3.0)), Grid.centred((400, 300, 200), 0.5)
    for grid in (small, large):
        source = Source(grid, {"image": lambda box: box.points()[:, 0].reshape(box.shape)})
        image = image_of(render_whole(source, "image"), tmp_path / "whole.nii.gz")
        box = Grid(image.shape, image.affine)
        assert box.size <= OVERVIEW_VOXELS
        np.testing.assert_allclose(box.corners_mm(), grid.corners_mm(), atol=2.0)
    assert image.shape != large.shape and small.size < OVERVIEW_VOXELS
