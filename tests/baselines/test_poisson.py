"""Poisson reconstruction: exact for its own differences, right in mm, oblique, in 2-D and 3-D."""

import numpy as np
import pytest
import torch

from scanfield.baselines.poisson import from_gradient, from_laplacian
from scanfield.operators.differences import sobel_gradient
from scanfield.space.grid import Grid


def oblique(shape: tuple[int, int, int]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([-1.5, 2.0, 3.0])
    return Grid(shape, affine)


@pytest.mark.parametrize("shape", [(40, 30, 1), (20, 18, 12)])
def test_a_smooth_image_comes_back_from_its_gradient(shape: tuple[int, int, int]) -> None:
    grid = oblique(shape)
    x = grid.points() - torch.tensor(grid.centre_mm, dtype=torch.float32)
    image = (100 * (x[:, 0] / 20).sin() * (x[:, 1] / 25).cos() + x[:, 2]).reshape(shape)
    found = from_gradient(sobel_gradient(image, grid), grid)
    assert abs(float(found.mean())) < 1e-3
    error = found - (image - image.mean())
    assert float(error.square().mean().sqrt()) < 0.02 * float(image.std())


def test_an_image_comes_back_from_its_second_differences() -> None:
    """With the transform's own border condition (mirrored image) the solution is exact."""
    grid = oblique((12, 10, 6))
    image = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    padded = torch.from_numpy(np.pad(image.double().numpy(), 1, mode="symmetric"))
    second = sum(
        torch.diff(padded, n=2, dim=axis)[tuple(slice(None) if a == axis else slice(1, -1) for a in range(3))]
        / grid.spacing_mm[axis] ** 2
        for axis in range(3)
    )
    torch.testing.assert_close(from_laplacian(second, grid), image - image.mean(), atol=1e-5, rtol=0)
