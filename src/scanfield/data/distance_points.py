"""Points of signed-distance images, drawn more often near the surface: what shape networks learn from.

Every image is a frame: a lattice of voxel centres with a signed distance (mm, negative inside) at a moment. Images may
lie on different grids. A point is a voxel centre with its moment, (x, y, z, t) in mm and s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.space.grid import Grid


class DistancePoints:
    """Voxel centres of many distance images.

    Args:
        distances: (n0, n1, n2) mm of every frame.
        grids: where the voxels of every frame are.
        times_s: the moment of every frame.
        near_mm: points of a distance up to this, all those inside among them, are near.
        device: where points are made.

    Raises:
        ValueError: there are not as many grids and times as frames, or a shape does not fit.
    """

    def __init__(
        self,
        distances: Sequence[Float[Tensor, "_ _ _"]],
        grids: Sequence[Grid],
        times_s: Sequence[float],
        *,
        near_mm: float,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(distances) == len(grids) == len(times_s) or not distances:
            raise ValueError(f"{len(distances)} frames, {len(grids)} grids and {len(times_s)} times do not suit")
        for values, grid in zip(distances, grids, strict=True):
            if tuple(values.shape) != grid.shape:
                raise ValueError(f"distances of shape {tuple(values.shape)} do not fit a grid of shape {grid.shape}")
        flat = [values.flatten() for values in distances]
        order = [torch.argsort((values > near_mm).to(torch.uint8), stable=True).int() for values in flat]
        self.distances = torch.cat(flat).to(device)
        self.order = torch.cat(order).to(device)
        sizes = torch.tensor([len(values) for values in flat])
        self.first = (sizes.cumsum(0) - sizes).to(device)
        self.counts = sizes.to(device)
        self.near = torch.tensor([int((values <= near_mm).sum()) for values in flat], device=device)
        self.shapes = torch.tensor([grid.shape for grid in grids], device=device)
        self.affines = torch.stack([torch.tensor(grid.affine[:3], dtype=torch.float32) for grid in grids]).to(device)
        self.times = torch.tensor(list(times_s), dtype=torch.float32, device=device)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.counts)

    def at(
        self, frames: Int[Tensor, " b"], drawn: Float[Tensor, "b p"], *, near_share: float
    ) -> tuple[Float[Tensor, "b p 4"], Float[Tensor, "b p"]]:
        """Points of some frames, with repetition, and their distances in mm.

        Args:
            frames: indices of the frames.
            drawn: uniform numbers in [0, 1), one for every point that is wanted.
            near_share: part of the points that are near; the others are not. Where a frame has no points of a kind, all
                are of the other.
        """
        frames, drawn = frames.to(self.counts.device), drawn.to(self.counts.device).double()
        wanted = round(near_share * drawn.shape[1])
        near, count = self.near[frames][:, None], self.counts[frames][:, None]
        is_near = (torch.arange(drawn.shape[1], device=near.device) < wanted) & (near > 0) | (near == count)
        start, size = torch.where(is_near, 0, near), torch.where(is_near, near, count - near)
        place = start + torch.minimum((drawn * size).long(), size - 1)
        flat = self.order[self.first[frames][:, None] + place].long()
        shape = self.shapes[frames][:, None]
        index = torch.stack(
            [flat // (shape[..., 1] * shape[..., 2]), flat // shape[..., 2] % shape[..., 1], flat % shape[..., 2]], -1
        )
        affine = self.affines[frames]
        x = index.float() @ affine[:, :, :3].transpose(1, 2) + affine[:, None, :, 3]
        t = self.times[frames][:, None].expand(flat.shape)
        return torch.cat([x, t[..., None]], dim=-1), self.distances[self.first[frames][:, None] + flat]
