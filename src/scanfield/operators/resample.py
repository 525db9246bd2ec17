"""Images from one grid to another: trilinear interpolation, averaged over each target voxel when it is coarser."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.space.grid import Grid


def resample(values: Float[Tensor, "n0 n1 n2"], source: Grid, target: Grid) -> Float[Tensor, "m0 m1 m2"]:
    """`values` on `source`, resampled onto `target`; zero where the target leaves the source's box.

    Each target voxel averages enough points that none is farther from the next than a source voxel, so that coarsening
    by an integer factor is the mean over the block.
    """
    along = torch.tensor(target.affine[:3, :3])
    per_voxel = torch.linalg.solve(torch.tensor(source.affine[:3, :3]), along).norm(dim=0)
    counts = [max(1, math.ceil(float(step) - 0.05)) for step in per_voxel]
    centres = target.points().double()
    total = torch.zeros(target.size, dtype=torch.float64)
    for place in itertools.product(*(range(n) for n in counts)):
        shift = torch.tensor([(k + 0.5) / n - 0.5 for k, n in zip(place, counts, strict=True)], dtype=torch.float64)
        total += _interpolate(values, source.to_voxel(centres + along @ shift))
    return (total / math.prod(counts)).reshape(target.shape).float()


def covered(source: Grid, target: Grid) -> Bool[Tensor, "m0 m1 m2"]:
    """Which target voxels have their centre inside the box of `source`."""
    return _inside(source.to_voxel(target.points().double()), source.shape).reshape(target.shape)


def _inside(place: Float[Tensor, "n 3"], shape: tuple[int, int, int]) -> Bool[Tensor, " n"]:
    size = torch.tensor(shape, dtype=place.dtype)
    return ((place >= -0.5 - 1e-4) & (place <= size - 0.5 + 1e-4)).all(dim=-1)


def _interpolate(values: Tensor, place: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    inside = _inside(place, (values.shape[0], values.shape[1], values.shape[2]))
    limit = torch.tensor(values.shape) - 1
    place = torch.minimum(place.clamp(min=0), limit.double())
    low = torch.minimum(place.floor().long(), (limit - 1).clamp(min=0))
    part = place - low
    out = torch.zeros(len(place), dtype=torch.float64)
    for corner in itertools.product((0, 1), repeat=3):
        offset = torch.tensor(corner)
        i, j, k = torch.minimum(low + offset, limit).unbind(-1)
        weight = torch.where(offset.bool(), part, 1 - part).prod(dim=-1)
        out += weight * values[i, j, k].double()
    return out * inside
