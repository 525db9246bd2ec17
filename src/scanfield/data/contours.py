"""Closed planar contours <-> masks on voxel grids.

Contours of a structure lie in parallel planes. In one plane a point is inside by the even-odd rule over all contours of
that plane: an inner contour is a hole, an outer one joined to it by a channel ("keyhole") is too, several contours are
several parts. Between two neighbouring planes the shape is interpolated: the plane's signed distances are weighted
linearly and the result is cut at zero (Raya & Udupa, IEEE Trans. Med. Imaging 9:32-42, 1990). The outermost contours
reach half a plane's distance further, also where planes are missing in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid

_SAME_PLANE_MM = 0.02
_NEIGHBOURS = 1.6  # in usual distances: planes farther apart bound different parts
_PARALLEL = 1e-3
_FLAT_MM = 0.5
_FINER = 2.0  # voxels of a helper lattice per voxel of a grid that is oblique to the planes


@dataclass(frozen=True, eq=False)
class Planes:
    """Contours by the plane they lie in.

    Args:
        normal: (3,), unit vector.
        heights: position of every plane along the normal, mm, ascending.
        contours: of every plane, arrays (n, 3) of world points (mm, RAS+).
        distance_mm: the usual distance of neighbouring planes.
    """

    normal: np.ndarray
    heights: np.ndarray
    contours: tuple[tuple[np.ndarray, ...], ...]
    distance_mm: float


def planes_of(contours: list[np.ndarray], distance_mm: float | None = None) -> Planes:
    """Groups contours (n, 3) by their planes.

    Args:
        distance_mm: of neighbouring planes, for a structure with a contour in one plane only.

    Raises:
        InputError: a contour has fewer than three points or is not flat, or two are not parallel.
    """
    if not contours:
        raise InputError("there are no closed contours")
    if min(len(points) for points in contours) < 3:
        raise InputError("a closed contour needs three points")
    normals, areas = zip(*map(_normal, contours), strict=True)
    normal = normals[int(np.argmax(areas))]
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    heights = []
    for points in contours:
        along = points @ normal
        if along.max() - along.min() > _FLAT_MM:
            raise InputError(
                f"a contour leaves its plane by {along.max() - along.min():.2g} mm, or lies across another one",
                fix="export the structures as planar contours",
            )
        heights.append(float(along.mean()))
    order = np.argsort(heights, kind="stable")
    groups: list[list[int]] = []
    for k in order:
        if groups and heights[k] - heights[groups[-1][0]] <= _SAME_PLANE_MM:
            groups[-1].append(int(k))
        else:
            groups.append([int(k)])
    levels = np.array([float(np.mean([heights[k] for k in group])) for group in groups])
    gaps = np.diff(levels)
    usual = float(np.median(gaps)) if len(gaps) else distance_mm or 0.0
    return Planes(normal, levels, tuple(tuple(contours[k] for k in group) for group in groups), usual)


def contour_mask(planes: Planes, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """The voxels of `grid` whose centres lie inside.

    A grid with an axis along the planes' normal is asked voxel by voxel; on another one the nearest voxel of a helper
    lattice decides that lies along the planes and is twice as fine.
    """
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cosines = np.abs(unit.T @ planes.normal)
    axis = int(np.argmax(cosines))
    others = [k for k in range(3) if k != axis]
    if 1 - cosines[axis] > _PARALLEL or max(cosines[k] for k in others) > np.sqrt(2 * _PARALLEL):
        return _through_lattice(planes, grid)
    out = np.zeros(grid.shape, dtype=bool)
    inverse = np.linalg.inv(grid.affine)
    moved = [[points @ inverse[:3, :3].T + inverse[:3, 3] for points in plane] for plane in planes.contours]
    places = np.array([np.mean([points[:, axis].mean() for points in plane]) for plane in moved])
    flat = [[points[:, others] for points in plane] for plane in moved]
    spacing = np.asarray(grid.spacing_mm)
    order = np.argsort(places)
    slab = _Slab(
        places[order],
        [flat[k] for k in order],
        (grid.shape[others[0]], grid.shape[others[1]]),
        (spacing[others[0]], spacing[others[1]]),
        planes.distance_mm / spacing[axis],
    )
    view = np.moveaxis(out, axis, 0)
    for k in range(grid.shape[axis]):
        view[k] = slab.at(k)
    return torch.from_numpy(out)


class _Slab:
    """Contours in pixel coordinates of a lattice, and where (in slices) each plane lies."""

    def __init__(
        self,
        places: np.ndarray,
        contours: list[list[np.ndarray]],
        shape: tuple[int, int],
        spacing: tuple[float, float],
        distance: float,
    ) -> None:
        self.places, self.contours, self.shape, self.spacing = places, contours, shape, spacing
        self.distance = distance or 1.0  # one plane alone: one slice
        self.near = 1e-3
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def at(self, place: float) -> np.ndarray:
        """Which pixels are inside at a height."""
        above = int(np.searchsorted(self.places, place - self.near))
        if above < len(self.places) and abs(self.places[above] - place) <= self.near:
            return self._plane(above)[0]
        below = above - 1
        if below >= 0 and above < len(self.places):
            gap = self.places[above] - self.places[below]
            if gap <= _NEIGHBOURS * self.distance:
                t = (place - self.places[below]) / gap
                mixed: np.ndarray = (1 - t) * self._plane(below)[1] + t * self._plane(above)[1]
                return mixed < 0
        for k in (below, above):
            if 0 <= k < len(self.places) and abs(self.places[k] - place) <= self.distance / 2:
                return self._plane(k)[0]
        return np.zeros(self.shape, dtype=bool)

    def _plane(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inside of plane k, and its signed distance in mm (negative inside)."""
        if k not in self.kept:
            inside = even_odd(self.contours[k], self.shape)
            far = float(np.hypot(self.shape[0] * self.spacing[0], self.shape[1] * self.spacing[1]))
            if not inside.any():
                signed = np.full(self.shape, far)
            else:
                padded = np.pad(inside, 1)
                outer = distance_transform_edt(~padded, sampling=self.spacing)
                inner = distance_transform_edt(padded, sampling=self.spacing)
                half = min(self.spacing) / 2  # distances go from centre to centre, the border lies between them
                signed = np.where(padded, half - inner, outer - half)[1:-1, 1:-1]
            self.kept = {key: value for key, value in self.kept.items() if abs(key - k) <= 1}
            self.kept[k] = inside, signed
        return self.kept[k]


