"""The field of view: the voxels a scan can be scored on."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from scanfield.operators.pixels import detector_pixels
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

PIXELS_PER_CHUNK = 2**22


def field_of_view(geometry: ProjectionGeometry, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """Voxels whose centre projects onto the detector in every view."""
    size = max(1, PIXELS_PER_CHUNK // geometry.views)
    parts = [
        detector_pixels(geometry, grid.points(start, start + size).double()).inside(geometry).all(dim=0)
        for start in range(0, grid.size, size)
    ]
    return torch.cat(parts).reshape(grid.shape)
