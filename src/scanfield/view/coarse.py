"""A first look at a large image: every so-manieth voxel, on a grid of its own, until the whole image is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scanfield.data.nifti import nifti_bytes, nifti_layout, read_nifti
from scanfield.space.grid import Grid

LARGE = 128**3  # voxels from which a first look is worth it
MOST = 96  # voxels of the first look along every axis


def coarse_image(path: Path) -> bytes:
    """A gzipped NIfTI file with at most `MOST` voxels along every axis, of a series its first frame.

    Values are those of the voxels in the middle of each block: labels stay labels.

    Raises:
        InputError: the file cannot be read.
    """
    scan = read_nifti(path, channels=True)
    steps = [-(-n // MOST) for n in scan.grid.shape]
    grid: Grid = scan.grid.coarsened(steps)
    volume = scan.values.reshape(*scan.grid.shape, -1)[..., 0].numpy()
    kept = volume[tuple(slice(s // 2, s // 2 + s * (n - 1) + 1, s) for s, n in zip(steps, grid.shape, strict=True))]
    layout = nifti_layout(path)
    labels = not layout.scaled and layout.dtype in (np.uint8, np.int16, np.int32)
    return nifti_bytes(np.ascontiguousarray(kept, layout.dtype if labels else np.float32), grid)
