"""Exact line integrals through voxels of constant value: the simulator.

R. L. Siddon, Med. Phys. 12:252-255, 1985: y = sum_j l_j x_j with l_j the length in mm of the ray inside voxel j. The
simulator is deliberately another operator than the ones that reconstruct (`voxel` interpolates, `rays` samples a
field), so that no method is tested on its own model.

Instead of sorting all plane crossings, the ray is cut into slabs of one voxel along the axis in which it advances
fastest. Inside a slab it crosses at most one plane of every other axis, so the sorted crossings are at hand.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scanfield.errors import InputError
from scanfield.operators.voxel_rays import VoxelRays, first_row, stacked_rows, voxel_rays
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

SEGMENTS_PER_CHUNK = 2**21


def siddon_segments(
    rays: VoxelRays, shape: tuple[int, ...], *, forward_only: bool
) -> tuple[Int[Tensor, "m segments"], Float[Tensor, "m segments"]]:
    """Flat voxel index and length (mm) of every piece of every ray in a lattice of two or three axes.

    Args:
        rays: the rays in voxel indices.
        shape: voxels per axis, C order.
        forward_only: leave out what lies behind the ray's origin (a point source).
    """
    device = rays.origin.device
    order = torch.argsort(rays.direction.abs(), dim=1, descending=True, stable=True)
    o, d = rays.origin.gather(1, order), rays.direction.gather(1, order)
    size = torch.tensor(shape, device=device)[order]
    stride = torch.tensor([int(np.prod(shape[a + 1 :])) for a in range(len(shape))], device=device)[order]

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


def project_voxels(
    volume: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    geometry: ProjectionGeometry,
    *,
    subsamples: tuple[int, int] = (1, 1),
) -> Float[Tensor, "views rows columns"]:
    """Simulates a scan of a voxel volume.

    Args:
        volume: attenuation in 1/mm, constant within each voxel, zero outside the grid.
        grid: the volume's voxels.
        geometry: the scan.
        subsamples: (rows, columns): rays per detector pixel, spread evenly over its area. Their line integrals are
            averaged (a detector averages intensities, which differs where the integral changes strongly in a pixel).

    Returns:
        Dimensionless line integrals.
    """
    if tuple(volume.shape) != grid.shape:
        raise InputError(f"the volume has shape {tuple(volume.shape)}, its grid {grid.shape}")
    if len(subsamples) != 2 or min(subsamples) < 1:
        raise InputError(f"subsamples are two counts of at least 1 (rows, columns), got {subsamples}")
    row_shifts, column_shifts = ([(k + 0.5) / n - 0.5 for k in range(n)] for n in subsamples)
    stacks = [stacked_rows(geometry, grid, row_shift=shift) for shift in row_shifts]
    stack = stacks[0]
    if stack is None:
        shifts = [(r, c) for r in row_shifts for c in column_shifts]
        flat = volume.reshape(-1, 1)
        parts = [_integrate(flat, grid, geometry, torch.arange(geometry.count), shift, None) for shift in shifts]
        return torch.stack(parts).mean(dim=0).reshape(geometry.shape)
    weights = [s.nearest_weights(volume.shape[stack.axis]) for s in stacks if s is not None]
    rows = torch.stack(weights).mean(dim=0).to(volume)
    slices = volume.movedim(stack.axis, 2).reshape(-1, volume.shape[stack.axis]) @ rows.T
    index = first_row(geometry)
    parts = [_integrate(slices, grid, geometry, index, (0.0, shift), stack.axis) for shift in column_shifts]
    views, _, columns = geometry.shape
    return torch.stack(parts).mean(dim=0).reshape(views, columns, -1).transpose(1, 2).contiguous()


def _integrate(
    values: Float[Tensor, "n k"],
    grid: Grid,
    geometry: ProjectionGeometry,
    index: Int[Tensor, " m"],
    shift: tuple[float, float],
    stack_axis: int | None,
) -> Float[Tensor, "m k"]:
    """Line integrals of k images at once along the rays `index`, in chunks."""
    shape = tuple(n for a, n in enumerate(grid.shape) if a != stack_axis)
    size = max(1, SEGMENTS_PER_CHUNK // (max(shape) * len(shape)))
    parts = []
    for start in range(0, len(index), size):
        chunk = index[start : start + size].to(values.device)
        rays = voxel_rays(geometry, grid, chunk, row_shift=shift[0], column_shift=shift[1])
        if stack_axis is not None:
            rays = rays.without(stack_axis)
        voxel, length = siddon_segments(rays, shape, forward_only=geometry.beam != "parallel")
        parts.append(embedding_bag(voxel, values, per_sample_weights=length.to(values.dtype), mode="sum"))
    return torch.cat(parts)
