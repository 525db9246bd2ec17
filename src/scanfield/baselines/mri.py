"""The classical rivals of a raw-MR reconstruction: gridding, CG-SENSE, and least squares with temporal total variation.

Notation: A coil sensitivities and Fourier transform (`operators.encoding`), y k-space, x the complex series
(frames, n0, n1, n2); frames are those of the scan. Where the scan has no sensitivities, all three use the ones that
`operators.calibration` estimates from it. All run on the CPU, as their Fourier transform does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex
from torch import Tensor

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.operators.calibration import sensitivities_on
from scanfield.operators.coils import combine
from scanfield.operators.density import density_weights
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.space.grid import Grid

Series = Complex[Tensor, "frames n0 n1 n2"]

RELATIVE_WEIGHTS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Weights of the temporal total variation that are tried, as fractions of the largest |A^H y| per voxel and frame."""
PROX_ITERATIONS = 20
HELD_OUT = 0.1
"""Share of the samples that choose the weight."""


def gridding(kspace: KSpace, grid: Grid) -> Series:
    """The density-compensated adjoint, frame by frame, coils combined by their sensitivities."""
    kspace = _on_cpu(kspace)
    maps = sensitivities_on(kspace, grid)
    weighted = kspace.values * density_weights(kspace.acquisition)[:, None]
    return combine(KSpaceEncoding(kspace.acquisition, grid, maps).coil_adjoint(weighted), maps)


def cg_sense(kspace: KSpace, grid: Grid, *, iterations: int = 20) -> Series:
    """Conjugate gradients on A^H W A x = A^H W y, W the density, frame by frame from x = 0.

    Pruessmann, Weiger, Börnert, Boesiger, MRM 46:638-651, 2001. Noise enters with the iterations: their number
    regularises, and a frame stops early where the noise is known, once |A x - y| has come down to its expected norm.

    Raises:
        InputError: fewer than one iteration.
    """
    if iterations < 1:
        raise InputError(f"CG-SENSE needs at least one iteration, got {iterations}")
    kspace = _on_cpu(kspace)
    geometry = kspace.acquisition
    operator = KSpaceEncoding(geometry, grid, sensitivities_on(kspace, grid))
    weights = density_weights(geometry)[:, None]
    frame = torch.from_numpy(geometry.frame_of_view)
    sigma = kspace.noise.level if kspace.noise.kind == "gaussian" else 0.0
    expected = 2 * sigma**2 * torch.ones(kspace.values.shape).sum(dim=(1, 2))

    def per_frame(views: Tensor) -> Tensor:
        return torch.zeros(geometry.frame_count).index_add(0, frame, views)[:, None, None, None]

    misfit, level = kspace.values, per_frame(expected)
    residual = operator.adjoint(weights * misfit)
    x, direction, power = torch.zeros_like(residual), residual, _power(residual)
    for _ in range(iterations):
        active = per_frame(misfit.abs().square().sum(dim=(1, 2))) > level
        if not bool(active.any()):
            break
        seen = operator.apply(direction)
        image = operator.adjoint(weights * seen)
        step = active * power / _nonzero((direction.conj() * image).real.sum(dim=(1, 2, 3), keepdim=True))
        x, residual = x + step * direction, residual - step * image
        misfit = misfit - step[frame, 0] * seen
        before, power = power, _power(residual)
        direction = residual + power / _nonzero(before) * direction
    return x


@dataclass(frozen=True, eq=False)
class TvSeries:
    """The series, the weight of its temporal total variation, and the objective after every iteration."""

    series: Series
    weight: float
    objective: tuple[float, ...]


def temporal_tv(kspace: KSpace, grid: Grid, *, weight: float | None = None, iterations: int = 60) -> Series:
    """argmin 1/2 ||A x - y||^2 + weight sum |x_{f+1} - x_f|; without a weight, `choose_weight` finds one.

    The penalty of GRASP (Feng et al., MRM 72:707-717, 2014). Frames without views follow from their neighbours.
    """
    kspace = _on_cpu(kspace)
    maps = sensitivities_on(kspace, grid)
    if weight is None:
        weight = choose_weight(kspace, grid, maps)
    return solve(kspace, grid, maps, weight, iterations=iterations).series


def choose_weight(
    kspace: KSpace,
    grid: Grid,
    sensitivities: Complex[Tensor, "coils n0 n1 n2"],
    *,
    iterations: int = 30,
) -> float:
    """The weight whose series from nine tenths of the views predicts the remaining views best.

    Nothing but the measurement decides. Weights rise until the prediction gets worse.
    """
    views = kspace.acquisition.views
    fitted, held = kspace.hold_out(max(1, round(HELD_OUT * views)) if views > 2 else 0)
    largest = float(KSpaceEncoding(kspace.acquisition, grid, sensitivities).adjoint(kspace.values).abs().max())
    weights = [relative * largest for relative in RELATIVE_WEIGHTS]
    if held is None:
        return weights[0]
    assert isinstance(fitted, KSpace)
    check = KSpaceEncoding(held.acquisition, grid, sensitivities)
    best, error = weights[0], math.inf
    for weight in weights:
        series = solve(fitted, grid, sensitivities, weight, iterations=iterations).series
        found = float((check.apply(series) - held.values).norm())
        if found >= error:
            break
        best, error = weight, found
    return best


