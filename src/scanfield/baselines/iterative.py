"""Algebraic rivals: SIRT, SART with ordered views, and CGLS.

Notation: A the voxel projector, y the line integrals, x the attenuation, R = diag(1 / A 1), C = diag(1 / A^T 1).
All start from x = 0 and run where the measurement's values are. Noise enters with the iterations, so all stop early
where the noise is known: once ||A x - y|| has come down to its expected norm (Morozov's discrepancy principle).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry


@dataclass(frozen=True, eq=False)
class Iterates:
    """The last iterate (1/mm) and ||A x - y|| after every iteration, the start included."""

    volume: Float[Tensor, "n0 n1 n2"]
    residuals: tuple[float, ...]


def sirt(measurement: Measurement[ProjectionGeometry], grid: Grid, *, iterations: int = 100) -> Iterates:
    """x <- max(0, x + C A^T R (y - A x)): simultaneous, non-negative (Gregor, Benson, IEEE TMI 27:918-924, 2008)."""
    y = measurement.values
    projector = VoxelProjector(measurement.acquisition, grid, device=y.device)
    row, column = (_reciprocal(s) for s in projector.sums())
    x = torch.zeros(grid.shape, dtype=y.dtype, device=y.device)
    residual = y - projector.project(x)
    level, history = noise_norm(measurement), [_norm(residual)]
    for _ in range(iterations):
        if history[-1] <= level:
            break
        x = (x + column * projector.backproject(row * residual)).clamp(min=0)
        residual = y - projector.project(x)
        history.append(_norm(residual))
    return Iterates(x, tuple(history))


def sart(
    measurement: Measurement[ProjectionGeometry], grid: Grid, *, sweeps: int = 10, relaxation: float = 0.25
) -> Iterates:
    """SIRT's step view by view, neighbours in sequence far apart (Andersen, Kak, Ultrason. Imaging 6:81-94, 1984).

    A relaxation below one keeps noisy views from overwriting each other.
    """
    y, geometry = measurement.values, measurement.acquisition
    projectors, scales = {}, {}
    for view in _spread(geometry.views):
        projectors[view] = VoxelProjector(geometry.subset(np.array([view])), grid, device=y.device)
        scales[view] = [_reciprocal(s) for s in projectors[view].sums()]
    x = torch.zeros(grid.shape, dtype=y.dtype, device=y.device)
    level, history = noise_norm(measurement), [_norm(y)]
    for _ in range(sweeps):
        if history[-1] <= level:
            break
        for view, projector in projectors.items():
            row, column = scales[view]
            residual = y[view : view + 1] - projector.project(x)
            x = (x + relaxation * column * projector.backproject(row * residual)).clamp(min=0)
        squares = [_norm(y[v : v + 1] - p.project(x)) ** 2 for v, p in projectors.items()]
        history.append(float(np.sqrt(sum(squares))))
    return Iterates(x, tuple(history))


def cgls(measurement: Measurement[ProjectionGeometry], grid: Grid, *, iterations: int = 10) -> Iterates:
    """Conjugate gradients on A^T A x = A^T y, stopped early (Björck, Numerical Methods for Least Squares, 7.4.1)."""
    y = measurement.values
    projector = VoxelProjector(measurement.acquisition, grid, device=y.device)
    x = torch.zeros(grid.shape, dtype=y.dtype, device=y.device)
    residual = y
    gradient = projector.backproject(residual)
    direction, power = gradient, float((gradient**2).sum())
    level, history = noise_norm(measurement), [_norm(residual)]
    for _ in range(iterations):
        if history[-1] <= level or power == 0:
            break
        image = projector.project(direction)
        step = power / float((image**2).sum())
        x, residual = x + step * direction, residual - step * image
        gradient = projector.backproject(residual)
        before, power = power, float((gradient**2).sum())
        direction = gradient + power / before * direction
        history.append(_norm(residual))
    return Iterates(x, tuple(history))


def noise_norm(measurement: Measurement[ProjectionGeometry]) -> float:
    """Expected norm of the noise in all line integrals; zero where it is not known.

    Gaussian: sigma per ray. Poisson: variance exp(p) / I0 per ray, to first order.
    """
    noise, y = measurement.noise, measurement.values
    if noise.kind == "gaussian":
        return noise.level * float(np.sqrt(y.numel()))
    if noise.kind == "poisson":
        return float((torch.exp(y.double()) / noise.level).sum().sqrt())
    return 0.0


def _reciprocal(sums: Tensor) -> Tensor:
    """1 / sums, and zero for rays that miss the grid and voxels no ray sees (grazing ones included)."""
    return torch.where(sums > 1e-3 * sums.max(), 1 / sums, 0.0)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def _spread(views: int) -> list[int]:
    """View indices in an order whose neighbours lie far apart: by the golden ratio."""
    return [int(v) for v in np.argsort(np.mod(np.arange(views) * (np.sqrt(5) - 1) / 2, 1.0), kind="stable")]
