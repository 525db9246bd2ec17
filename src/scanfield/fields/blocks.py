"""A field that is another network in every block of a lattice, without seams.

Notation: v continuous voxel index, block i the box [a_i, b_i) of voxels, whose faces lie at a_i - 1/2 and b_i - 1/2;
u_i(v) in [-1, 1]^d the block's own coordinates between its faces (only axes of more than one voxel).

    f(x) = scale * sum_i w_i(v) n_i(u_i(v)) + offset

w_i is a product over the block's inner faces of ramps from 0 to 1, from `seam` voxels outside to `seam` inside, so that
sum_i w_i = 1 where the blocks are the leaves of a tree of cuts. With seam = 1/2 the field is continuous and every voxel
centre still belongs to one block alone; with seam = 0 every point asks the block it lies in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.space.box import Box
from scanfield.space.grid import Grid

_NOTHING = 1e-4  # rounding of coordinates must not ask a network for nothing


class Constant(nn.Module):
    """The same value everywhere; nothing to fit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        return torch.full_like(u[:, :1], self.value)


class BlockField(nn.Module):
    """A function of world coordinates, (*n, 3) -> (*n, 1).

    Args:
        grid: the lattice that the blocks are boxes of.
        boxes: first voxel and first voxel beyond, by axis; they tile the grid.
        networks: one a block, block coordinates (n, d) -> (n, 1).
        seam: half width of the blending across faces between blocks, in voxels; at most half of the thinnest block.

    Raises:
        InputError: the seam is wider than that.
    """

    world_to_voxel: Tensor

    def __init__(
        self,
        grid: Grid,
        boxes: Sequence[Box],
        networks: Sequence[nn.Module],
        *,
        seam: float = 0.0,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if len(boxes) != len(networks):
            raise ValueError(f"{len(boxes)} blocks need as many networks, got {len(networks)}")
        thinnest = min((b - a for box in boxes for (a, b), n in zip(box, grid.shape, strict=True) if n > 1), default=1)
        if not 0 <= seam <= thinnest / 2:
            raise InputError(
                f"a seam reaches at most to the middle of the thinnest block, {thinnest / 2:g}, got {seam:g}"
            )
        self.grid, self.boxes, self.seam, self.scale, self.offset = grid, tuple(boxes), seam, scale, offset
        self.axes = [axis for axis in range(3) if grid.shape[axis] > 1]
        self.blocks = nn.ModuleList(networks)
        inverse = torch.linalg.inv(torch.tensor(grid.affine))[:3]
        self.register_buffer("world_to_voxel", inverse, persistent=False)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        flat = x.reshape(-1, 3)
        voxel = (flat.double() @ self.world_to_voxel[:, :3].T + self.world_to_voxel[:, 3]).to(x.dtype)
        out = voxel.new_zeros(len(flat), 1)
        for box, network in zip(self.boxes, self.blocks, strict=True):
            weight = self.weight(box, voxel)
            chosen = weight.nonzero()[:, 0]
            if len(chosen):
                values = network(self.local(box, voxel[chosen]))
                out = out.index_add(0, chosen, weight[chosen, None] * values)
        return (self.scale * out + self.offset).reshape(*x.shape[:-1], 1)

    def reach(self, box: Box) -> Box:
        """The voxels in which a block has a say: its own, and those across the seams."""
        more = math.ceil(self.seam - 0.5) if self.seam else 0
        a, b, c = (
            (max(start - more, 0), min(stop + more, n)) for (start, stop), n in zip(box, self.grid.shape, strict=True)
        )
        return a, b, c

    def local(self, box: Box, voxel: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """Coordinates of a block: -1 and 1 at its faces."""
        start = torch.tensor([box[a][0] for a in self.axes], dtype=voxel.dtype, device=voxel.device)
        size = torch.tensor([box[a][1] - box[a][0] for a in self.axes], dtype=voxel.dtype, device=voxel.device)
        return 2 * (voxel[:, self.axes] - start + 0.5) / size - 1

    def weight(self, box: Box, voxel: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """w of a block; outside the grid the outermost blocks go on."""
        out = voxel.new_ones(len(voxel))
        for axis in self.axes:
            start, stop = box[axis]
            if start > 0:
                out = out * self._ramp(voxel[:, axis] - (start - 0.5))
            if stop < self.grid.shape[axis]:
                out = out * (1 - self._ramp(voxel[:, axis] - (stop - 0.5)))
        return out

    def _ramp(self, beyond: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """0 before a face, 1 behind it."""
        if self.seam == 0:
            return (beyond >= 0).to(beyond.dtype)
        ramp = ((beyond + self.seam) / (2 * self.seam)).clamp(0, 1)
        return torch.where((ramp < _NOTHING) | (ramp > 1 - _NOTHING), ramp.round(), ramp)
