"""Images cut into patches of one size: all of them side by side, or random ones around what an image shows.

Along every axis of more than one voxel a patch has `size` voxels; the last one along an axis may reach beyond the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from scanfield.data.intensity import Window
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.samples import random_index


def patch_axes(shape: Sequence[int]) -> list[int]:
    """The axes that are cut: those of more than one voxel."""
    return [axis for axis, n in enumerate(shape) if n > 1]


def patch_counts(shape: Sequence[int], size: int) -> tuple[int, int, int]:
    """How many patches cover a grid, by axis."""
    a, b, c = (math.ceil(n / size) for n in shape)
    return a, b, c


def cut_patches(values: Shaped[Tensor, "n0 n1 n2"], size: int, *, fill: float = 0.0) -> Shaped[Tensor, "m v"]:
    """The voxels of all patches, first patch axis slowest; `fill` where a patch reaches beyond the grid."""
    counts = patch_counts(values.shape, size)
    sizes = [size if n > 1 else 1 for n in values.shape]
    padded = values.new_full([c * s for c, s in zip(counts, sizes, strict=True)], fill)
    padded[: values.shape[0], : values.shape[1], : values.shape[2]] = values
    split = padded.reshape(counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), math.prod(sizes))


def middle_block(shape: Sequence[int], size: int, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel and shape of a block of patches in the middle of an image: at most `most` of them, as square as the
    image allows, and one thick along the third axis of a volume. An image smaller than a patch is the block."""
    sides = [min(n, size) for n in shape]
    flat, left = patch_axes(shape)[:2], most
    for place, axis in enumerate(sorted(flat, key=lambda axis: shape[axis])):
        count = left if place + 1 == len(flat) else math.isqrt(left)
        count = max(1, min(shape[axis] // size, count))
        sides[axis], left = min(shape[axis], count * size), left // count
    return tuple((n - side) // 2 for n, side in zip(shape, sides, strict=True)), tuple(sides)


def patch_points(size: int, dims: int) -> Float[Tensor, "v d"]:
    """The coordinates of a patch's voxel centres, in the order of `cut_patches`."""
    line = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(*[line] * dims, indexing="ij"), dim=-1).reshape(-1, dims)


def window_offsets(shape: Sequence[int], size: int) -> Int[Tensor, " v"]:
    """What a patch's voxels add to the flat index of its first voxel, in the order of `cut_patches`."""
    strides = [shape[1] * shape[2], shape[2], 1]
    lines = [torch.arange(size if n > 1 else 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return (lines[0][:, None, None] + lines[1][:, None] + lines[2]).reshape(-1)


class FilledPatches:
    """An image to draw patches from, in units of its window; at least one patch large.

    Args:
        scan: an image of one channel.
        window: its intensities.
        size: voxels of a patch along every axis of more than one voxel.
        above: patches are drawn around voxels of higher values than this (in the scan's unit).
    """

    def __init__(self, scan: Scan, window: Window, size: int, *, above: float) -> None:
        self.shape = [max(n, size) if n > 1 else 1 for n in scan.grid.shape]
        values, weight, filled = torch.zeros(self.shape), torch.zeros(self.shape), torch.zeros(self.shape)
        place = tuple(slice(n) for n in scan.grid.shape)
        values[place], weight[place] = window.normalised(scan.values), window.seen.float()
        filled[place] = (window.seen & (scan.values > above)).float()
        self.size, self.values, self.weight = size, values.flatten(), weight.flatten()
        self.filled = filled.flatten().nonzero()[:, 0].int()
        self.offsets, self.dims = window_offsets(self.shape, size), len(patch_axes(self.shape))
        self.source, self.spacing_mm = scan.source, mean_spacing_mm(scan)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b v"]]:
        """Values of random patches, and 1 where a voxel counts."""
        voxel = self.filled[random_index(len(self.filled), count, generator)].long()
        first = torch.zeros(count, dtype=torch.long)
        for n, stride in zip(self.shape, (self.shape[1] * self.shape[2], self.shape[2], 1), strict=True):
            size = self.size if n > 1 else 1
            corner = voxel // stride % n - random_index(size, count, generator)
            first += stride * corner.clamp(0, n - size)
        index = first[:, None] + self.offsets
        return self.values[index], self.weight[index]


def draw_patches(
    images: Sequence[FilledPatches], count: int, generator: torch.Generator, *, most_images: int
) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b v"]]:
    """Random patches of random images: values, and 1 where a voxel counts.

    Args:
        most_images: from how many of the images they come, at most.

    Raises:
        InputError: one image is a slice, another a volume.
    """
    chosen = random_index(len(images), min(most_images, count), generator).tolist()
    share = [count // len(chosen) + (k < count % len(chosen)) for k in range(len(chosen))]
    parts = [images[k].draw(size, generator) for k, size in zip(chosen, share, strict=True)]
    for k in chosen:
        if images[k].dims != images[0].dims:
            raise InputError("a cohort holds slices or volumes, not both", where=images[k].source)
    target, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    return target, weight


def mean_spacing_mm(scan: Scan) -> float:
    """Mean voxel size along the axes of more than one voxel."""
    return float(np.mean([scan.grid.spacing_mm[axis] for axis in patch_axes(scan.grid.shape)]))