def even_odd(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels (n0, n1) whose centres, at whole numbers, lie inside an odd number of the closed contours (n, 2).

    Along each row i the polygons' edges cross the line at known places; every crossing turns inside to outside beyond
    it. An edge owns its lower end and not its upper one, so that a corner is one crossing or two, never one and a half.
    """
    turns = np.zeros((shape[0], shape[1] + 1), dtype=np.int64)
    for points in contours:
        a, b = points, np.roll(points, -1, axis=0)
        low, high = np.where(a[:, :1] <= b[:, :1], a, b), np.where(a[:, :1] <= b[:, :1], b, a)
        first = np.clip(np.ceil(low[:, 0]), 0, shape[0]).astype(np.int64)
        stop = np.clip(np.ceil(high[:, 0]), 0, shape[0]).astype(np.int64)
        counts = np.maximum(stop - first, 0)
        edge = np.repeat(np.arange(len(points)), counts)
        if len(edge) == 0:
            continue
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        slope = (high[edge, 1] - low[edge, 1]) / (high[edge, 0] - low[edge, 0])
        crossing = low[edge, 1] + (row - low[edge, 0]) * slope
        column = np.clip(np.ceil(crossing), 0, shape[1]).astype(np.int64)
        np.add.at(turns, (row, column), 1)
    return np.asarray(np.cumsum(turns, axis=1)[:, :-1] % 2 == 1)


def mask_contours(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> list[np.ndarray]:
    """Closed contours (n, 3) in mm (RAS+) of a mask's slices across the third voxel axis, halfway between voxels.

    `contour_mask` on the same grid gives the mask back; holes have contours of their own.
    """
    from skimage.measure import find_contours

    found = []
    for k in range(grid.shape[2]):
        inside = mask[:, :, k].cpu().numpy()
        if not inside.any():
            continue
        for line in find_contours(np.pad(inside, 1).astype(np.float64), 0.5):
            index = np.concatenate([line[:-1] - 1, np.full((len(line) - 1, 1), float(k))], axis=1)
            found.append(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    return found


def _normal(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit normal and area of a closed contour, by Newell's sum of cross products."""
    centred = points - points.mean(axis=0)
    area = np.cross(centred, np.roll(centred, -1, axis=0)).sum(axis=0) / 2
    size = float(np.linalg.norm(area))
    return (area / size if size > 0 else np.array([0.0, 0.0, 1.0])), size


def _through_lattice(planes: Planes, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    corner = np.eye(3)[int(np.argmin(np.abs(planes.normal)))]
    u = np.cross(planes.normal, corner)
    u /= np.linalg.norm(u)
    frame = np.stack([u, np.cross(planes.normal, u), planes.normal], axis=1)  # columns
    points = np.concatenate([line for plane in planes.contours for line in plane]) @ frame
    margin = np.array([0.0, 0.0, (planes.distance_mm or max(grid.spacing_mm)) / 2])
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    spacing = np.full(3, min(grid.spacing_mm) / _FINER)
    counts = np.ceil((high - low) / spacing).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = frame * spacing, frame @ low
    lattice = Grid((int(counts[0]), int(counts[1]), int(counts[2])), affine)
    inside = contour_mask(planes, lattice)
    place = lattice.to_voxel(grid.points().double()).round().long()
    size = torch.tensor(lattice.shape)
    within = ((place >= 0) & (place < size)).all(dim=1)
    i, j, k = torch.minimum(place.clamp(min=0), size - 1).unbind(1)
    return (inside[i, j, k] & within).reshape(grid.shape)