def solve(
    kspace: KSpace, grid: Grid, sensitivities: Complex[Tensor, "coils n0 n1 n2"], weight: float, *, iterations: int
) -> TvSeries:
    """Minimises the objective of `temporal_tv` by FISTA (Beck, Teboulle, SIAM J. Imaging Sci. 2:183-202, 2009).

    Starts from the time average in every frame, which gridding of all views gives.

    Raises:
        InputError: a negative weight.
    """
    if not 0 <= weight < math.inf:
        raise InputError(f"the weight of the temporal variation must be finite and not negative, got {weight}")
    geometry = kspace.acquisition
    operator = KSpaceEncoding(geometry, grid, sensitivities)
    together = replace(kspace, acquisition=replace(geometry, frame=None, frames=None), sensitivities=None)
    weighted = kspace.values * density_weights(together.acquisition)[:, None]
    mean = combine(KSpaceEncoding(together.acquisition, grid, sensitivities).coil_adjoint(weighted), sensitivities)
    x = mean.expand(geometry.frame_count, *grid.shape).contiguous()
    step = 1 / (1.05 * operator.norm() ** 2)  # power iteration approaches from below
    ahead, inertia = x, 1.0
    dual = torch.zeros_like(x[1:])
    history = []
    for _ in range(iterations):
        moved = ahead - step * operator.adjoint(operator.apply(ahead) - kspace.values)
        before = x
        x, dual = _prox(moved, step * weight, dual)
        grown = (1 + math.sqrt(1 + 4 * inertia**2)) / 2
        ahead, inertia = x + (inertia - 1) / grown * (x - before), grown
        residual = operator.apply(x) - kspace.values
        history.append(float(residual.abs().square().sum() / 2 + weight * (x[1:] - x[:-1]).abs().sum()))
    return TvSeries(x, weight, tuple(history))


def _prox(series: Tensor, weight: float, dual: Tensor) -> tuple[Tensor, Tensor]:
    """argmin 1/2 ||x - series||^2 + weight sum |x_{f+1} - x_f|, voxel by voxel, and its dual: the next one's start.

    Accelerated projected gradient on the dual (Beck, Teboulle, IEEE Trans. Image Process. 18:2419-2434, 2009), whose
    Lipschitz constant is 4.
    """
    if weight == 0 or len(series) == 1:
        return series, dual
    ahead, inertia = dual, 1.0
    for _ in range(PROX_ITERATIONS):
        x = series + _divergence(ahead)
        before = dual
        dual = ahead + (x[1:] - x[:-1]) / 4
        dual = dual / (dual.abs() / weight).clamp(min=1)
        grown = (1 + math.sqrt(1 + 4 * inertia**2)) / 2
        ahead, inertia = dual + (inertia - 1) / grown * (dual - before), grown
    return series + _divergence(dual), dual


def _divergence(dual: Tensor) -> Tensor:
    """-D^T of the differences along the first axis."""
    zero = torch.zeros_like(dual[:1])
    return torch.cat([dual, zero]) - torch.cat([zero, dual])


def _on_cpu(kspace: KSpace) -> KSpace:
    maps = kspace.sensitivities
    return replace(kspace, values=kspace.values.cpu(), sensitivities=None if maps is None else maps.cpu())


def _power(values: Tensor) -> Tensor:
    return values.abs().square().sum(dim=(1, 2, 3), keepdim=True)


def _nonzero(values: Tensor) -> Tensor:
    """Denominators; a frame without data, or solved exactly, has zeros throughout."""
    return torch.where(values == 0, 1.0, values)


@dataclass(frozen=True)
class MriBaseline:
    """A rival: `reconstruct(kspace, grid)` gives the series (frames, n0, n1, n2), complex.

    Args:
        label: short name for tables.
        note: what it is, in one sentence.
        fast: direct, in seconds; the others iterate.
        reconstruct: the rival itself.
    """

    label: str
    note: str
    fast: bool
    reconstruct: Callable[[KSpace, Grid], Tensor]


BASELINES: dict[str, MriBaseline] = {
    "gridding": MriBaseline("gridding", "Density-compensated adjoint of every frame.", True, gridding),
    "cg-sense": MriBaseline("CG-SENSE", "Conjugate gradients with coil sensitivities, frame by frame.", True, cg_sense),
    "temporal-tv": MriBaseline(
        "temporal TV",
        "Least squares with total variation along time, its weight chosen on held-out views.",
        False,
        temporal_tv,
    ),
}
