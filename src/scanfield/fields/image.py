"""Images as functions of world position: resampling at mapped points, with a gradient to the points.

Beyond its outermost voxel centres an image is constant; `inside` says where that is made up. A slice (one voxel along
an axis) does not change along its normal.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.nn import functional

from scanfield.errors import InputError
from scanfield.space.grid import Grid

_EDGE = 1e-4  # voxels: a point on the box's face, up to rounding, is inside


class ImageField(nn.Module):
    """The image `values` on `grid` as a function of world position. Computes in the precision of x.

    Args:
        values: one channel; there is no gradient to them with order 3.
        grid: where the voxels are; at least two axes have more than one voxel.
        order: 1, trilinear: once differentiable in x, the gradient jumps at voxel centres; 3, the interpolating cubic
            B-spline (Unser, IEEE Signal Process. Mag. 16(6):22-38, 1999), mirrored at its outermost voxels: twice
            differentiable in x, sharper, may overshoot at edges, about ten times the work.
        mask: voxels that show something; all of them without one. Interpolation does not heed it, `shown` does.
    """

    world_to_voxel: Tensor
    image: Tensor
    mask: Tensor | None

    def __init__(
        self,
        values: Num[Tensor, "n0 n1 n2"],
        grid: Grid,
        *,
        order: Literal[1, 3] = 1,
        mask: Bool[Tensor, "n0 n1 n2"] | None = None,
    ) -> None:
        super().__init__()
        if tuple(values.shape) != grid.shape:
            raise ValueError(f"values of shape {tuple(values.shape)} do not fit a grid of shape {grid.shape}")
        self.axes = [axis for axis in range(3) if grid.shape[axis] > 1]
        if len(self.axes) < 2:
            raise InputError(f"an image needs two axes of more than one voxel, got shape {grid.shape}")
        self.order, self.grid = order, grid
        self.register_buffer("mask", None if mask is None else mask.to(torch.uint8), persistent=False)
        inverse = torch.from_numpy(np.linalg.inv(grid.affine)[self.axes])  # stays double: cast where it is used
        self.register_buffer("world_to_voxel", inverse, persistent=False)
        image = values.float().squeeze()
        self.register_buffer("image", image if order == 1 else _spline_coefficients(image), persistent=False)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        place, image = self._place(x), self.image.to(x.dtype)
        values = _linear(image, place) if self.order == 1 else _cubic(image, place)
        return values.reshape(*x.shape[:-1], 1)

    def inside(self, x: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        """Whether points lie in the image's box (half a voxel beyond the outermost centres), along its own axes."""
        place = self._place(x)
        size = torch.tensor(self.image.shape, device=x.device)
        return ((place >= -0.5 - _EDGE) & (place <= size - 0.5 + _EDGE)).all(dim=-1).reshape(x.shape[:-1])

    def shown(self, x: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        """Whether points lie in the image's box and in a voxel of its mask."""
        inside = self.inside(x)
        return inside if self.mask is None else inside & (nearest(self.mask, self.grid, x.detach()) > 0)

    def _place(self, x: Tensor) -> Float[Tensor, "m d"]:
        matrix = self.world_to_voxel.to(x.dtype)
        return x.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]


def nearest(
    labels: Num[Tensor, "n0 n1 n2"], grid: Grid, x: Float[Tensor, "*n 3"], *, outside: int = 0
) -> Num[Tensor, "*n"]:
    """The values of the voxels in which world points lie, in their own type: labels stay labels.

    Points outside the grid's box get `outside`; a slice covers all points above and below it, as `ImageField` does.
    """
    place = grid.to_voxel(x.double())
    index = place.round().long()
    flat, inside = torch.zeros_like(index[..., 0]), torch.ones_like(index[..., 0], dtype=torch.bool)
    for axis, n in enumerate(grid.shape):
        if n > 1:
            along = place[..., axis]
            inside = inside & (along >= -0.5 - _EDGE) & (along <= n - 0.5 + _EDGE)
        flat = flat * n + index[..., axis].clamp(0, n - 1)
    found = labels.to(x.device).reshape(-1)[flat]
    return torch.where(inside, found, torch.full_like(found, outside))


def _linear(image: Tensor, place: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    scale = torch.tensor([2 / (n - 1) for n in image.shape], dtype=place.dtype, device=place.device)
    query = (place * scale - 1).flip(-1)  # grid_sample wants -1..1 between the outermost centres, fastest axis first
    query = query.reshape(1, *[1] * (image.ndim - 1), -1, image.ndim)
    return functional.grid_sample(image[None, None], query, align_corners=True, padding_mode="border").reshape(-1)


def _cubic(coefficients: Tensor, place: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """sum_k c_k prod_axis B(place - k) over the 4^d nearest nodes, B the cubic B-spline."""
    flat = torch.zeros(len(place), 1, dtype=torch.long, device=place.device)
    weight = place.new_ones(len(place), 1)
    for axis, n in enumerate(coefficients.shape):
        along = place[:, axis].clamp(0, n - 1)
        low = along.detach().floor().clamp(max=n - 2)
        t = (along - low)[:, None]
        u = 1 - t
        part = torch.cat([u * u * u, 4 - 3 * t * t * (1 + u), 4 - 3 * u * u * (1 + t), t * t * t], dim=1) / 6
        node = (low.long()[:, None] + torch.arange(-1, 3, device=place.device)).abs()
        node = torch.where(node > n - 1, 2 * (n - 1) - node, node)
        flat = (flat[:, :, None] * n + node[:, None]).flatten(1)
        weight = (weight[:, :, None] * part[:, None]).flatten(1)
    return (coefficients.reshape(-1)[flat] * weight).sum(dim=1)


def _spline_coefficients(image: Tensor) -> Tensor:
    from scipy.ndimage import spline_filter

    filtered = spline_filter(image.detach().cpu().double().numpy(), order=3, mode="mirror")
    return torch.from_numpy(filtered).to(image)
