"""Exact line integrals through voxels of constant value.

R. L. Siddon, Med. Phys. 12:252-255, 1985: y = sum_j l_j x_j with l_j the length in mm of the ray inside voxel j, which
fills [j - 1/2, j + 1/2] along each axis. Rays are those of `kernels.joseph`, in voxel indices.

The reference does not sort all plane crossings: it cuts the ray into slabs of one voxel along the axis in which it
advances fastest. Inside a slab the ray crosses at most one plane of every other axis, so the sorted crossings are at
hand. The C++ kernel follows the ray from one voxel border to the next.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scanfield.kernels.joseph import along_rays, by_kernel, check_rays

SEGMENTS_PER_CHUNK = 2**21


def integrate(
    x: Float[Tensor, "n k"],
    origin: Float[Tensor, "m d"],
    direction: Float[Tensor, "m d"],
    shape: tuple[int, ...],
    *,
    forward_only: bool,
) -> Float[Tensor, "m k"]:
    """Line integrals of k lattices at once. A simulator: without gradients.

    Args:
        x: values of the voxels, C order of `shape`.
        origin, direction: the rays, float64.
        shape: voxels per axis, two or three.
        forward_only: leave out what lies behind the ray's origin (a point source).

    Raises:
        ValueError: the rays or the values do not belong to this lattice.
    """
    check_rays(x, math.prod(shape), origin, direction, shape)
    x = x.detach()
    if by_kernel(x, shape):
        y = x.new_empty(len(origin), 1)
        along_rays("scanfield_siddon", x.contiguous(), y, origin, direction, shape, forward_only)
        return y
    size = max(1, SEGMENTS_PER_CHUNK // (max(shape) * len(shape)))
    parts = []
    for start in range(0, max(1, len(origin)), size):
        part = slice(start, start + size)
        voxel, length = segments(origin[part], direction[part], shape, forward_only=forward_only)
        parts.append(embedding_bag(voxel, x, per_sample_weights=length.to(x.dtype), mode="sum"))
    return torch.cat(parts)


def segments(
    origin: Float[Tensor, "m d"],
    direction: Float[Tensor, "m d"],
    shape: tuple[int, ...],
    *,
    forward_only: bool,
) -> tuple[Int[Tensor, "m segments"], Float[Tensor, "m segments"]]:
    """Flat voxel index and length (mm, float32) of every piece of every ray; unused pieces have no length."""
    device = origin.device
    order = torch.argsort(direction.abs(), dim=1, descending=True, stable=True)
    o, d = origin.gather(1, order), direction.gather(1, order)
    size = torch.tensor(shape, device=device)[order]
    stride = torch.tensor([math.prod(shape[a + 1 :]) for a in range(len(shape))], device=device)[order]

    slab = torch.arange(max(shape), device=device)
    ends = [(slab + side - o[:, :1]) / d[:, :1] for side in (-0.5, 0.5)]
    enter, leave = torch.minimum(*ends), torch.maximum(*ends)
    if forward_only:
        enter, leave = enter.clamp(min=0.0), leave.clamp(min=0.0)
    crossings = []
    for a in range(1, len(shape)):
        speed = d[:, a : a + 1]
        first, last = (torch.floor(o[:, a : a + 1] + t * speed + 0.5) for t in (enter, leave))
        time = (torch.maximum(first, last) - 0.5 - o[:, a : a + 1]) / torch.where(speed == 0, 1.0, speed)
        crossings.append(torch.where(first == last, leave, time).clamp(enter, leave))
    inner = torch.stack(crossings, dim=-1).sort(dim=-1).values
    t = torch.cat([enter[..., None], inner, leave[..., None]], dim=-1)
    middle = (t[..., 1:] + t[..., :-1]) / 2
    inside = (slab < size[:, :1])[..., None].expand(middle.shape)
    index = (slab * stride[:, :1])[..., None].expand(middle.shape)
    for a in range(1, len(shape)):
        voxel = torch.floor(o[:, a, None, None] + middle * d[:, a, None, None] + 0.5)
        inside = inside & (voxel >= 0) & (voxel < size[:, a, None, None])
        index = index + voxel.clamp(0, max(shape)).long() * stride[:, a, None, None]
    length = torch.where(inside, t.diff(dim=-1), 0.0)
    return torch.where(inside, index, 0).flatten(1), length.flatten(1).float()
