"""How good a registration is: landmark errors in mm, overlap of labels, folding, inverse consistency.

Notation: phi maps points of the fixed image to the moving image (mm), psi back; x_k landmarks in the fixed image, y_k
the same places in the moving one; J = d phi / d x.

    target registration error (TRE)  |phi(x_k) - y_k|                        mm, statistics over the landmarks
    the same, snapped to voxels      |round(phi(x_k)) - round(y_k)|          mm, both rounded to voxel centres
    Dice of a label                  2 |A n B| / (|A| + |B|)                 A fixed, B warped moving voxels
    folding                          share of points with det J <= 0         %
    SD log det J                     standard deviation over the points that do not fold
    inverse consistency              |psi(phi(x)) - x|                       mm

Everything is computed in double precision. A TRE without its convention cannot be compared: snapping, as the DIR-Lab
evaluation has it, lowers a sub-voxel error and hides what is below half a voxel; both are always given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from scanfield.errors import InputError
from scanfield.fields.image import nearest
from scanfield.space.grid import Grid

Mapping = Callable[[Tensor], Tensor]
_CHUNK = 2**16
_LABELS_FIX = "give segmentations with a whole number for every structure, 0 for the background"


@dataclass(frozen=True)
class Distances:
    """Statistics of distances between corresponding points, in mm; `sd_mm` is the sample's (n - 1), 0 for one point."""

    mean_mm: float
    sd_mm: float
    median_mm: float
    q25_mm: float
    q75_mm: float
    q95_mm: float
    max_mm: float
    count: int


@dataclass(frozen=True)
class LandmarkErrors:
    """Target registration error before (phi the identity) and after, sub-voxel and snapped."""

    initial: Distances
    final: Distances
    initial_snapped: Distances
    final_snapped: Distances


@dataclass(frozen=True)
class Regularity:
    """What the Jacobian determinants of a map say.

    Args:
        folding_percent: points with det J <= 0, of all points.
        sd_log_determinant: over the points with det J > 0 only, since a fold has no logarithm; NaN where all points
            fold. Other programs clip the determinant first, then folds raise their number: compare both columns.
        lowest, highest: determinants.
        count: of points.
    """

    folding_percent: float
    sd_log_determinant: float
    lowest: float
    highest: float
    count: int


def distances(a: Float[Tensor, "n 3"], b: Float[Tensor, "m 3"]) -> Distances:
    """Statistics of |a_k - b_k| of corresponding points in mm.

    Raises:
        InputError: the numbers of points differ, there are none, or a coordinate is NaN or infinite.
    """
    if a.shape != b.shape or len(a) == 0:
        raise InputError(f"corresponding points are needed, got {len(a)} and {len(b)}")
    apart = (_double(a) - _double(b)).norm(dim=-1).numpy()
    bad = int((~np.isfinite(apart)).sum())
    if bad:
        raise InputError(f"{bad} of {len(apart)} points or their partners are NaN or infinite")
    q25, median, q75, q95 = (float(q) for q in np.quantile(apart, [0.25, 0.5, 0.75, 0.95]))
    sd = float(apart.std(ddof=1)) if len(apart) > 1 else 0.0
    return Distances(float(apart.mean()), sd, median, q25, q75, q95, float(apart.max()), len(apart))


def snapped(x: Float[Tensor, "n 3"], grid: Grid) -> Float[Tensor, "n 3"]:
    """The voxel centres of `grid` (continued beyond its border) nearest to points, along the voxel axes."""
    affine = torch.tensor(grid.affine)
    return grid.to_voxel(_double(x)).round() @ affine[:3, :3].T + affine[:3, 3]


