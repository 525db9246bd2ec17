"""Features of images as a function of world position: a condition that is a pyramid of feature maps.

Notation: v = M x is the (continuous) voxel of a world point, F_l the features of level l, whose voxel j lies at voxel
s_l j of the image (`fields.networks.pyramid`). With displacements d_0 = 0 and d_i = +-d along every axis of the image

    phi(x) = [ F_l(M x + d_i) ]  for all i and l,

every F_l linear between its voxel centres and constant beyond the outermost ones. The displaced copies (IF-Net,
Chibane, Alldieck & Pons-Moll, CVPR 2020) tell the decoder what is around x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from scanfield.space.grid import Grid


class FeaturePyramid:
    """The features of a batch of images, each on its own grid; a `fields.field.Condition`.

    Args:
        levels: feature maps (b, c, *sizes), over the axes of more than one voxel of the grids.
        scales: voxels of the image from one voxel of a level to the next, by axis.
        grids: of the images, b of them.
        starts: voxel of the image at which the first voxel of a level lies, by axis; 0 without it.
        displacement_mm: how far from x the features around it are sampled; 0: only at x.
        shared: features of an image as a whole, appended at every point.
    """

    def __init__(
        self,
        levels: Sequence[Float[Tensor, "b _ *_n"]],
        scales: Sequence[tuple[float, ...]],
        grids: Sequence[Grid],
        *,
        starts: Sequence[tuple[float, ...]] | None = None,
        displacement_mm: float = 0.0,
        shared: Float[Tensor, "b g"] | None = None,
    ) -> None:
        dims = levels[0].ndim - 2
        axes = [[axis for axis in range(3) if grid.shape[axis] > 1] for grid in grids]
        if len(levels) != len(scales) or any(len(level) != len(grids) for level in levels):
            raise ValueError("a pyramid needs a scale for every level and a grid for every image")
        if any(len(own) != dims for own in axes):
            raise ValueError(f"features of {dims} axes do not fit grids of shape {[grid.shape for grid in grids]}")
        self.levels, self.shared = list(levels), shared
        inverse = np.stack([np.linalg.inv(grid.affine)[own] for grid, own in zip(grids, axes, strict=True)])
        spacing = np.array([[grid.spacing_mm[axis] for axis in own] for grid, own in zip(grids, axes, strict=True)])
        around = [np.eye(dims), -np.eye(dims)] if displacement_mm else []
        steps = displacement_mm * np.concatenate([np.zeros((1, dims)), *around]) / spacing[:, None]
        # grid_sample wants -1..1 between the outermost centres; an axis of one voxel has no scale.
        last = np.array([level.shape[2:] for level in levels]) - 1
        factors = 2 / (np.array(scales) * np.maximum(last, 1))
        shifts = -1 - factors * (np.zeros_like(factors) if starts is None else np.array(starts))
        together = _together([inverse, steps, factors, shifts], levels[0])
        self.world_to_voxel, self.displacements, self._factors, self._shifts = together

    @property
    def size(self) -> int:
        """Number of features at a point."""
        copies, whole = self.displacements.shape[1], 0 if self.shared is None else self.shared.shape[1]
        return copies * sum(level.shape[1] for level in self.levels) + whole

    def at(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n k"]:
        """Features at world points, mm: copies by copies, of every copy all levels, then the shared ones.

        Args:
            x: (b, *n, 3), points of every image; of a single image also (*n, 3).
        """
        images = len(self.world_to_voxel)
        if images > 1 and (x.ndim < 3 or len(x) != images):
            raise ValueError(f"points of shape {tuple(x.shape)} do not say which of {images} images they are of")
        points = x.reshape(images, x.numel() // (3 * images), 3)
        voxel = points @ self.world_to_voxel[:, :, :3].mT + self.world_to_voxel[:, None, :, 3]
        copies = voxel[:, :, None] + self.displacements[:, None]  # (b, m, i, d)
        lines = zip(self.levels, self._factors, self._shifts, strict=True)
        parts = [_sampled(level, copies * factor + shift) for level, factor, shift in lines]
        found = torch.cat(parts, dim=-1).flatten(2)
        if self.shared is not None:
            found = torch.cat([found, self.shared[:, None].expand(-1, found.shape[1], -1)], dim=-1)
        return found.reshape(*x.shape[:-1], self.size)


def _sampled(level: Float[Tensor, "b c *n"], query: Float[Tensor, "b m i d"]) -> Float[Tensor, "b m i c"]:
    """Linear interpolation at places of a level, -1..1 between the centres of its outermost voxels."""
    images, points, copies, dims = query.shape
    query = query.flip(-1).reshape(images, *[1] * (dims - 2), points, copies, dims)  # the fastest axis comes first
    found = grid_sample(level, query, align_corners=True, padding_mode="border")
    return found.reshape(images, level.shape[1], points, copies).permute(0, 2, 3, 1)


def _together(arrays: Sequence[np.ndarray], like: Tensor) -> list[Tensor]:
    """Arrays as tensors like another one, in a single transfer: a GPU stands still at each."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(like)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
