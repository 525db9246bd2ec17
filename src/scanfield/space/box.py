"""A part of a lattice of voxels."""

from __future__ import annotations

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and first voxel beyond, by axis."""
