"""Dose in the terms of a treatment planner: dose-volume histograms, isodoses, conformity, gradients.

Notation: D dose (Gy) at points of a structure S that stand for equal volumes.

    V_x      percent of S with D >= x Gy                                    (cumulative dose-volume histogram at x)
    D_v      the dose that at least v percent of S receive                  (its inverse): the (100 - v) % quantile of D
    Dice_x   2 |A and B| / (|A| + |B|) of the volumes with at least x Gy in two doses
    CI       |S and P|^2 / (|S| |P|), P the volume with the prescribed dose (Paddick, J. Neurosurg. 93:219-222, 2000)

D95 and D98 are near-minimum, D2 is the near-maximum dose of ICRU Report 83.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.operators.differences import sobel_gradient
from scanfield.space.grid import Grid

NEAR_MINIMUM, NEAR_MAXIMUM = 98.0, 2.0  # percent of the volume
_CHUNK = 2**16


def dose_at_volume(dose: Float[Tensor, " n"], percent: float) -> float:
    """D_v in Gy, v in percent; linear between order statistics.

    Raises:
        InputError: no points, or a percentage outside 0..100.
    """
    if not 0 <= percent <= 100:
        raise InputError(f"a volume in percent is 0 to 100, got {percent:g}")
    return float(np.quantile(_points(dose), 1 - percent / 100))


def volume_at_dose(dose: Float[Tensor, " n"], gy: float) -> float:
    """V_x in percent, x in Gy."""
    return 100 * float((_points(dose) >= gy).mean())


@dataclass(frozen=True, eq=False)
class Histogram:
    """A cumulative dose-volume histogram: `percent` of the volume receives at least `gy`, both (n,)."""

    gy: np.ndarray
    percent: np.ndarray


def histogram(dose: Float[Tensor, " n"], *, highest_gy: float, step_gy: float = 0.1) -> Histogram:
    """The cumulative dose-volume histogram from 0 to `highest_gy`."""
    if not (highest_gy > 0 and step_gy > 0):
        raise InputError(f"a histogram needs a positive dose range and step, got {highest_gy:g} and {step_gy:g} Gy")
    ordered = np.sort(_points(dose))
    gy = np.arange(0.0, highest_gy + step_gy, step_gy)
    return Histogram(gy, 100 * (1 - np.searchsorted(ordered, gy, side="left") / len(ordered)))


@dataclass(frozen=True)
class DoseVolume:
    """The usual points of one structure, Gy; `volumes` are V_x in percent by x in Gy."""

    d98: float
    d95: float
    d50: float
    d2: float
    mean: float
    highest: float
    volumes: dict[float, float]


def dose_volume(dose: Float[Tensor, " n"], levels_gy: Sequence[float] = ()) -> DoseVolume:
    """The usual points of a dose-volume histogram, and V_x at `levels_gy`."""
    values = _points(dose)
    d98, d95, d50, d2 = (float(q) for q in np.quantile(values, [1 - v / 100 for v in (98, 95, 50, 2)]))
    volumes = {float(level): 100 * float((values >= level).mean()) for level in levels_gy}
    return DoseVolume(d98, d95, d50, d2, float(values.mean()), float(values.max()), volumes)


def sampled_dose(
    dose: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]],
    inside: Callable[[Grid], Bool[Tensor, "n0 n1 n2"]],
    grid: Grid,
    *,
    finer: int = 2,
) -> Float[Tensor, " m"]:
    """A continuous dose at the points of a structure, on a grid `finer` times as fine: for its histogram.

    Args:
        dose: Gy at world points (mm, RAS+).
        inside: the structure's mask on a grid.
        grid: the dose grid.

    Raises:
        InputError: as `inside` does, where the structure lies outside the grid.
    """
    if finer < 1:
        raise InputError(f"a grid can be 1, 2, ... times as fine, got {finer}")
    near = _around(inside(grid), grid)  # the structure alone: eight times a whole dose grid would be large
    s0, s1, s2 = grid.spacing_mm
    fine = near if finer == 1 else near.resampled((s0 / finer, s1 / finer, s2 / finer))
    index = inside(fine).flatten().nonzero()[:, 0]
    with torch.no_grad():
        parts = [dose(fine.to_world(fine.voxels(part).double()).float()).cpu() for part in index.split(_CHUNK)]
    return torch.cat(parts)


def _around(mask: Tensor, grid: Grid) -> Grid:
    """The part of a grid that holds a mask and two voxels around it."""
    low, size = [], []
    for axis, n in enumerate(grid.shape):
        found = mask.any(dim=tuple({0, 1, 2} - {axis})).nonzero()
        first, stop = max(int(found[0]) - 2, 0), min(int(found[-1]) + 3, n)
        low.append(first)
        size.append(stop - first)
    return grid.part(low, size)


def isodose_dice(dose: Tensor, reference: Tensor, gy: float) -> float:
    """Overlap of the volumes with at least `gy` in two doses on one grid; NaN where neither has any."""
    a, b = dose >= gy, reference >= gy
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else math.nan


def conformity(dose: Float[Tensor, "n0 n1 n2"], target: Bool[Tensor, "n0 n1 n2"], prescribed_gy: float) -> float:
    """Paddick's conformity index of a target, 0 to 1.

    Raises:
        InputError: the target is empty, or the prescription is not positive.
    """
    if prescribed_gy <= 0 or not bool(target.any()):
        raise InputError("a conformity index needs a target and a positive prescribed dose")
    covered = dose >= prescribed_gy
    if not bool(covered.any()):
        return 0.0
    both = float((covered & target).sum())
    return both**2 / (float(target.sum()) * float(covered.sum()))


def gradient_error(
    dose: Float[Tensor, "n0 n1 n2"],
    reference: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    mask: Bool[Tensor, "n0 n1 n2"] | None = None,
) -> float:
    """Root mean square of |grad D - grad D_reference| in Gy/mm, by Sobel differences on one grid."""
    error = (sobel_gradient(dose, grid) - sobel_gradient(reference, grid)).double().square().sum(dim=-1)
    return float((error if mask is None else error[mask]).mean().sqrt())


def _points(dose: Tensor) -> np.ndarray:
    values = dose.detach().cpu().double().numpy().reshape(-1)
    if values.size == 0:
        raise InputError("a dose-volume histogram needs points")
    return np.asarray(values)
