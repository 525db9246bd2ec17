"""Rays as a voxel lattice sees them: shared by the operators that act on whole volumes.

Notation: a ray in voxel indices is i(t) = o + t d with t in mm, so d is in voxels per mm and 1/|d_a| is the length in
mm the ray travels from one plane of voxel axis a to the next.

Parallel and fan rays of an ordinary scan stay within slices. Then all slices share one two-dimensional system, and a
detector row sees a fixed (fractional) slice: `stacked_rows` finds that out from the rays themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

SAME_VOXEL = 1e-3
"""Deviation, in voxels, up to which rays count as lying in one slice."""


@dataclass(frozen=True, eq=False)
class VoxelRays:
    """Rays in voxel indices of a lattice; `origin` in voxels, `direction` in voxels per mm, both float64."""

    origin: Float[Tensor, "m d"]
    direction: Float[Tensor, "m d"]

    def without(self, axis: int) -> VoxelRays:
        """The rays projected along one axis."""
        keep = [a for a in range(self.origin.shape[1]) if a != axis]
        return VoxelRays(self.origin[:, keep], self.direction[:, keep])


@dataclass(frozen=True, eq=False)
class StackedRows:
    """Detector row r sees only voxel position `position[r]` along voxel axis `axis`, in every view."""

    axis: int
    position: Float[np.ndarray, " rows"]

    def linear_weights(self, slices: int) -> Float[Tensor, "rows slices"]:
        """What each slice contributes to each row: linear between slice centres; a single slice fills its thickness."""
        distance = np.abs(self.position[:, None] - np.arange(slices))
        weights = distance <= 0.5 + SAME_VOXEL if slices == 1 else np.maximum(0.0, 1.0 - distance)
        return torch.tensor(weights, dtype=torch.float32)

    def nearest_weights(self, slices: int) -> Float[Tensor, "rows slices"]:
        """The same for slices of constant value: each row sees the one slice it lies in."""
        weights = np.floor(self.position + 0.5)[:, None] == np.arange(slices)
        return torch.tensor(weights, dtype=torch.float32)


def voxel_rays(
    geometry: ProjectionGeometry,
    grid: Grid,
    index: Int[Tensor, " m"],
    *,
    row_shift: float = 0.0,
    column_shift: float = 0.0,
) -> VoxelRays:
    """The rays of flat measurement indices (C order of `geometry.shape`) in voxel indices of `grid`."""
    rays = geometry.rays(index, row_shift=row_shift, column_shift=column_shift, dtype=torch.float64)
    linear = torch.tensor(np.linalg.inv(grid.affine)[:3, :3], device=index.device)
    return VoxelRays(grid.to_voxel(rays.origin), rays.direction @ linear.T)


def first_row(geometry: ProjectionGeometry) -> Int[Tensor, " m"]:
    """Flat indices of the rays of detector row 0, view by view."""
    views, rows, columns = geometry.shape
    return (torch.arange(views)[:, None] * rows * columns + torch.arange(columns)).reshape(-1)


def stacked_rows(geometry: ProjectionGeometry, grid: Grid, *, row_shift: float = 0.0) -> StackedRows | None:
    """The slice each detector row sees if all rays run within slices of `grid`, else None.

    Looked at are the first and last column of the first and last row of every view: pixel positions are affine in the
    row, and a fan's rays lie between its outermost two.
    """
    views, rows, columns = geometry.shape
    corner = torch.tensor([[r, c] for r in (0, rows - 1) for c in (0, columns - 1)])
    index = (torch.arange(views)[:, None] * rows + corner[:, 0]) * columns + corner[:, 1]
    rays = voxel_rays(geometry, grid, index.reshape(-1), row_shift=row_shift)
    origin, direction = rays.origin.reshape(views, 2, 2, 3), rays.direction.reshape(views, 2, 2, 3)
    reach_mm = float(np.linalg.norm(grid.corners_mm() - grid.centre_mm, axis=1).max()) * 2
    for axis in (2, 1, 0):
        place = origin[..., axis]
        plane = [a for a in range(3) if a != axis]
        drift = max(
            (direction[..., axis].abs() * reach_mm).max(),
            (place - place[:1, :, :1]).abs().max(),
            (origin[:, 0, :, plane] - origin[:, 1, :, plane]).abs().max(),
            ((direction[:, 0, :, plane] - direction[:, 1, :, plane]).abs() * reach_mm).max(),
        )
        if drift < SAME_VOXEL:
            first, last = float(place[0, 0, 0]), float(place[0, 1, 0])
            return StackedRows(axis, np.linspace(first, last, rows))
    return None
