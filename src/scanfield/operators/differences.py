"""Derivatives of images on a grid by finite differences, in physical units and world directions.

Notation: I image, A the affine's 3x3 part (voxel steps -> mm). A gradient in voxel steps g_i becomes a world gradient
by g_x = A^-T g_i, right for any spacing, rotation, reflection and shear. At the border the image is continued by point
reflection (2 I_edge - I_mirrored), so that a linear ramp has its exact gradient everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid


def sobel_gradient(values: Float[Tensor, "n0 n1 n2"], grid: Grid) -> Float[Tensor, "n0 n1 n2 3"]:
    """World gradient (value per mm) by the Sobel filter: central difference along an axis, (1, 2, 1) / 4 across it.

    Along an axis of one voxel the derivative is zero.
    """
    padded, axes = _continued(values, grid)
    index_gradient = torch.zeros((*grid.shape, 3), dtype=torch.float64)
    for axis in axes:
        derivative = padded
        for other in axes:
            a, b, c = _shifted(derivative, other)
            derivative = (c - a) / 2 if other == axis else (a + 2 * b + c) / 4
        index_gradient[..., axis] = derivative
    return (index_gradient @ torch.from_numpy(np.linalg.inv(grid.affine[:3, :3]))).float()


def discrete_laplacian(values: Float[Tensor, "n0 n1 n2"], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """Sum of second differences along the voxel axes, value per mm^2.

    At the border the second difference across it is zero by the continuation: leave border voxels out where it matters.

    Raises:
        InputError: the voxel axes are not orthogonal.
    """
    cosines = (grid.affine[:3, :3] / np.asarray(grid.spacing_mm)).T @ (
        grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    )
    if not np.allclose(cosines, np.eye(3), atol=1e-3):
        raise InputError("a Laplacian by differences needs orthogonal voxel axes", fix="resample the image")
    padded, axes = _continued(values, grid)
    total = torch.zeros(grid.shape, dtype=torch.float64)
    for axis in axes:
        inner = padded
        for other in axes:
            a, b, c = _shifted(inner, other)
            inner = (a - 2 * b + c) / grid.spacing_mm[axis] ** 2 if other == axis else b
        total += inner
    return total.float()


def _continued(values: Tensor, grid: Grid) -> tuple[Tensor, list[int]]:
    """The image with one more voxel at both ends of every axis that has neighbours to take a difference of."""
    axes = [axis for axis, n in enumerate(grid.shape) if n > 1]
    width = [(1, 1) if axis in axes else (0, 0) for axis in range(3)]
    array = values.detach().cpu().double().numpy()
    return torch.from_numpy(np.pad(array, width, mode="reflect", reflect_type="odd")), axes


def _shifted(values: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The neighbours before, at and after every voxel but the outermost along one axis."""
    n = values.shape[axis] - 2
    return values.narrow(axis, 0, n), values.narrow(axis, 1, n), values.narrow(axis, 2, n)
