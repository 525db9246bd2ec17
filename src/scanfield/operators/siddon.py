"""Exact line integrals through voxels of constant value: the simulator.

The sum is Siddon's (`kernels.siddon`): y = sum_j l_j x_j with l_j the length in mm of the ray inside voxel j. The
simulator is deliberately another operator than the ones that reconstruct (`voxel` interpolates, `rays` samples a
field), so that no method is tested on its own model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.errors import InputError
from scanfield.kernels import siddon
from scanfield.operators.voxel_rays import first_row, stacked_rows, voxel_rays
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

RAYS_PER_CHUNK = 2**20


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
    parts = []
    for start in range(0, len(index), RAYS_PER_CHUNK):
        chunk = index[start : start + RAYS_PER_CHUNK].to(values.device)
        rays = voxel_rays(geometry, grid, chunk, row_shift=shift[0], column_shift=shift[1])
        if stack_axis is not None:
            rays = rays.without(stack_axis)
        forward_only = geometry.beam != "parallel"
        parts.append(siddon.integrate(values, rays.origin, rays.direction, shape, forward_only=forward_only))
    return torch.cat(parts)
