"""Points of a label map to learn from, balanced: inside the structures, along their boundaries, in the background.

Drawn as voxels, a small organ is hardly ever seen. Here it is: inside, every class is as likely as any other, whatever
its volume. The three kinds do not overlap. In the band along the boundaries all voxels are alike, so that a network
that is in doubt there does not learn to prefer one side: balance costs no bias where it would move the surface.

A point lies anywhere in its voxel, and its class is the voxel's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import distance_transform_edt, find_objects
from torch import Tensor

from scanfield.space.grid import Grid
from scanfield.space.samples import random_index

KEPT = 2**16  # voxels of every kind that are kept to draw from
_BYTES = 20  # of a kept voxel: three coordinates and its class


def kept_bytes(voxels: int) -> int:
    """About as much as `LabelPoints` keeps beside a label map of so many voxels."""
    return _BYTES * min(voxels, 3 * KEPT)


@dataclass(frozen=True)
class Shares:
    """How many points of every kind are drawn.

    Args:
        interior: in the classes other than 0 and beyond the band, each class as likely as any other.
        boundary: in the band along the boundaries between classes.
        background: in class 0, beyond the band.
    """

    interior: int
    boundary: int
    background: int

    def __post_init__(self) -> None:
        if min(self.interior, self.boundary, self.background) < 0 or self.total == 0:
            raise ValueError(f"at least one point is drawn, and no negative number of them, got {self}")

    @property
    def total(self) -> int:
        return self.interior + self.boundary + self.background


class LabelPoints:
    """A label map to draw points from.

    Args:
        classes: of every voxel, 0 is the background.
        grid: where the voxels are.
        band_mm: how far from a voxel with a neighbour of another class the band reaches; 0: these voxels alone.
    """

    def __init__(self, classes: UInt8[Tensor, "n0 n1 n2"], grid: Grid, *, band_mm: float) -> None:
        if tuple(classes.shape) != grid.shape:
            raise ValueError(f"classes of shape {tuple(classes.shape)} do not fit a grid of shape {grid.shape}")
        generator = torch.Generator().manual_seed(0)  # of no consequence: chooses which of very many voxels are kept
        self.grid, self.classes = grid, classes
        flat = classes.reshape(-1)
        band = torch.from_numpy(_band(classes.numpy(), grid.spacing_mm, band_mm)).reshape(-1)
        beyond = torch.where(band, 0, flat)
        present = [k for k in beyond.unique() if k > 0]
        each = max(KEPT // max(1, len(present)), KEPT // 16)
        inside = [_kept((beyond == k).nonzero()[:, 0], each, generator) for k in present]
        kinds = [
            torch.cat(inside) if inside else torch.empty(0, dtype=torch.long),
            _kept(band.nonzero()[:, 0], KEPT, generator),
            _kept(((flat == 0) & ~band).nonzero()[:, 0], KEPT, generator),
        ]
        self._voxels = [grid.voxels(kind).float() for kind in kinds]
        self._classes = [flat[kind].long() for kind in kinds]

    def draw(
        self, shares: Shares, generator: torch.Generator, *, within: Grid | None = None
    ) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"]]:
        """World points (mm) and their classes, kind after kind. Where a kind is missing, the others take its share.

        Args:
            within: points are drawn from voxels with their centre in this grid's box alone. A box without any that
                were kept gets points anywhere in it, of the classes that the map has there.
        """
        chosen = [self._inside(k, within) for k in range(3)]
        wanted = [shares.interior, shares.boundary, shares.background]
        there = [k for k in range(3) if len(chosen[k]) and wanted[k]]
        if not there:
            return self._anywhere(shares.total, within or self.grid, generator)
        missing = shares.total - sum(wanted[k] for k in there)
        voxels, classes = [], []
        for place, k in enumerate(there):
            count = wanted[k] + missing // len(there) + (place < missing % len(there))
            own = self._classes[k][chosen[k]]
            drawn = _every_class_alike(own, count, generator) if k == 0 else random_index(len(own), count, generator)
            voxels.append(self._voxels[k][chosen[k][drawn]])
            classes.append(own[drawn])
        voxel = torch.cat(voxels).double()
        jitter = torch.rand(voxel.shape, generator=generator, dtype=torch.double) - 0.5
        jitter[:, [n == 1 for n in self.grid.shape]] = 0  # points of a slice lie in its plane
        return self.grid.to_world(voxel + jitter).float(), torch.cat(classes)

    def centre(self, generator: torch.Generator) -> Float[Tensor, "3"] | None:
        """The centre (mm) of a random voxel inside the structures, or in the band where it covers them, if any."""
        classes = self._classes[0]
        if len(classes):
            voxel = self._voxels[0][_every_class_alike(classes, 1, generator)]
        else:
            there = self._voxels[1][self._classes[1] > 0]
            if not len(there):
                return None
            voxel = there[random_index(len(there), 1, generator)]
        return self.grid.to_world(voxel[0].double()).float()

    def _inside(self, kind: int, within: Grid | None) -> Int[Tensor, " m"]:
        """Which of the kept voxels of a kind have their centre in the box of a grid."""
        voxels = self._voxels[kind]
        if within is None:
            return torch.arange(len(voxels))
        thick = [axis for axis in range(3) if within.shape[axis] > 1]
        matrix = (np.linalg.inv(within.affine) @ self.grid.affine)[thick]
        half = np.asarray(within.shape)[thick] / 2
        matrix[:, 3] -= half - 0.5  # from the middle of the box
        scaled = torch.from_numpy(matrix / half[:, None]).float()
        place = torch.addmm(scaled[:, 3], voxels, scaled[:, :3].T)
        return (place.abs().amax(dim=1) <= 1).nonzero()[:, 0]

    def _anywhere(
        self, count: int, grid: Grid, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"]]:
        size = torch.tensor(grid.shape, dtype=torch.double)
        place = torch.rand(count, 3, generator=generator, dtype=torch.double) * size - 0.5
        place[:, size == 1] = 0
        x = grid.to_world(place)
        voxel = self.grid.to_voxel(x).round().long()
        last = torch.tensor(self.grid.shape) - 1
        a, b, c = torch.minimum(voxel.clamp(min=0), last).unbind(dim=1)
        return x.float(), self.classes[a, b, c].long()


def _every_class_alike(classes: Int[Tensor, " m"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Places in a sorted list of classes: a class first, then any place it has."""
    _, sizes = classes.unique_consecutive(return_counts=True)
    chosen = random_index(len(sizes), count, generator)
    within = (torch.rand(count, generator=generator, dtype=torch.double) * sizes[chosen]).long()
    return (sizes.cumsum(0) - sizes)[chosen] + within


def _kept(voxels: Int[Tensor, " m"], most: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    if len(voxels) <= most:
        return voxels
    return voxels[torch.randperm(len(voxels), generator=generator)[:most]]


def _band(classes: np.ndarray, spacing_mm: tuple[float, float, float], band_mm: float) -> np.ndarray:
    """Voxels whose centre is at most `band_mm` from that of a voxel with a face neighbour of another class."""
    edge = np.zeros(classes.shape, dtype=bool)
    for axis in range(3):
        ahead = np.moveaxis(edge, axis, 0)
        along = np.moveaxis(classes, axis, 0)
        differs = along[1:] != along[:-1]
        ahead[1:] |= differs
        ahead[:-1] |= differs
    (box,) = find_objects(edge.astype(np.uint8), max_label=1)
    if band_mm == 0 or box is None:
        return edge
    reach = [math.ceil(band_mm / spacing) for spacing in spacing_mm]
    near = tuple(slice(max(0, part.start - more), part.stop + more) for part, more in zip(box, reach, strict=True))
    edge[near] = distance_transform_edt(~edge[near], sampling=spacing_mm) <= band_mm + 1e-6
    return edge
