"""How well two segmentations agree, in voxels and on their surfaces. A, B are the masks found and the reference.

    Dice    = 2 |A and B| / (|A| + |B|)         Jaccard = |A and B| / |A or B|

Surfaces are those of `fields.shape.mask_mesh` (marching cubes midway between voxel centres; of a slice, its outlines),
in world mm. Every triangle (or segment) is one surface element: it counts with its area, and its distance is that of
its centroid to the nearest point of the other surface, exactly. With d the distances of the elements of both surfaces:

    ASSD           = sum of area x d over both / sum of area          (average symmetric surface distance)
    HD, HD95       = the larger of the two directed maxima, 95th percentiles by area
    surface Dice   = area with d <= tolerance / area of both          (Nikolov et al., JMIR 23(7), 2021)

Where a mask is empty: if only one of the two is, overlaps are 0 and distances infinite; if both are, there is nothing
to compare and every value is NaN. Programs that measure between voxel centres differ by up to a voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.fields.shape import crop_to_object, mask_mesh
from scanfield.space.grid import Grid
from scanfield.space.triangles import Triangles


@dataclass(frozen=True)
class Overlap:
    """Agreement of a mask with a reference in voxels; volumes in mm3."""

    dice: float
    jaccard: float
    volume_mm3: float
    reference_mm3: float

    @property
    def volume_difference_mm3(self) -> float:
        """Positive where too much was found."""
        return self.volume_mm3 - self.reference_mm3


@dataclass(frozen=True)
class SurfaceAgreement:
    """Agreement of a mask's surface with a reference's; `surface_dice` at the tolerance that was asked for."""

    surface_dice: float
    assd_mm: float
    hausdorff95_mm: float
    hausdorff_mm: float


def overlap(found: Bool[Tensor, "n0 n1 n2"], reference: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> Overlap:
    """Dice, Jaccard and volumes.

    Raises:
        InputError: a mask does not fit the grid.
    """
    _check(grid, found, reference)
    a, b, both = (int(m.sum()) for m in (found, reference, found & reference))
    voxel = grid.voxel_volume_mm3
    dice, jaccard = (2 * both / (a + b), both / (a + b - both)) if a + b else (math.nan, math.nan)
    return Overlap(dice, jaccard, a * voxel, b * voxel)


def surface_agreement(
    found: Bool[Tensor, "n0 n1 n2"], reference: Bool[Tensor, "n0 n1 n2"], grid: Grid, *, tolerance_mm: float
) -> SurfaceAgreement:
    """Distances between the surfaces of two masks, and the share of them within `tolerance_mm`.

    Raises:
        InputError: a mask does not fit the grid, which has to be a volume or a slice; the tolerance is negative.
    """
    _check(grid, found, reference)
    if not tolerance_mm >= 0:
        raise InputError(f"a tolerance cannot be negative, got {tolerance_mm:g} mm")
    empty = not bool(found.any()), not bool(reference.any())
    if all(empty):
        return SurfaceAgreement(math.nan, math.nan, math.nan, math.nan)
    if any(empty):
        return SurfaceAgreement(0.0, math.inf, math.inf, math.inf)
    a, b = surface_elements(found, grid), surface_elements(reference, grid)
    there, back = _distances(a, b), _distances(b, a)
    area_a, area_b = _areas(a), _areas(b)
    total = area_a.sum() + area_b.sum()
    within = area_a[there <= tolerance_mm + _ROUNDING_MM].sum() + area_b[back <= tolerance_mm + _ROUNDING_MM].sum()
    return SurfaceAgreement(
        surface_dice=float(within / total),
        assd_mm=float(((area_a * there).sum() + (area_b * back).sum()) / total),
        hausdorff95_mm=max(_percentile(there, area_a, 0.95), _percentile(back, area_b, 0.95)),
        hausdorff_mm=float(max(there.max(), back.max())),
    )


def surface_elements(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> Float[np.ndarray, "f 3 3"]:
    """Corners (mm) of the triangles of a mask's surface; of a slice, its outlines as triangles (a, b, b).

    What lies beyond the image is outside, so surfaces are closed.

    Raises:
        InputError: the mask is empty, or the grid has more than one axis of one voxel.
    """
    thin = [axis for axis in range(3) if grid.shape[axis] == 1]
    if not thin:
        part, own = crop_to_object(mask, grid, margin_mm=0.0)
        mesh = mask_mesh(part, own)
        return np.asarray(mesh.vertices[mesh.faces])
    if len(thin) > 1:
        raise InputError(f"an outline needs a slice, got an image of shape {grid.shape}")
    if not bool(mask.any()):
        raise InputError("the mask is empty: it has no surface", fix="give a mask with at least one voxel inside")
    return _outline(mask.cpu().numpy().squeeze(thin[0]), grid, thin[0])


_ROUNDING_MM = 1e-6  # a surface moved by exactly the tolerance lies within it


def _outline(mask: np.ndarray, grid: Grid, across: int) -> np.ndarray:
    from skimage.measure import find_contours

    segments = []
    for line in find_contours(np.pad(mask.astype(float), 1), 0.5):
        index = np.insert(line - 1, across, 0.0, axis=1)
        x = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        segments.append(np.stack([x[:-1], x[1:], x[1:]], axis=1))
    return np.concatenate(segments)


def _areas(elements: np.ndarray) -> np.ndarray:
    """Areas in mm2; lengths in mm of elements that are segments."""
    ab, ac = elements[:, 1] - elements[:, 0], elements[:, 2] - elements[:, 0]
    flat = bool((elements[:, 1] == elements[:, 2]).all())
    return np.linalg.norm(ab if flat else np.cross(ab, ac) / 2, axis=1)


def _distances(elements: np.ndarray, other: np.ndarray) -> np.ndarray:
    return Triangles(other).nearest(elements.mean(axis=1)).distance_mm


def _percentile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value with at least that share of the weight at or below it."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12))])


def _check(grid: Grid, *masks: Tensor) -> None:
    for mask in masks:
        if tuple(mask.shape) != grid.shape:
            raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit a grid of shape {grid.shape}")
