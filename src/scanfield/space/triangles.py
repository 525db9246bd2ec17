"""The nearest point of a set of triangles, exactly, for any number of points.

Notation: a triangle has corners a, b, c (mm), centroid g and radius r, the largest distance of a corner from g; then
|x - g| - r <= d(x, triangle). A tree over the centroids gives candidates in the order of |x - g|; the search ends where
the next one's bound exceeds the best distance found. Triangles are grouped by radius, so that a few large ones do not
loosen the bound of the many small.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from scanfield.errors import InputError

FIRST_CANDIDATES = 4
PAIRS = 2**19  # of a point and a triangle that are looked at together


@dataclass(frozen=True, eq=False)
class Nearest:
    """For every point its nearest triangle.

    Args:
        distance_mm: (n,).
        triangle: (n,) its index.
        point: (n, 3) the nearest point on it.
        feature: (n,) where that lies: 0 inside, 1, 2, 3 on the edges ab, bc, ca, 4, 5, 6 at the corners a, b, c.
    """

    distance_mm: np.ndarray
    triangle: np.ndarray
    point: np.ndarray
    feature: np.ndarray


class Triangles:
    """Triangles that are asked for the points nearest to others. Corners may coincide: (a, b, b) is a segment.

    Args:
        corners: (f, 3, 3), mm; the second axis counts the corners.

    Raises:
        InputError: there is no triangle.
    """

    def __init__(self, corners: Float[np.ndarray, "f 3 3"]) -> None:
        self.corners = np.ascontiguousarray(corners, dtype=np.float64)
        if self.corners.ndim != 3 or self.corners.shape[1:] != (3, 3) or not len(self.corners):
            raise InputError(f"distances need triangles (f, 3, 3), got {self.corners.shape}")
        self._centroids = self.corners.mean(axis=1)
        self._spokes = self.corners - self._centroids[:, None]
        radii = np.linalg.norm(self._spokes, axis=2).max(axis=1)
        octave = np.floor(np.log2(np.maximum(radii, radii.max() * 2.0**-16 + 1e-300))).astype(int)
        self._groups = []
        for size in np.unique(octave):
            members = np.flatnonzero(octave == size)
            self._groups.append((members, cKDTree(self._centroids[members]), float(radii[members].max())))

    def nearest(self, x: Float[np.ndarray, "n 3"]) -> Nearest:
        """The nearest points to `x` (mm)."""
        x = np.asarray(x, dtype=np.float64).reshape(-1, 3)
        found = Nearest(
            np.full(len(x), np.inf), np.zeros(len(x), dtype=np.int64), np.zeros_like(x), np.zeros(len(x), dtype=np.int8)
        )
        for members, tree, radius in self._groups:
            self._search(x, members, tree, radius, found)
        return found

    def _search(self, x: np.ndarray, members: np.ndarray, tree: cKDTree, radius: float, found: Nearest) -> None:
        """Improves `found` by the triangles of one group: the nearest few centroids, then all that may be nearer."""
        count = min(FIRST_CANDIDATES, len(members))
        for rows in np.array_split(np.arange(len(x)), 1 + count * len(x) // PAIRS):
            apart, near = tree.query(x[rows], k=np.arange(1, count + 1))
            self._improve(x, np.repeat(rows, count), members[near].ravel(), found)
            if count == len(members):
                continue
            rows = rows[apart[:, -1] - radius < found.distance_mm[rows]]
            within = found.distance_mm[rows] + radius
            counts = tree.query_ball_point(x[rows], within, return_length=True)
            for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(np.cumsum(counts) // PAIRS)) + 1):
                near = tree.query_ball_point(x[rows[part]], within[part])
                flat = np.fromiter(itertools.chain.from_iterable(near), dtype=np.int64, count=int(counts[part].sum()))
                self._improve(x, np.repeat(rows[part], counts[part]), members[flat], found)

    def _improve(self, x: np.ndarray, row: np.ndarray, triangle: np.ndarray, found: Nearest) -> None:
        """Improves `found` by pairs of a point and a triangle, those of a point together.

        A point y of a triangle has |x - y| >= (x - y) . u >= |x - g| - max over corners of (corner - g) . u, with u
        from g to x: most candidates of a flat piece of surface are ruled out by this, and the rest looked at exactly.
        """
        towards = x[row] - self._centroids[triangle]
        apart = np.linalg.norm(towards, axis=1)
        reach = np.einsum("nkd,nd->nk", self._spokes[triangle], towards).max(axis=1) / np.maximum(apart, 1e-300)
        left = apart - reach < found.distance_mm[row]
        row, triangle = row[left], triangle[left]
        points, features = closest_points(x[row], self.corners[triangle])
        distance = np.linalg.norm(points - x[row], axis=1)
        order = np.lexsort((distance, row))
        first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        first = first[distance[first] < found.distance_mm[row[first]]]
        where = row[first]
        found.distance_mm[where], found.triangle[where] = distance[first], triangle[first]
        found.point[where], found.feature[where] = points[first], features[first]


def closest_points(
    x: Float[np.ndarray, "*#n 3"], corners: Float[np.ndarray, "*#n 3 3"]
) -> tuple[Float[np.ndarray, "*m 3"], Int[np.ndarray, "*m"]]:
    """The point of each triangle nearest to x, and where in the triangle it lies (see `Nearest.feature`).

    By the regions of the plane around a triangle (Ericson, Real-Time Collision Detection, 2005, section 5.1.5): x
    projects into a corner's, an edge's or the triangle's own.
    """
    a, b, c = (corners[..., k, :] for k in range(3))
    ab, ac = b - a, c - a
    d1, d2 = _dot(ab, x - a), _dot(ac, x - a)
    d3, d4 = _dot(ab, x - b), _dot(ac, x - b)
    d5, d6 = _dot(ab, x - c), _dot(ac, x - c)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    s, t = d4 - d3, d5 - d6
    conditions = [  # the order matters: corners first
        (d1 <= 0) & (d2 <= 0),
        (d3 >= 0) & (d4 <= d3),
        (d6 >= 0) & (d5 <= d6),
        (vc <= 0) & (d1 >= 0) & (d3 <= 0),
        (va <= 0) & (s >= 0) & (t >= 0),
        (vb <= 0) & (d2 >= 0) & (d6 <= 0),
    ]
    feature = np.select(conditions, [4, 5, 6, 1, 2, 3], default=0).astype(np.int8)
    zero, one = np.zeros_like(d1), np.ones_like(d1)
    along_bc = _ratio(s, s + t)
    whole = va + vb + vc
    v = np.choose(feature, [_ratio(vb, whole), _ratio(d1, d1 - d3), 1 - along_bc, zero, zero, one, zero])
    w = np.choose(feature, [_ratio(vc, whole), zero, along_bc, _ratio(d2, d2 - d6), zero, zero, one])
    return a + v[..., None] * ab + w[..., None] * ac, feature


def _dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.asarray((u * v).sum(axis=-1))


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """numerator / denominator, 0 where the denominator vanishes: there the region is another one."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator != 0))
