"""A piece of a fitted field on a finer grid: what a field can show and an array of voxels cannot."""

from __future__ import annotations

import numpy as np

from scanfield.data.nifti import nifti_bytes
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.view.sources import Source

MOST_PER_AXIS = 512  # of a slice
MOST_VOXELS = 128**3  # rendering takes seconds, not minutes, and a few tens of megabytes
LEAST_VOXELS = 32**3
AFFORDABLE_S = 3.0  # of rendering; a slow field gets fewer voxels
OVERVIEW_VOXELS = 80**3  # of everything there is, from which one zooms in


def box_grid(grid: Grid, centre_mm: np.ndarray, size_mm: float, per_axis: int, most_voxels: int = MOST_VOXELS) -> Grid:
    """The part of a grid's box within a cube around a point, on a grid of its own along the same axes.

    Args:
        centre_mm: (3,), world.
        size_mm: edge of the cube; what of it leaves the grid's box is cut off.
        per_axis: voxels along the longest edge; fewer where `most_voxels` would be exceeded. Axes of one voxel keep it.

    Raises:
        InputError: the cube is outside, or no positive finite size.
    """
    shape, spacing = np.asarray(grid.shape), np.asarray(grid.spacing_mm)
    if not (np.isfinite(centre_mm).all() and np.isfinite(size_mm) and size_mm > 0 and 1 <= per_axis <= MOST_PER_AXIS):
        raise InputError(
            "a detail needs a finite centre, a positive size in mm and at most "
            f"{MOST_PER_AXIS} voxels per axis; got {centre_mm.tolist()}, {size_mm} and {per_axis}"
        )
    index = np.linalg.inv(grid.affine) @ [*centre_mm, 1.0]
    half = size_mm / 2 / spacing
    flat = shape == 1
    low = np.where(flat, -0.5, np.clip(index[:3] - half, -0.5, shape - 0.5))
    high = np.where(flat, 0.5, np.clip(index[:3] + half, -0.5, shape - 0.5))
    extent = (high - low) * spacing
    if (extent <= 0).any():
        raise InputError("this box lies outside the image", where=f"centre {np.round(centre_mm, 1).tolist()} mm")
    counted = extent[~flat]
    room = (most_voxels / counted.prod()) ** (1 / len(counted)) if len(counted) else 1.0
    fineness = min(per_axis / counted.max(), room) if len(counted) else 1.0  # voxels per mm
    count = np.where(flat, 1, np.maximum(1, np.floor(extent * fineness + 1e-9))).astype(int)
    step = (high - low) / count
    affine = grid.affine @ np.block([[np.diag(step), (low + step / 2)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    return Grid((int(count[0]), int(count[1]), int(count[2])), affine)


def render_box(source: Source, name: str, centre_mm: np.ndarray, size_mm: float, per_axis: int) -> bytes:
    """A detail as a gzipped NIfTI file.

    Args:
        name: of what is rendered, see `Source`; the rest as for `box_grid`.

    Raises:
        InputError: as `box_grid`, or there is no such quantity.
    """
    if name not in source.quantities:
        raise InputError(f"'{name}' cannot be rendered here; known: {', '.join(source.quantities)}")
    affordable = int(np.clip(AFFORDABLE_S * source.per_second(name), LEAST_VOXELS, MOST_VOXELS))
    return _file(source, name, box_grid(source.grid, centre_mm, size_mm, per_axis, affordable))


def render_whole(source: Source, name: str) -> bytes:
    """The same of everything there is: as fine as the grid, or as `OVERVIEW_VOXELS` allow."""
    grid, longest = source.grid, max(source.grid.shape)
    beyond = 2 * max(n * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
    if grid.size > OVERVIEW_VOXELS:
        grid = box_grid(grid, grid.centre_mm, beyond, min(longest, MOST_PER_AXIS), OVERVIEW_VOXELS)
    return _file(source, name, grid)


def _file(source: Source, name: str, grid: Grid) -> bytes:
    values = np.asarray(source.quantities[name](grid))
    values = np.abs(values) if np.iscomplexobj(values) else values
    return nifti_bytes(values.astype(np.float32), grid)
