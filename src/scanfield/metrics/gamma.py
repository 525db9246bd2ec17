"""The gamma index between two doses (Low, Harms, Mutic & Purdy, Med. Phys. 25:656-661, 1998).

    Gamma(r) = min over r' of sqrt( |r' - r|^2 / d^2 + (D_e(r') - D_r(r))^2 / delta(r)^2 )

with reference D_r, evaluated dose D_e, distance criterion d (mm) and dose criterion delta: a share of one dose
everywhere (global) or of D_r(r) (local). A point passes where Gamma <= 1. D_e is continued between its voxels by
trilinear interpolation and searched on a lattice of d / `finer` around every point, from the inside outwards; beyond
its outermost voxel centres there is none. The search of a point ends where the distance alone exceeds
what has been found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scanfield.errors import InputError
from scanfield.space.grid import Grid

_EVALUATIONS = 2**19  # points at once: bounds the memory
_EDGE = 1e-5  # of the half extent: rounding


@dataclass(frozen=True)
class GammaCriterion:
    """What counts as agreement.

    Args:
        dose_percent: dose criterion, percent of the global dose or of the local one.
        distance_mm: distance criterion.
        local: whether the percentage is of the reference dose at each point.
        cutoff_percent: points below this percentage of `global_gy` are not judged.
        global_gy: the dose the percentages refer to; by default the reference's highest.
        finer: search points per distance criterion along every axis.
        largest: search radius in distance criteria; gamma is not computed beyond it.
    """

    dose_percent: float = 3.0
    distance_mm: float = 3.0
    local: bool = False
    cutoff_percent: float = 10.0
    global_gy: float | None = None
    finer: int = 10
    largest: float = 2.0

    def __post_init__(self) -> None:
        if not (self.dose_percent > 0 and self.distance_mm > 0 and self.finer >= 1 and self.largest >= 1):
            raise InputError(
                "gamma needs a positive dose and distance criterion, "
                f"got {self.dose_percent:g} % and {self.distance_mm:g} mm"
            )
        if not 0 <= self.cutoff_percent < 100:
            raise InputError(f"the cut-off of gamma must be in [0, 100) percent, got {self.cutoff_percent:g}")

    @property
    def label(self) -> str:
        """'3 %/3 mm, global'."""
        return f"{self.dose_percent:g} %/{self.distance_mm:g} mm, {'local' if self.local else 'global'}"


@dataclass(frozen=True, eq=False)
class Gamma:
    """A gamma map.

    Args:
        values: Gamma per voxel of the reference, at most `criterion.largest`; NaN where it was not judged.
        criterion: by which it was computed.
    """

    values: Float[Tensor, "n0 n1 n2"]
    criterion: GammaCriterion

    @property
    def judged(self) -> Bool[Tensor, "n0 n1 n2"]:
        """Which voxels were judged."""
        return ~self.values.isnan()

    @property
    def passing_percent(self) -> float:
        """Share of the judged voxels with Gamma <= 1."""
        judged = self.values[self.judged]
        return 100 * float((judged <= 1).double().mean())

    @property
    def mean(self) -> float:
        """Mean Gamma of the judged voxels."""
        return float(self.values[self.judged].double().mean())


def gamma(
    reference: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    evaluated: Float[Tensor, "m0 m1 m2"],
    evaluated_grid: Grid,
    criterion: GammaCriterion,
    *,
    mask: Bool[Tensor, "n0 n1 n2"] | None = None,
    device: torch.device | str = "cpu",
) -> Gamma:
    """Gamma at the reference's voxels above the cut-off (and in the mask).

    Args:
        reference, evaluated: Gy.

    Raises:
        InputError: no voxel is above the cut-off.
    """
    scale_gy = float(reference.max()) if criterion.global_gy is None else criterion.global_gy
    judged = reference >= criterion.cutoff_percent / 100 * scale_gy
    if criterion.local:
        judged = judged & (reference > 0)
    if mask is not None:
        judged = judged & mask
    index = judged.flatten().nonzero()[:, 0]
    if len(index) == 0 or scale_gy <= 0:
        raise InputError("no voxel is above the cut-off of gamma", fix="lower the cut-off")
    dose = reference.flatten()[index].to(device=device, dtype=torch.float32)
    share = criterion.dose_percent / 100
    delta = share * dose if criterion.local else torch.full_like(dose, share * scale_gy)
    image = _Image(evaluated, evaluated_grid, device)
    places = image.places(grid.to_world(grid.voxels(index).double()))
    best = torch.full_like(dose, criterion.largest**2)
    open_points = torch.arange(len(dose), device=device)
    for radius, offsets in _shells(criterion, grid):
        near = (radius / criterion.distance_mm) ** 2
        open_points = open_points[best[open_points] > near]
        if len(open_points) == 0:
            break
        shifts = image.shifts(offsets)
        for part in open_points.split(max(1, _EVALUATIONS // len(shifts))):
            found = image.read(places[part][:, None] + shifts)
            squared = ((found - dose[part][:, None]) / delta[part][:, None]).square() + near
            best[part] = torch.minimum(best[part], squared.amin(dim=1))
    values = torch.full((grid.size,), math.nan)
    values[index] = best.sqrt().cpu()
    return Gamma(values.reshape(grid.shape), criterion)


class _Image:
    """A dose read trilinearly at places in units of `grid_sample`: -1 to 1 between its outermost voxel centres, the
    last axis first; axes of one voxel are dropped."""

    def __init__(self, values: Tensor, grid: Grid, device: torch.device | str) -> None:
        self.axes = [axis for axis in (2, 1, 0) if grid.shape[axis] > 1]
        if len(self.axes) < 2:
            raise InputError(f"gamma needs a dose with two axes of more than one voxel, got shape {grid.shape}")
        self.image = values.to(device=device, dtype=torch.float32).squeeze()[None, None]
        scale = np.array([2 / (grid.shape[axis] - 1) for axis in self.axes])
        inverse = np.linalg.inv(grid.affine)[self.axes]
        self.matrix = torch.from_numpy(scale[:, None] * inverse)
        self.device = device

    def places(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """Of world points."""
        return (x @ self.matrix[:, :3].T + self.matrix[:, 3] - 1).float().to(self.device)

    def shifts(self, offsets: np.ndarray) -> Float[Tensor, "k d"]:
        """Of world vectors."""
        return (torch.from_numpy(offsets) @ self.matrix[:, :3].T).float().to(self.device)

    def read(self, places: Float[Tensor, "p k d"]) -> Float[Tensor, "p k"]:
        """The dose; infinite beyond the outermost centres."""
        flat = places.reshape(1, *[1] * (places.shape[-1] - 1), -1, places.shape[-1])
        values = functional.grid_sample(self.image, flat, align_corners=True, padding_mode="border")
        beyond = places.abs().amax(dim=-1) > 1 + _EDGE
        return values.reshape(places.shape[:-1]).masked_fill(beyond, math.inf)


def _shells(criterion: GammaCriterion, grid: Grid) -> list[tuple[float, np.ndarray]]:
    """Offsets (mm) of a cubic lattice in the search radius, by their distance; a slice is searched in its plane."""
    step = criterion.distance_mm / criterion.finer
    reach = math.floor(criterion.largest * criterion.finer + 1e-9)
    along = [np.arange(-reach, reach + 1) if n > 1 else np.zeros(1, dtype=int) for n in grid.shape]
    lattice = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 3)
    squared = (lattice**2).sum(axis=1)
    kept = squared <= reach**2
    lattice, squared = lattice[kept], squared[kept]
    order = np.argsort(squared, kind="stable")
    lattice, squared = lattice[order], squared[order]
    cuts = np.flatnonzero(np.diff(squared)) + 1
    offsets = lattice @ (step * grid.directions.T)
    return [
        (step * math.sqrt(first), part)
        for first, part in zip(squared[np.r_[0, cuts]], np.split(offsets, cuts), strict=True)
    ]
