from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.space.grid import Grid


def rotation(axis: list[float], degrees: float) -> np.ndarray:
    """Rodrigues' formula."""
    k = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(shape=(5, 4, 3), spacing=(0.7, 1.3, 4.0), left_handed=False, origin=(-31.0, 12.0, 250.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation([1, 2, -0.5], 37) @ np.diag(spacing)
    if left_handed:
        affine[:3, 0] *= -1
    affine[:3, 3] = origin
    return Grid(shape, affine)


@pytest.mark.parametrize("left_handed", [False, True])
def test_points_follow_the_affine_in_c_order(left_handed):
    grid = oblique(left_handed=left_handed)
    expected = [
        grid.affine[:3, :3] @ (i, j, k) + grid.affine[:3, 3] for i in range(5) for j in range(4) for k in range(3)
    ]
    points = grid.points()
    assert points.dtype == torch.float32
    np.testing.assert_allclose(points.numpy(), expected, rtol=0, atol=3e-5)
    np.testing.assert_array_equal(grid.points(7, 13), points[7:13])
    assert grid.points(50, 10**9).shape == (10, 3)  # the stop is clamped to the grid
    assert grid.points(3, 3).shape == (0, 3)


@pytest.mark.parametrize("left_handed", [False, True])
def test_spacing_volume_centre_directions(left_handed):
    grid = oblique(left_handed=left_handed)
    np.testing.assert_allclose(grid.spacing_mm, (0.7, 1.3, 4.0), rtol=1e-12)
    assert grid.voxel_volume_mm3 == pytest.approx(0.7 * 1.3 * 4.0)
    np.testing.assert_allclose(grid.centre_mm, grid.points().double().mean(0).numpy(), atol=1e-4)
    np.testing.assert_allclose(grid.corners_mm().mean(0), grid.centre_mm, atol=1e-10)
    expected = rotation([1, 2, -0.5], 37) @ np.diag([-1 if left_handed else 1, 1, 1])
    np.testing.assert_allclose(grid.directions, expected, atol=1e-12)
    assert np.sign(np.linalg.det(grid.directions)) == (-1 if left_handed else 1)


def test_directions_of_a_sheared_grid_are_the_nearest_orthogonal_matrix():
    affine = np.eye(4)
    affine[0, 1] = 0.3
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    found = Grid((4, 4, 4), affine).directions
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    distance = np.linalg.norm(found - unit)
    for degrees in (-2, -0.5, 0.5, 2):  # no rotation nearby is closer
        for axis in np.eye(3):
            assert np.linalg.norm(rotation(axis.tolist(), degrees) @ found - unit) > distance


def test_to_voxel_inverts_points():
    grid = oblique(left_handed=True)
    index = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0), torch.arange(3.0)).double()
    affine = torch.tensor(grid.affine)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    torch.testing.assert_close(grid.to_voxel(world), index, atol=1e-10, rtol=0)
    torch.testing.assert_close(grid.to_voxel(grid.points()), index.float(), atol=1e-3, rtol=0)


def test_corners_reach_half_a_voxel_beyond_the_outer_centres():
    grid = Grid.centred((4, 2, 1), (1.0, 2.0, 3.0))
    corners = grid.corners_mm()
    np.testing.assert_allclose(corners.min(0), [-2, -2, -1.5])
    np.testing.assert_allclose(corners.max(0), [2, 2, 1.5])


def test_resampled_covers_the_box_and_shares_the_centre():
    grid = oblique(shape=(10, 7, 1), left_handed=True)
    new = grid.resampled(0.9)
    assert new.shape == (8, 11, 1)  # ceil(7.0 / 0.9), ceil(9.1 / 0.9), a slice keeps its thickness
    np.testing.assert_allclose(new.spacing_mm, (0.9, 0.9, 4.0))
    np.testing.assert_allclose(new.centre_mm, grid.centre_mm, atol=1e-10)
    np.testing.assert_allclose(new.directions, grid.directions, atol=1e-12)
    old_box = grid.corners_mm() @ grid.directions
    new_box = new.corners_mm() @ grid.directions
    assert (new_box.min(0) <= old_box.min(0) + 1e-9).all() and (new_box.max(0) >= old_box.max(0) - 1e-9).all()
    assert grid.resampled(grid.spacing_mm).same_as(grid)  # no voxel is added by rounding


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf, (1.0, 0.0, 1.0)])
def test_resampled_refuses_impossible_spacings(spacing):
    with pytest.raises(InputError, match="positive"):
        oblique().resampled(spacing)


@pytest.mark.parametrize("spacing", [1e-6, 1e-12, 1e-300, 5e-324])
@pytest.mark.filterwarnings("error")
def test_resampled_refuses_grids_that_cannot_exist(spacing):
    with pytest.raises(InputError, match="too large"):
        oblique().resampled(spacing)


