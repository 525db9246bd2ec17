"""Images from their derivatives by a Poisson equation: the classical rival of a field fitted to derivatives.

Notation: h_a spacing along voxel axis a, n_a its voxels, k_a = 0 .. n_a - 1 the frequencies of a cosine transform
(DCT-II), in which second differences with no flux through the border are factors

    lambda(k) = - sum_a (2 - 2 cos(pi k_a / n_a)) / h_a^2                       1/mm^2

(Simchony, Chellappa & Shao, IEEE TPAMI 12:435-446, 1990). The constant k = 0 is not known: results have mean zero.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import dctn, idctn
from torch import Tensor

from scanfield.space.grid import Grid


def from_gradient(gradient: Float[Tensor, "n0 n1 n2 3"], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The image whose gradient is nearest to the given world gradient (per mm) in the least-squares sense.

    The gradient between two voxels is the mean of both. Voxel axes are taken as orthogonal.
    """
    along = gradient.double().numpy() @ (grid.affine[:3, :3] / np.asarray(grid.spacing_mm))
    divergence = np.zeros(grid.shape)
    for axis, spacing in enumerate(grid.spacing_mm):
        lines = np.moveaxis(along[..., axis], axis, -1)
        flux = (lines[..., 1:] + lines[..., :-1]) / 2
        width = [(0, 0)] * 2 + [(1, 1)]
        divergence += np.moveaxis(np.diff(np.pad(flux, width), axis=-1), -1, axis) / spacing
    return _solve(divergence, grid)


def from_laplacian(laplacian: Float[Tensor, "n0 n1 n2"], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The image with this Laplacian (per mm^2) and no flux through the border.

    A Laplacian determines an image up to harmonic functions; the border condition chooses one of them.
    """
    return _solve(laplacian.double().numpy(), grid)


def _solve(source: np.ndarray, grid: Grid) -> Tensor:
    eigenvalues = np.zeros(grid.shape)
    for axis, (n, spacing) in enumerate(zip(grid.shape, grid.spacing_mm, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = n
        eigenvalues = eigenvalues - ((2 - 2 * np.cos(np.pi * np.arange(n) / n)) / spacing**2).reshape(shape)
    transformed = dctn(source, type=2, norm="ortho")
    eigenvalues[0, 0, 0], transformed[0, 0, 0] = 1.0, 0.0
    return torch.from_numpy(idctn(transformed / eigenvalues, type=2, norm="ortho")).float()
