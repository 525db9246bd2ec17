"""A field with one free parameter per voxel: the control that has no network."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from scanfield.errors import InputError
from scanfield.space.grid import Grid


class VoxelField(nn.Module):
    """head(v(x)) with v interpolated linearly between voxel centres, constant beyond the outermost ones.

    Args:
        grid: where the parameters are; axes of one voxel do not count.
        head: parameter -> physical units.

    Raises:
        InputError: the grid has fewer than two axes of more than one voxel.
    """

    world_to_voxel: Tensor

    def __init__(self, grid: Grid, head: nn.Module) -> None:
        super().__init__()
        axes = [axis for axis in range(3) if grid.shape[axis] > 1]
        if len(axes) < 2:
            raise InputError(f"a field of voxels needs two axes of more than one voxel, got shape {grid.shape}")
        self.values = nn.Parameter(torch.zeros([grid.shape[axis] for axis in axes]))
        self.register_buffer(
            "world_to_voxel", torch.from_numpy(np.linalg.inv(grid.affine)[axes]).float(), persistent=False
        )
        self.head = head

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        matrix, sizes = self.world_to_voxel.to(x.dtype), self.values.shape
        place = x @ matrix[:, :3].T + matrix[:, 3]
        # grid_sample wants -1..1 between the outermost centres, fastest axis first.
        query = (
            (2 * place / (place.new_tensor(sizes) - 1) - 1).flip(-1).reshape(1, *[1] * (len(sizes) - 1), -1, len(sizes))
        )
        values = grid_sample(self.values[None, None].to(x.dtype), query, align_corners=True, padding_mode="border")
        out: Tensor = self.head(values.reshape(*x.shape[:-1], 1))
        return out
