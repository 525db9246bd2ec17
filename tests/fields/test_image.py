"""Images as fields: the right place in the world, the right gradient, and what is outside."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.fields.image import ImageField, nearest
from scanfield.space.grid import Grid

SHAPES = [(7, 6, 5), (7, 6, 1), (1, 6, 5), (7, 1, 5)]


def oblique(shape: tuple[int, int, int], flip: float = 1.0) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix() @ np.diag(
        [0.7, 1.1, 2.5 * flip]
    )
    affine[:3, 3] = (-80.5, 30.25, 7.0)
    return Grid(shape, affine)


def image(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def world(grid: Grid, index: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])


def places(grid: Grid, count: int = 200) -> np.ndarray:
    """Random continuous voxel indices in the box and beyond, off the slice too."""
    size = np.asarray(grid.shape)
    return np.random.default_rng(1).uniform(-2, size + 1, size=(count, 3))


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [1, 3])
def test_values_are_those_of_an_independent_interpolation(order: int, shape: tuple[int, int, int], flip: float) -> None:
    grid, values = oblique(shape, flip), image(shape)
    index = places(grid)
    clamped = np.clip(index, 0, np.asarray(shape) - 1)
    axes = [axis for axis in range(3) if shape[axis] > 1]
    expected = map_coordinates(values.squeeze().double().numpy(), clamped[:, axes].T, order=order, mode="mirror")
    field = ImageField(values, grid, order=order)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 2e-4)):
        found = field(world(grid, index).to(dtype).reshape(20, 10, 3))
        assert found.shape == (20, 10, 1) and found.dtype == dtype
        np.testing.assert_allclose(found.reshape(-1).numpy(), expected, atol=tolerance)


@pytest.mark.parametrize("order", [1, 3])
def test_voxel_centres_keep_their_values(order: int) -> None:
    grid, values = oblique((7, 6, 5)), image((7, 6, 5))
    torch.testing.assert_close(
        ImageField(values, grid, order=order)(grid.points().double()).reshape(7, 6, 5).float(),
        values,
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("order", [1, 3])
def test_gradients_to_the_points(order: int, shape: tuple[int, int, int]) -> None:
    grid = oblique(shape)
    field = ImageField(image(shape), grid, order=order)
    index = places(grid, 30)
    x = world(grid, index).requires_grad_()
    assert torch.autograd.gradcheck(field, x, eps=1e-5, atol=1e-4)
    if order == 3:
        assert torch.autograd.gradgradcheck(field, x, eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("order", [1, 3])
def test_the_gradient_of_a_ramp_in_world_units(order: int) -> None:
    """Inside, the world gradient is exact on an oblique left-handed grid; beyond the outermost centres it is zero."""
    grid = oblique((9, 9, 9), -1.0)
    slope = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    values = (grid.points().double() @ slope).reshape(grid.shape).float()
    # the mirrored spline bends a ramp near the border: points of the middle voxel only
    x = world(grid, np.random.default_rng(0).uniform(3.6, 4.4, size=(20, 3))).requires_grad_()
    (gradient,) = torch.autograd.grad(ImageField(values, grid, order=order)(x).sum(), x)
    torch.testing.assert_close(gradient, slope.expand(20, 3), atol=1e-4 if order == 1 else 0.03, rtol=0)
    far = world(grid, np.array([[-3.0, -3.0, -3.0], [20.0, 20.0, 20.0]])).requires_grad_()
    (gradient,) = torch.autograd.grad(ImageField(values, grid, order=order)(far).sum(), far)
    assert (gradient == 0).all()


def test_inside_is_the_box() -> None:
    grid = oblique((7, 6, 5))
    field = ImageField(image((7, 6, 5)), grid)
    index = places(grid, 500)
    expected = ((index >= -0.5) & (index <= np.asarray(grid.shape) - 0.5)).all(axis=1)
    assert 50 < expected.sum() < 450
    assert field.inside(world(grid, index)).tolist() == expected.tolist()
    assert field.inside(torch.from_numpy(grid.corners_mm()).float()).all()
    flat = oblique((7, 6, 1))
    assert field.inside(grid.points()).all() and ImageField(image((7, 6, 1)), flat).inside(
        world(flat, np.array([3, 3, 9.0]))
    )


def test_nearest_keeps_labels() -> None:
    grid = oblique((7, 6, 5), -1.0)
    labels = torch.arange(210, dtype=torch.int16).reshape(7, 6, 5)
    index = places(grid, 500)
    inside = ((index >= -0.5) & (index <= np.asarray(grid.shape) - 0.5)).all(axis=1)
    i, j, k = np.clip(np.rint(index).astype(int), 0, np.asarray(grid.shape) - 1).T
    expected = np.where(inside, labels.numpy()[i, j, k], -7)
    found = nearest(labels, grid, world(grid, index).reshape(50, 10, 3), outside=-7)
    assert found.dtype == torch.int16 and found.shape == (50, 10)
    np.testing.assert_array_equal(found.reshape(-1).numpy(), expected)
    assert torch.equal(nearest(labels, grid, grid.points()).reshape(7, 6, 5), labels)


def test_a_slice_has_labels_above_and_below() -> None:
    grid = oblique((7, 6, 1))
    labels = torch.arange(42).reshape(7, 6, 1)
    above = world(grid, np.array([[2.0, 3.0, 5.0]]))
    assert nearest(labels, grid, above).tolist() == [2 * 6 + 3]


def test_what_is_no_image() -> None:
    with pytest.raises(InputError, match="two axes"):
        ImageField(torch.zeros(5, 1, 1), Grid.centred((5, 1, 1), 1.0))
    with pytest.raises(ValueError, match="do not fit"):
        ImageField(torch.zeros(5, 4, 3), Grid.centred((5, 4, 2), 1.0))


def test_what_an_image_shows_lies_in_its_box_and_in_its_mask():
    grid = Grid.centred((6, 6, 6), (2.0, 2.0, 2.0))
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[2:4] = True
    image, whole = ImageField(torch.rand(grid.shape), grid, mask=mask), ImageField(torch.rand(grid.shape), grid)
    x = torch.cat([grid.points(), torch.full((1, 3), 100.0)])
    assert torch.equal(image.shown(x)[:-1], mask.flatten()) and not image.shown(x)[-1]
    assert torch.equal(whole.shown(x), whole.inside(x))
