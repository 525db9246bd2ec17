"""Planes on screen against the radiological convention, for every way voxel axes can lie in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scanfield.report.views import views

EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # world axes across and down the screen


def _affine(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Voxel axis k runs along the world axis order[k] with the given sign, 1, 2 and 3 mm apart."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k in range(3):
        affine[order[k], k] = signs[k] * (k + 1.0)
    affine[:3, 3] = (10.0, -20.0, 30.0)
    return affine


def _world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(3, n0, n1, n2): the world coordinate of every voxel."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    return np.einsum("wk,k...->w...", affine[:3, :3], index) + affine[:3, 3, None, None, None]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_every_orientation_of_voxel_axes_gives_the_same_screen(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine, shape = _affine(order, signs), (4, 5, 6)
    world = _world(shape, affine)
    found = views(shape, affine)
    assert {view.plane for view in found} == set(EDGES)
    for view in found:
        across, down = AXES[view.plane]
        x, y = view.cut(world[across]), view.cut(world[down])
        assert (np.diff(x, axis=1) < 0).all() and (np.diff(x, axis=0) == 0).all()
        assert (np.diff(y, axis=0) < 0).all() and (np.diff(y, axis=1) == 0).all()
        assert (view.left, view.right, view.top, view.bottom) == EDGES[view.plane]
        assert view.spacing_mm == (abs(y[1, 0] - y[0, 0]), abs(x[0, 1] - x[0, 0]))
        assert view.tilt_deg == pytest.approx(0.0, abs=1e-5)
        assert view.name == view.plane


def test_the_first_view_cuts_across_the_third_voxel_axis_in_the_middle() -> None:
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    first, second, third = views((4, 5, 6), np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert (first.axis, first.index, first.plane) == (2, 3, "axial")
    np.testing.assert_array_equal(first.cut(volume), volume[:, :, 3].T)  # LPS+ voxel axes lie as on screen
    assert (second.plane, third.plane) == ("coronal", "sagittal")


def _turned(axis: int, degrees: float) -> np.ndarray:
    a, b = (k for k in range(3) if k != axis)
    affine = np.eye(4)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine[a, a], affine[a, b], affine[b, a], affine[b, b] = c, -s, s, c
    return affine


def test_letters_of_a_volume_turned_in_its_plane() -> None:
    # Voxel axes (cos 30, sin 30, 0) and (-sin 30, cos 30, 0): the screen's left is 30 deg from right to front.
    view = views((8, 8, 1), _turned(2, 30))[0]
    assert (view.left, view.right, view.top, view.bottom) == ("RA", "LP", "AL", "PR")
    assert view.name == "axial"
    slight = views((8, 8, 1), _turned(2, 10))[0]
    assert (slight.left, slight.top) == ("R", "A")


def test_an_oblique_plane_says_its_tilt() -> None:
    view = views((8, 8, 1), _turned(0, 20))[0]
    assert view.name == "oblique axial (20° tilt)"
    assert (view.left, view.right) == ("R", "L")
    assert {view.top[0], view.top[1]} == {"A", "S"}
    assert views((8, 8, 1), _turned(0, 4))[0].name == "axial"


def test_planes_that_would_be_lines_or_strips_are_left_out() -> None:
    assert [view.axis for view in views((8, 8, 1), np.eye(4))] == [2]
    assert [view.axis for view in views((8, 1, 8), np.eye(4))] == [1]
    assert [view.axis for view in views((100, 100, 3), np.eye(4))] == [2]
    assert [view.axis for view in views((100, 100, 3), np.diag([1.0, 1.0, 5.0, 1.0]))] == [2, 1, 0]
    assert [view.axis for view in views((8, 1, 1), np.eye(4))] == [2]
