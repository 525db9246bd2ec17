"""Density compensation: how much of k-space every sample stands for.

Iterations of Pipe and Menon (MRM 41:179-186, 1999): w <- w / (C * w), * the convolution with a kernel over the
samples. The kernel is that of Johnson and Pipe (MRM 61:439-447, 2009) for a box: the transform of the field of view's
autocorrelation, C(k) = prod_a sinc^2(k_a FOV_a), which is positive and does not reach across a field of view. It is
applied by two non-uniform transforms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.operators.nufft import nufft, nufft_adjoint
from scanfield.space.kspace import KSpaceGeometry

ITERATIONS = 20


def density_weights(geometry: KSpaceGeometry, iterations: int = ITERATIONS) -> Float[Tensor, "views samples"]:
    """Weights of every sample, frame by frame; 1 for samples one field of view apart, as in a full Cartesian scan.

    With them `encoding.KSpaceEncoding.adjoint` is an approximate inverse for a unit sensitivity.

    Raises:
        InputError: fewer than one iteration.
    """
    if iterations < 1:
        raise InputError(f"density compensation needs at least one iteration, got {iterations}")
    volume = geometry.volume
    step = np.where(np.asarray(volume.shape) == 1, 0.0, 2 * np.pi * np.asarray(volume.spacing_mm))
    frequency = torch.from_numpy(geometry.trajectory * step).float()
    shape, kernel = _autocorrelation(volume.shape)
    weights = torch.empty(geometry.views, geometry.shape[2])
    for frame in np.unique(geometry.frame_of_view):
        views = torch.from_numpy(np.flatnonzero(geometry.frame_of_view == frame))
        points = frequency[views].flatten(0, 1)
        w = torch.ones(len(points), dtype=torch.complex64)
        for _ in range(iterations):
            w = w / nufft(kernel * nufft_adjoint(w, points, shape), points).real
        weights[views] = w.real.reshape(len(views), -1)
    return weights


def _autocorrelation(shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], Tensor]:
    """(shape of twice the field of view, the box's autocorrelation there, 1 / voxels at its middle)."""
    triangles = [torch.ones(1, dtype=torch.float64) if n == 1 else _triangle(n) for n in shape]
    a, b, c = triangles
    kernel = a[:, None, None] * b[:, None] * c / math.prod(shape)
    return (len(a), len(b), len(c)), kernel.to(torch.complex64)


def _triangle(n: int) -> Float[Tensor, " m"]:
    """1 in the middle of 2 n voxels, 0 at their border."""
    return 1 - (torch.arange(2 * n, dtype=torch.float64) - n).abs() / n