def test_slice_is_the_same_plane_of_the_volume():
    grid = oblique(left_handed=True)
    all_points = grid.points().reshape(5, 4, 3, 3)
    for index in range(3):
        torch.testing.assert_close(grid.slice(index).points().reshape(5, 4, 3), all_points[:, :, index])
    for index in (-1, 3):
        with pytest.raises(InputError, match=r"slices 0\.\.2"):
            grid.slice(index)


def test_moved():
    grid = oblique()
    transform = np.eye(4)
    transform[:3, :3] = rotation([0, 1, 0], 20)
    transform[:3, 3] = (1, 2, 3)
    expected = grid.points().double().numpy() @ transform[:3, :3].T + transform[:3, 3]
    np.testing.assert_allclose(grid.moved(transform).points().numpy(), expected, atol=1e-4)


def test_same_as_and_the_part_that_differs():
    grid = oblique()
    assert grid.same_as(Grid(grid.shape, grid.affine + 1e-6 * np.array([[1, 1, 1, 1]] * 3 + [[0] * 4])))
    grid.check_same(grid)
    other = {
        "shapes": Grid((5, 4, 2), grid.affine),
        "spacings": oblique(spacing=(0.7, 1.4, 4.0)),
        "orientations": oblique(left_handed=True),
        "origins": oblique(origin=(-31.0, 12.0, 251.0)),
    }
    for part, changed in other.items():
        assert not grid.same_as(changed)
        with pytest.raises(InputError, match=part) as caught:
            grid.check_same(changed, fix="do that")
        assert caught.value.fix == "do that"


def test_tiny_and_huge_voxels_are_not_singular():
    """A voxel of 0.05 micrometres is a light-microscopy pixel."""
    for spacing in (5e-5, 1e-3, 1e4):
        assert Grid.centred((4, 4, 4), spacing).spacing_mm == pytest.approx((spacing,) * 3)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((0, 4, 4), np.eye(4), "positive sizes"),
        ((4, 4), np.eye(4), "three"),
        ((4, 4, 4), np.eye(3), "4x4"),
        ((4, 4, 4), np.full((4, 4), np.nan), "finite"),
        ((4, 4, 4), np.diag([1.0, 1, 1, 2]), "last row"),
        ((4, 4, 4), np.diag([1.0, 1, 0, 1]), "singular"),
        ((4, 4, 4), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    ],
)
def test_impossible_grids(shape, affine, message):
    with pytest.raises(InputError, match=message):
        Grid.from_json({"shape": shape, "affine": affine.tolist()})


@pytest.mark.parametrize("spacing", [0.0, -2.0, np.nan, (1.0, 1.0, -1.0)])
def test_centred_refuses_impossible_spacings(spacing):
    with pytest.raises(InputError, match="spacing"):
        Grid.centred((4, 4, 4), spacing)


def test_json_round_trip():
    grid = oblique(left_handed=True)
    back = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    assert back.shape == grid.shape
    np.testing.assert_array_equal(back.affine, grid.affine)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        [],
        "grid",
        None,
        {"shape": [4, 4], "affine": np.eye(4).tolist()},
        {"shape": [4, 4, float("inf")], "affine": np.eye(4).tolist()},
        {"shape": [4, 4, float("nan")], "affine": np.eye(4).tolist()},
        {"shape": [4, 4, 4], "affine": [[1, 0], [0]]},
        {"shape": [4, 4, 4], "affine": [1, 2, 3]},
    ],
)
def test_from_json_refuses_nonsense(facts):
    with pytest.raises(InputError):
        Grid.from_json(facts)


def test_a_grid_cannot_be_changed():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 5
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5


def test_voxels_and_world_positions_are_each_other_s_inverse():
    grid = Grid((4, 5, 6), np.array([[0, 2, 0, 3], [-1.5, 0, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1.0]]))
    flat = torch.tensor([0, 7, 29, 30, 119])
    voxels = grid.voxels(flat)
    assert voxels.tolist() == [list(np.unravel_index(int(k), grid.shape)) for k in flat]
    torch.testing.assert_close(grid.to_voxel(grid.to_world(voxels.double())), voxels.double())
    assert torch.equal(grid.to_world(voxels.double()).float(), grid.points()[flat])


def test_a_part_lies_where_its_voxels_were():
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([-2.0, 3.0, 4.0])
    affine[:3, 3] = [5, -7, 11]
    grid = Grid((8, 9, 7), affine)
    part = grid.part((1, 2.5, 3), (3, 2, 1), (2, 1, 1))
    assert part.shape == (3, 2, 1)
    k = torch.tensor([[0.0, 0, 0], [2, 1, 0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 2.5, 3], [5, 3.5, 3]], dtype=torch.float64)
    assert torch.allclose(part.to_world(k), grid.to_world(expected))
    blocks = grid.coarsened((2, 2, 1))
    assert blocks.shape == (4, 4, 7)
    centre = grid.to_world(torch.tensor([[2.5, 4.5, 6.0]], dtype=torch.float64))
    assert torch.allclose(blocks.to_world(torch.tensor([[1.0, 2, 6]], dtype=torch.float64)), centre)