def landmark_errors(
    fixed: Float[Tensor, "n 3"], moving: Float[Tensor, "m 3"], mapped: Float[Tensor, "n 3"], moving_grid: Grid
) -> LandmarkErrors:
    """Target registration errors of landmarks.

    Args:
        fixed, moving: x_k and y_k.
        mapped: phi(x_k).
        moving_grid: of the moving image, to whose voxels the snapped errors round.

    Raises:
        InputError: as for `distances`.
    """
    target = snapped(moving, moving_grid)
    return LandmarkErrors(
        initial=distances(fixed, moving),
        final=distances(mapped, moving),
        initial_snapped=distances(snapped(fixed, moving_grid), target),
        final_snapped=distances(snapped(mapped, moving_grid), target),
    )


def warped_labels(
    mapping: Mapping, labels: Num[Tensor, "m0 m1 m2"], moving_grid: Grid, fixed_grid: Grid
) -> Num[Tensor, "n0 n1 n2"]:
    """Labels of the moving image on the fixed grid: each fixed voxel takes the label of the voxel its centre maps to.

    0 where that is outside the moving image. The map is evaluated in pieces: memory does not grow with the grid.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, fixed_grid.size, _CHUNK):
            parts.append(nearest(labels, moving_grid, mapping(fixed_grid.points(start, start + _CHUNK))).cpu())
    return torch.cat(parts).reshape(fixed_grid.shape)


def dice(fixed: Num[Tensor, "n0 n1 n2"], warped: Num[Tensor, "m0 m1 m2"]) -> dict[int, float]:
    """Dice of every label but 0 that occurs in either image, on one grid.

    Raises:
        InputError: the shapes differ, a value is no whole number, or there is no label but 0 in both.
    """
    if fixed.shape != warped.shape:
        raise InputError(f"label images differ in shape: {tuple(fixed.shape)} and {tuple(warped.shape)}")
    a, b = _labels(fixed), _labels(warped)
    sizes_a, sizes_b, shared = (_counts(values) for values in (a, b, a[a == b]))
    labels = sorted({*sizes_a, *sizes_b} - {0})
    if not labels:
        raise InputError("the label images hold nothing but 0", fix=_LABELS_FIX)
    return {k: 2 * shared.get(k, 0) / (sizes_a.get(k, 0) + sizes_b.get(k, 0)) for k in labels}


def regularity(determinant: Float[Tensor, "*n"]) -> Regularity:
    """Folding and spread of the Jacobian determinants of a map.

    Raises:
        InputError: there are no determinants, or one is NaN or infinite.
    """
    values = _double(determinant).reshape(-1).numpy()
    bad = int((~np.isfinite(values)).sum())
    if len(values) == 0 or bad:
        raise InputError(f"{bad} of {len(values)} Jacobian determinants are NaN or infinite; at least one is needed")
    upright = values[values > 0]
    return Regularity(
        folding_percent=100 * float(1 - len(upright) / len(values)),
        sd_log_determinant=float(np.log(upright).std()) if len(upright) else float("nan"),
        lowest=float(values.min()),
        highest=float(values.max()),
        count=len(values),
    )


def inverse_consistency(forward: Mapping, inverse: Mapping, x: Float[Tensor, "n 3"]) -> Distances:
    """How far psi(phi(x)) is from x. Points that phi takes out of the moving image test psi where it is made up.

    Raises:
        InputError: as for `distances`.
    """
    with torch.no_grad():
        back = [inverse(forward(part)) for part in x.split(_CHUNK)]
    return distances(torch.cat(back), x)


def _double(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _labels(image: Tensor) -> np.ndarray:
    values = image.cpu().numpy().ravel()
    if values.dtype.kind == "f":
        bad = int((values != np.rint(values)).sum())  # NaN is no whole number either
        if bad:
            raise InputError(f"labels are whole numbers, {bad} of {len(values)} voxels are not", fix=_LABELS_FIX)
        values = values.astype(np.int64)
    return values


def _counts(values: np.ndarray) -> dict[int, int]:
    labels, sizes = np.unique(values, return_counts=True)
    return {int(k): int(n) for k, n in zip(labels, sizes, strict=True)}
