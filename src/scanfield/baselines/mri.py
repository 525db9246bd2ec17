"""The classical rivals of a raw-MR reconstruction: gridding, CG-SENSE, and least squares with temporal total variation.

Notation: A coil sensitivities and Fourier transform (`operators.encoding`), y k-space, x the complex series
(frames, n0, n1, n2); frames are those of the scan. Where the scan has no sensitivities, all three use the ones that
`operators.calibration` estimates from it. All run where the k-space lies, on the CPU or a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.operators.calibration import mean_image, sensitivities_on
from scanfield.operators.coils import combine
from scanfield.operators.density import density_weights
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.space.grid import Grid

Series = Complex[Tensor, "frames n0 n1 n2"]

RELATIVE_WEIGHTS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Weights of the temporal total variation that are tried, as fractions of the largest |A^H y| per voxel and frame."""
PROX_ITERATIONS = 20
HELD_OUT = 0.1
"""Share of the views that choose a weight or a number of iterations."""
MOST_ITERATIONS, FEW_ITERATIONS = 60, 10
"""Of CG-SENSE: where the held-out views ask for more, and where there are none."""
PATIENCE = 4
"""Iterations of CG-SENSE without a better prediction before the search ends."""


def gridding(kspace: KSpace, grid: Grid) -> Series:
    """The density-compensated adjoint, frame by frame, coils combined by their sensitivities."""
    maps = _maps(kspace, grid)
    weighted = kspace.values * _density(kspace)
    return combine(KSpaceEncoding(kspace.acquisition, grid, maps, device=maps.device).coil_adjoint(weighted), maps)


def cg_sense(kspace: KSpace, grid: Grid, *, iterations: int | None = None) -> Series:
    """Conjugate gradients on A^H W A x = A^H W y, W the density, frame by frame from x = 0.

    Pruessmann, Weiger, Börnert, Boesiger, MRM 46:638-651, 2001. Noise enters with the iterations: their number
    regularises. Without one, `choose_iterations` finds it; an image may lose 3 dB to a number that does not suit it.

    Raises:
        InputError: fewer than one iteration.
    """
    if iterations is not None and iterations < 1:
        raise InputError(f"CG-SENSE needs at least one iteration, got {iterations}")
    maps = _maps(kspace, grid)
    count = choose_iterations(kspace, grid, maps) if iterations is None else iterations
    return next(islice(_conjugate_gradients(kspace, grid, maps), count - 1, None))


def choose_iterations(kspace: KSpace, grid: Grid, sensitivities: Complex[Tensor, "coils n0 n1 n2"]) -> int:
    """The number of iterations whose series from nine tenths of the views predicts the remaining views best.

    Iterations go on until the prediction has not improved for `PATIENCE` of them. The known level of the noise would
    not do: where voxels cannot explain the object exactly, the misfit does not come down to it.
    """
    fitted, held = _without_some(kspace)
    if held is None:
        return FEW_ITERATIONS
    check = KSpaceEncoding(held.acquisition, grid, sensitivities, device=sensitivities.device)
    best, error = 1, math.inf
    for count, series in enumerate(islice(_conjugate_gradients(fitted, grid, sensitivities), MOST_ITERATIONS), start=1):
        found = float((check.apply(series) - held.values).norm())
        if found < error:
            best, error = count, found
        elif count >= best + PATIENCE:
            break
    return best


def _conjugate_gradients(kspace: KSpace, grid: Grid, sensitivities: Tensor) -> Iterator[Series]:
    """The series after every iteration of `cg_sense`."""
    operator = KSpaceEncoding(kspace.acquisition, grid, sensitivities, device=sensitivities.device)
    weights = _density(kspace)
    residual = operator.adjoint(weights * kspace.values)
    x, direction, power = torch.zeros_like(residual), residual, _power(residual)
    while True:
        image = operator.adjoint(weights * operator.apply(direction))
        step = power / _nonzero((direction.conj() * image).real.sum(dim=(1, 2, 3), keepdim=True))
        x, residual = x + step * direction, residual - step * image
        yield x
        before, power = power, _power(residual)
        direction = residual + power / _nonzero(before) * direction


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
    maps = _maps(kspace, grid)
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
    fitted, held = _without_some(kspace)
    whole = KSpaceEncoding(kspace.acquisition, grid, sensitivities, device=sensitivities.device)
    largest = float(whole.adjoint(kspace.values).abs().max())
    weights = [relative * largest for relative in RELATIVE_WEIGHTS]
    if held is None:
        return weights[0]
    check = KSpaceEncoding(held.acquisition, grid, sensitivities, device=sensitivities.device)
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
    operator = KSpaceEncoding(geometry, grid, sensitivities, device=sensitivities.device)
    mean = mean_image(kspace, grid, sensitivities)
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


def _without_some(kspace: KSpace) -> tuple[KSpace, KSpace | None]:
    """(nine tenths of the views, the others); of one or two views all are kept.

    Spokes and spirals all pass the centre of k-space. Of Cartesian lines only outer ones are held out: a scan without
    its brightest lines is another problem, whose solution says nothing about this one.
    """
    geometry = kspace.acquisition
    away = np.linalg.norm(geometry.trajectory, axis=2).min(axis=1)
    sample = 1 / max(n * s for n, s in zip(geometry.volume.shape, geometry.volume.spacing_mm, strict=True))
    outer = np.flatnonzero(away >= away.max() / 2) if away.max() > sample else np.arange(geometry.views)
    count = min(max(1, round(HELD_OUT * geometry.views)), len(outer) // 2)
    if geometry.views < 3 or count == 0:
        return kspace, None
    held = outer[np.round((np.arange(count) + 0.5) * len(outer) / count - 0.5).astype(int)]
    fitted, unseen = kspace.subset(np.setdiff1d(np.arange(geometry.views), held)), kspace.subset(held)
    assert isinstance(fitted, KSpace) and isinstance(unseen, KSpace)
    return fitted, unseen


def _maps(kspace: KSpace, grid: Grid) -> Complex[Tensor, "coils n0 n1 n2"]:
    return sensitivities_on(kspace, grid).to(kspace.values.device)


def _density(kspace: KSpace) -> Float[Tensor, "views 1 samples"]:
    return density_weights(kspace.acquisition)[:, None].to(kspace.values.device)


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
    "cg-sense": MriBaseline(
        "CG-SENSE",
        "Conjugate gradients with coil sensitivities, frame by frame, their number chosen on held-out views.",
        True,
        cg_sense,
    ),
    "temporal-tv": MriBaseline(
        "temporal TV",
        "Least squares with total variation along time, its weight chosen on held-out views.",
        False,
        temporal_tv,
    ),
}
