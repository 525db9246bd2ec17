"""Finite differences against analytic derivatives, in world directions and mm."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from scanfield.errors import InputError
from scanfield.operators.differences import discrete_laplacian, sobel_gradient
from scanfield.space.grid import Grid


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    angle = 0.6
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = [5, -7, 11]
    return Grid(shape, affine)


def test_a_linear_ramp_has_its_gradient_everywhere() -> None:
    grid = oblique((6, 7, 5), (0.5, 2.0, 3.0))
    slope = torch.tensor([2.0, -1.0, 0.25])
    ramp = (grid.points() @ slope).reshape(grid.shape)
    torch.testing.assert_close(sobel_gradient(ramp, grid), slope.expand(*grid.shape, 3), atol=1e-4, rtol=0)
    assert discrete_laplacian(ramp, grid).abs().max() < 1e-3


def test_a_sheared_grid_has_the_same_gradient_and_no_laplacian() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.5
    grid = Grid((6, 6, 6), affine)
    slope = torch.tensor([2.0, -1.0, 0.25])
    ramp = (grid.points() @ slope).reshape(grid.shape)
    torch.testing.assert_close(sobel_gradient(ramp, grid), slope.expand(*grid.shape, 3), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="orthogonal"):
        discrete_laplacian(ramp, grid)


def test_sobel_is_scipy_s_filter_in_physical_units() -> None:
    grid = Grid((12, 10, 1), np.diag([0.7, 1.9, 5.0, 1.0]))
    image = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    found = sobel_gradient(image, grid)[1:-1, 1:-1, 0]
    for axis, spacing in ((0, 0.7), (1, 1.9)):
        expected = ndimage.sobel(image[..., 0].numpy().astype(float), axis=axis)[1:-1, 1:-1] / 8 / spacing
        np.testing.assert_allclose(found[..., axis].numpy(), expected, atol=1e-5)
    assert found[..., 2].abs().max() == 0


def test_a_parabola_has_its_laplacian_inside() -> None:
    grid = oblique((8, 8, 8), (0.5, 2.0, 1.0))
    x = grid.points().double() - torch.tensor(grid.centre_mm)
    image = (x[:, 0] ** 2 + 3 * x[:, 1] ** 2 - 2 * x[:, 2] ** 2).reshape(grid.shape)
    inner = discrete_laplacian(image.float(), grid)[1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 4.0), atol=2e-3, rtol=0)
    flat = oblique((8, 8, 1), (0.5, 2.0, 1.0))
    along = (flat.to_voxel(flat.points().double()) * torch.tensor([0.5, 2.0, 1.0]))[:, :2]
    bowl = (along**2).sum(-1).reshape(flat.shape).float()
    torch.testing.assert_close(
        discrete_laplacian(bowl, flat)[1:-1, 1:-1], torch.full((6, 6, 1), 4.0), atol=2e-3, rtol=0
    )
