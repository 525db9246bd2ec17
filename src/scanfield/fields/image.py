"""An image as a field: trilinear interpolation between voxel centres, constant beyond the outermost ones."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scanfield.space.grid import Grid


class ImageField(nn.Module):
    """The image `values` (n0, n1, n2) on `grid` as a function of world position, once differentiable in x."""

    world_to_place: Tensor
    image: Tensor

    def __init__(self, values: Float[Tensor, "n0 n1 n2"], grid: Grid) -> None:
        super().__init__()
        size = np.asarray(grid.shape)
        self.axes = [axis for axis in (2, 1, 0) if size[axis] > 1]  # grid_sample wants the fastest axis first
        inverse = np.linalg.inv(grid.affine)
        scale = 2 / np.maximum(size - 1, 1)
        place = inverse[:3] * scale[:, None]
        place[:, 3] -= 1
        self.register_buffer("world_to_place", torch.tensor(place[self.axes], dtype=torch.float32), persistent=False)
        self.register_buffer("image", values.float().squeeze()[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        place = x.reshape(-1, 3) @ self.world_to_place[:, :3].T + self.world_to_place[:, 3]
        dims = len(self.axes)
        query = place.reshape(1, *[1] * (dims - 1), -1, dims)
        values = functional.grid_sample(self.image, query, align_corners=True, padding_mode="border")
        return values.reshape(*x.shape[:-1], 1)
