"""Images for encoders: the same anatomy in the same order, size and window, wherever and however it was stored."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.scan import Scan
from scanfield.data.standard import Intensities, at_spacing, in_ras_order, spaced_grid, standard_image
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.space.grid import Grid


def smooth(x):
    """A function of the world that differs in all directions."""
    return torch.sin(x[:, 0] / 9) + 0.5 * torch.cos(x[:, 1] / 7 + 1) + x[:, 2] / 30


def scan_on(grid):
    return Scan(smooth(grid.points().double()).float().reshape(grid.shape), grid)


def turned(shape, spacing, order, signs):
    """A grid whose voxel axes run along world axes in another order and direction, slightly tilted."""
    affine = np.eye(4)
    linear = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        linear[axis, column] = sign * spacing[column]
    tilt = Rotation.from_euler("xyz", [4, -6, 5], degrees=True).as_matrix()
    affine[:3, :3] = tilt @ linear
    affine[:3, 3] = (11, -7, 3)
    return Grid(shape, affine)


ORDERS = [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1)), ((0, 2, 1), (-1, -1, 1))]


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_the_axes_are_put_into_the_order_right_anterior_superior(order, signs):
    grid = turned((6, 7, 8), (1.0, 2.0, 1.5), order, signs)
    values, found = in_ras_order(scan_on(grid).values, grid)
    assert (np.diag(found.directions) > 0.9).all()
    torch.testing.assert_close(values, smooth(found.points().double()).float().reshape(found.shape), atol=1e-4, rtol=0)
    assert sorted(found.shape) == [6, 7, 8]
    again, same = in_ras_order(values, found)
    assert torch.equal(again, values)
    assert np.array_equal(same.affine, found.affine)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_however_an_image_was_stored_the_encoder_sees_the_same(order, signs):
    """The same lattice of voxels, with its axes named and directed otherwise."""
    reference = turned((6, 7, 8), (1.0, 2.0, 1.5), (0, 1, 2), (1, 1, 1))
    values = scan_on(reference).values
    flips = [axis for axis in range(3) if signs[axis] < 0]
    stored = values.permute(*order).flip(flips)
    index = np.eye(4)  # voxel of the stored array -> voxel of the reference
    index[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        index[axis, column] = sign
        index[axis, 3] = values.shape[axis] - 1 if sign < 0 else 0
    scan = Scan(stored.contiguous(), Grid(tuple(stored.shape), reference.affine @ index))
    one, other = (standard_image(s, Intensities(), (1.4, 1.4, 1.4)) for s in (Scan(values, reference), scan))
    torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)
    np.testing.assert_allclose(one.grid.affine, other.grid.affine, atol=1e-9)


def test_two_percentiles_become_minus_one_and_one():
    grid = Grid.centred((20, 20, 20), 1.0)
    values = torch.arange(8000.0).reshape(20, 20, 20) * 0.5 + 100
    image = standard_image(Scan(values, grid), Intensities((), 10, 90))
    low, high = image.window
    assert low == pytest.approx(np.percentile(values, 10), rel=2e-3)
    assert high == pytest.approx(np.percentile(values, 90), rel=2e-3)
    torch.testing.assert_close(image.values * (high - low) / 2 + (high + low) / 2, values, rtol=1e-4, atol=1e-2)


def test_a_window_means_the_same_in_every_image():
    grid = Grid.centred((4, 4, 4), 1.0)
    values = torch.arange(64.0).reshape(4, 4, 4)
    image = standard_image(Scan(values, grid), Intensities(window=(-150.0, 250.0)))
    assert image.window == (-150, 250)
    torch.testing.assert_close(image.values, values / 200 - 0.25)


@pytest.mark.parametrize("window", [(1.0,), (3.0, 3.0), (2.0, 1.0), (1.0, 2.0, 3.0)])
def test_an_impossible_window_is_refused(window):
    scan = scan_on(Grid.centred((4, 4, 4), 1.0))
    with pytest.raises(InputError, match="two values, the lower one first"):
        standard_image(scan, Intensities(window=window))


@pytest.mark.parametrize("percentiles", [(-5.0, 99.0), (1.0, 101.0), (99.0, 1.0)])
def test_impossible_percentiles_are_refused(percentiles):
    with pytest.raises(InputError, match="between 0 and 100, the lower one first"):
        Intensities((), *percentiles).ends(Scan(torch.arange(8.0).reshape(2, 2, 2), Grid.centred((2, 2, 2), 1.0)))


def test_finer_voxels_are_linear_between_the_old_ones():
    grid = turned((6, 7, 8), (1.0, 2.0, 1.5), (0, 1, 2), (1, 1, 1))
    scan = scan_on(grid)
    values, found = at_spacing(scan.values, grid, (0.4, 0.9, 0.7))
    expected = ImageField(scan.values, grid)(found.points())
    torch.testing.assert_close(values.reshape(-1, 1), expected, atol=1e-4, rtol=0)


def test_coarser_voxels_average_and_stay_in_place():
    grid = Grid.centred((24, 24, 24), 1.0)
    generator = torch.Generator().manual_seed(0)
    rough, found = at_spacing(torch.randn(24, 24, 24, generator=generator), grid, (3.0, 3.0, 3.0))
    assert found.shape == (8, 8, 8)
    assert float(rough.std()) < 0.25  # of one voxel it is one
    line = at_spacing(grid.points()[:, 0].reshape(24, 24, 24), grid, (3.0, 3.0, 3.0))[0]
    inside = slice(1, -1)
    torch.testing.assert_close(
        line[inside], found.points()[:, 0].reshape(8, 8, 8)[inside], atol=1e-4, rtol=0
    )  # a ramp stays the same ramp
    torch.testing.assert_close(at_spacing(torch.ones(24, 24, 24), grid, (5.0, 5.0, 5.0))[0], torch.ones(5, 5, 5))


def test_nearly_the_same_spacing_changes_nothing():
    grid = turned((6, 7, 8), (1.0, 2.0, 1.5), (0, 1, 2), (1, 1, 1))
    scan = scan_on(grid)
    values, found = at_spacing(scan.values, grid, (1.004, 1.99, 1.5))
    assert torch.equal(values, scan.values)
    assert found.same_as(grid)
    assert spaced_grid(grid, (1.02, 2.0, 1.5)).shape == (6, 7, 8)


def test_a_slice_keeps_its_thickness():
    grid = Grid.centred((10, 12, 1), (1.0, 1.0, 8.0))
    found = standard_image(scan_on(grid), Intensities(), (2.0, 2.0, 2.0)).grid
    assert found.shape == (5, 6, 1)
    assert found.spacing_mm == pytest.approx((2, 2, 8))


def test_channels_and_constant_images_are_refused():
    grid = Grid.centred((4, 4, 4), 1.0)
    with pytest.raises(InputError, match="one channel"):
        standard_image(Scan(torch.randn(4, 4, 4, 2), grid), Intensities())
    with pytest.raises(InputError, match="constant"):
        standard_image(Scan(torch.ones(4, 4, 4), grid), Intensities())
