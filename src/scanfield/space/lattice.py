"""Where a registration step looks: random points in a mask, dense random patches, a strided lattice of the whole image.

Windowed similarities and finite differences need neighbours: patches and strided lattices are grids of their own, with
their own spacing, and `lattice_samples` turns them into points. All voxels of a grid have one volume, so that what is
uniform over voxels is uniform over millimetres. Nothing is jittered along an axis of one voxel: a slice stays a slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.samples import Samples

Steps = int | tuple[int, int, int]


class MaskedVoxels:
    """The voxels of a grid that lie in a mask, to draw from. Keeps four bytes a voxel of the mask, none without one.

    Args:
        mask: where to draw; everywhere without one.

    Raises:
        InputError: the mask has another shape than the grid, or is empty.
    """

    def __init__(self, grid: Grid, mask: Bool[Tensor, "n0 n1 n2"] | None = None) -> None:
        self.grid = grid
        self._index: Tensor | None = None
        if grid.size >= 2**31:
            raise InputError(f"a grid of {grid.size} voxels is too large to sample", fix="crop the image")
        if mask is not None:
            if tuple(mask.shape) != grid.shape:
                raise InputError(f"the mask has shape {tuple(mask.shape)}, its image {grid.shape}", where="mask")
            index = np.flatnonzero(mask.cpu().numpy()).astype(np.int32)
            if len(index) == 0:
                raise InputError("the mask is empty", where="mask", fix="give a mask with at least one voxel")
            self._index = torch.from_numpy(index)

    def __len__(self) -> int:
        return self.grid.size if self._index is None else len(self._index)

    def points(self, size: int, generator: torch.Generator, *, jitter: bool = True) -> Float[Tensor, "size 3"]:
        """World points, drawn with replacement.

        Args:
            jitter: anywhere in the drawn voxels, uniform in the mask's volume; otherwise at their centres.
        """
        place = self._voxels(size, generator).double()
        if jitter:
            place += self._shift(size, generator)
        return self.grid.to_world(place).float()

    def patches(self, count: int, size: Steps, generator: torch.Generator, *, jitter: bool = False) -> list[Grid]:
        """Dense patches at the grid's own spacing, each around a random voxel of the mask.

        They are moved inwards where they would leave the grid, and as small as the grid along its short axes.

        Args:
            size: voxels per axis.
            jitter: moves each patch by up to half a voxel, so that intensities are read between voxel centres, too.
        """
        wanted, shape = np.asarray(_per_axis(size)), np.asarray(self.grid.shape)
        extent = np.minimum(wanted, shape)
        centre = self._voxels(count, generator).numpy()
        first = np.clip(centre - extent // 2, 0, shape - extent).astype(np.float64)
        if jitter:
            first += self._shift(count, generator).numpy()
        return [self.grid.part(start, extent) for start in first]

    def _voxels(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, 3) random voxel indices."""
        flat = torch.randint(len(self), (size,), generator=generator)
        if self._index is not None:
            flat = self._index[flat].long()
        return self.grid.voxels(flat)

    def _shift(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, 3) uniform in -1/2..1/2 voxel, 0 along axes of one voxel."""
        thick = torch.tensor([n > 1 for n in self.grid.shape])
        return (torch.rand(size, 3, generator=generator, dtype=torch.float64) - 0.5) * thick


def strided_lattice(grid: Grid, steps: Steps, generator: torch.Generator | None = None) -> Grid:
    """Every `steps`-th voxel of a grid along each axis: a coarse lattice of the whole image.

    Args:
        steps: voxels from one lattice point to the next; at most the grid's own size counts.
        generator: for a random first voxel, so that in time every voxel is seen; the lattice then has one point more or
            less along an axis. Without one it lies in the middle.
    """
    shape = np.asarray(grid.shape)
    step = np.minimum(np.asarray(_per_axis(steps)), shape)
    if generator is None:
        first = (shape - 1) % step // 2
    else:
        first = np.array([int(torch.randint(int(n), (), generator=generator)) for n in step])
    return grid.part(first, (shape - 1 - first) // step + 1, step)


def lattice_samples(grids: Sequence[Grid], *, device: torch.device | str = "cpu") -> Samples:
    """The points of lattices of one shape as samples `x` (lattices, n0, n1, n2, 3) with `lattice` = (n0, n1, n2).

    Raises:
        ValueError: there is no lattice, or their shapes differ.
    """
    shapes = {grid.shape for grid in grids}
    if len(shapes) != 1:
        raise ValueError(f"lattices of one shape are needed, got {sorted(shapes)}")
    (shape,) = shapes
    x = torch.stack([grid.points(device=device).reshape(*shape, 3) for grid in grids])
    return Samples(x, lattice=shape)


def _per_axis(value: Steps) -> tuple[int, int, int]:
    a, b, c = (value, value, value) if isinstance(value, int) else value
    if min(a, b, c) < 1:
        raise ValueError(f"a positive number of voxels per axis is needed, got {value}")
    return a, b, c
