"""Feature pyramids: the right features at the right place in the world."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from scanfield.fields.field import Condition
from scanfield.fields.pyramid import FeaturePyramid
from scanfield.space.grid import Grid

SHAPES = [(9, 8, 6), (9, 8, 1), (1, 8, 6), (9, 1, 6)]


def oblique(shape, flip=1.0, turn=40.0):
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", [12, -25, turn], degrees=True).as_matrix()
    affine[:3, :3] = turned @ np.diag([0.7, 1.1, 2.5 * flip])
    affine[:3, 3] = (-80.5, 30.25, 7.0)
    return Grid(shape, affine)


def axes_of(shape):
    return [axis for axis in range(3) if shape[axis] > 1]


def level(shape, scale, channels, seed=0, batch=1):
    sizes = [-(-shape[axis] // s) for axis, s in zip(axes_of(shape), scale, strict=True)]
    return torch.randn(batch, channels, *sizes, generator=torch.Generator().manual_seed(seed))


def world(grid, index):
    return torch.from_numpy(index @ grid.affine[:3, :3].T + grid.affine[:3, 3]).float()


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_is_interpolated_between_its_voxel_centres(shape, flip):
    grid, axes = oblique(shape, flip), axes_of(shape)
    scales = [(1,) * len(axes), (2,) * len(axes), (4, *[2] * (len(axes) - 1))]
    levels = [level(shape, scale, 2 + k, seed=k) for k, scale in enumerate(scales)]
    index = np.random.default_rng(1).uniform(-2, np.asarray(shape) + 1, size=(150, 3))
    found = FeaturePyramid(levels, scales, [grid]).at(world(grid, index)).numpy()
    column = 0
    for features, scale in zip(levels, scales, strict=True):
        for channel in features[0].numpy():
            place = (index[:, axes] / scale).T
            place = np.clip(place, 0, np.asarray(channel.shape)[:, None] - 1)
            expected = map_coordinates(channel, place, order=1, mode="nearest")
            np.testing.assert_allclose(found[:, column], expected, atol=2e-4)
            column += 1
    assert column == found.shape[1]


def test_at_a_voxel_centre_the_features_are_the_voxel_s():
    grid, scale = oblique((9, 8, 6)), (2, 2, 2)
    features = level((9, 8, 6), scale, 3)
    index = np.array([[4.0, 6.0, 2.0]])
    found = FeaturePyramid([features], [scale], [grid]).at(world(grid, index))
    torch.testing.assert_close(found[0], features[0, :, 2, 3, 1], atol=1e-4, rtol=1e-4)


def test_a_level_finer_than_the_image_lies_around_its_voxels():
    """Two voxels of the level to one of the image, along every axis: means of them lie at its centres."""
    grid = oblique((9, 8, 6))
    fine = torch.randn(1, 2, 18, 16, 12, generator=torch.Generator().manual_seed(0))
    found = FeaturePyramid([fine], [(0.5,) * 3], [grid], starts=[(-0.25,) * 3]).at(grid.points())
    means = torch.nn.functional.avg_pool3d(fine, 2)[0].flatten(1).T
    torch.testing.assert_close(found, means, atol=1e-4, rtol=1e-4)
    at_voxel = world(grid, np.array([[-0.25 + 0.5 * 7, -0.25 + 0.5 * 3, -0.25 + 0.5 * 4]]))
    found = FeaturePyramid([fine], [(0.5,) * 3], [grid], starts=[(-0.25,) * 3]).at(at_voxel)
    torch.testing.assert_close(found[0], fine[0, :, 7, 3, 4], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_displaced_copies_lie_that_many_millimetres_along_the_image_s_axes(shape):
    grid, axes, d = oblique(shape), axes_of(shape), 0.8
    scale = (1,) * len(axes)
    features = level(shape, scale, 2)
    x = world(grid, np.random.default_rng(2).uniform(1, np.maximum(np.asarray(shape) - 2, 1), size=(20, 3)))
    plain = FeaturePyramid([features], [scale], [grid])
    around = FeaturePyramid([features], [scale], [grid], displacement_mm=d)
    directions = grid.affine[:3, axes] / np.asarray(grid.spacing_mm)[axes]
    moves = [np.zeros(3), *(d * directions.T), *(-d * directions.T)]
    expected = torch.cat([plain.at(x + torch.from_numpy(move).float()) for move in moves], dim=1)
    torch.testing.assert_close(around.at(x), expected, atol=1e-4, rtol=1e-4)
    assert around.size == expected.shape[1]


def test_moving_image_and_points_together_changes_nothing():
    shape, scale = (9, 8, 6), (2, 2, 2)
    features, grid = level(shape, scale, 3), oblique(shape)
    x = world(grid, np.random.default_rng(3).uniform(0, 5, size=(30, 3)))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", [70, 10, -130], degrees=True).as_matrix()
    motion[:3, 3] = (20, -7, 3)
    moved = x.double() @ torch.from_numpy(motion[:3, :3]).T + torch.from_numpy(motion[:3, 3])
    here = FeaturePyramid([features], [scale], [grid], displacement_mm=1.0).at(x)
    there = FeaturePyramid([features], [scale], [grid.moved(motion)], displacement_mm=1.0).at(moved.float())
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_images_of_a_batch_have_grids_and_shared_features_of_their_own():
    shape, scale = (9, 8, 6), (1, 1, 1)
    grids = [oblique(shape), oblique(shape, flip=-1.0, turn=-70.0)]
    features = level(shape, scale, 2, batch=2)
    shared = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = torch.stack([world(grid, np.random.default_rng(4).uniform(0, 5, size=(12, 3))) for grid in grids])
    both = FeaturePyramid([features], [scale], grids, displacement_mm=0.5, shared=shared)
    found = both.at(x)
    assert found.shape == (2, 12, both.size)
    for k, grid in enumerate(grids):
        one = FeaturePyramid([features[k : k + 1]], [scale], [grid], displacement_mm=0.5, shared=shared[k : k + 1])
        torch.testing.assert_close(found[k], one.at(x[k]), atol=1e-5, rtol=1e-5)
        assert torch.equal(found[k][:, -2:], shared[k].expand(12, 2))
    with pytest.raises(ValueError, match="which of 2 images"):
        both.at(x[0])


def test_it_is_a_condition_with_any_leading_axes():
    condition = FeaturePyramid([level((9, 8, 6), (1, 1, 1), 2)], [(1, 1, 1)], [oblique((9, 8, 6))])
    x = torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([-80.0, 32.0, 9.0])
    found = condition.at(x)
    assert isinstance(condition, Condition)
    assert found.shape == (3, 4, 5, 2)
    assert torch.equal(found[1, 2], condition.at(x[1, 2]))
    assert condition.at(x[:0]).shape == (0, 4, 5, 2)


def test_a_level_of_one_voxel_is_the_same_everywhere():
    features = level((9, 8, 6), (16, 16, 16), 3)
    grid = oblique((9, 8, 6))
    found = FeaturePyramid([features], [(16, 16, 16)], [grid]).at(grid.points())
    assert torch.equal(found, features.reshape(1, 3).expand(grid.size, 3))


def test_gradients_to_features_and_points():
    features = level((5, 4, 3), (1, 1, 1), 2).double().requires_grad_()
    grid = Grid.centred((5, 4, 3), 2.0)
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()

    def at(f, x):
        return FeaturePyramid([f], [(1, 1, 1)], [grid], displacement_mm=0.3).at(x)

    assert torch.autograd.gradcheck(at, (features, x))


def test_features_that_do_not_fit_are_refused():
    grid = oblique((9, 8, 6))
    with pytest.raises(ValueError, match="a scale for every level"):
        FeaturePyramid([level((9, 8, 6), (1, 1, 1), 2)], [(1, 1, 1)] * 2, [grid])
    with pytest.raises(ValueError, match="a grid for every image"):
        FeaturePyramid([level((9, 8, 6), (1, 1, 1), 2)], [(1, 1, 1)], [grid, grid])
    with pytest.raises(ValueError, match="features of 3 axes"):
        FeaturePyramid([level((9, 8, 6), (1, 1, 1), 2)], [(1, 1, 1)], [oblique((9, 8, 1))])
