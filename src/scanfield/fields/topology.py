"""What hangs together in a mask: parts, holes through it and hollows in it, and filters that keep some parts.

Voxels belong together if they share a face, an edge or a corner; what lies outside belongs together by faces, as it
must (with corners for both, two diagonals would cross). A slice is a plane, where pixels share edges or corners.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from scipy import ndimage
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid

_TOUCHING = np.ones((3, 3, 3), dtype=bool)
_BY_FACES = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Topology:
    """The numbers of Betti of a mask and their alternating sum.

    Args:
        components: parts that do not touch each other.
        tunnels: independent holes through them, as a ring has one; in a slice, holes.
        cavities: hollows without a way out; none in a slice.
        euler_number: components - tunnels + cavities.
    """

    components: int
    tunnels: int
    cavities: int
    euler_number: int


def topology(mask: Bool[Tensor, "n0 n1 n2"]) -> Topology:
    """Parts, tunnels and cavities of a mask; what lies beyond the image is outside it.

    The Euler number is counted: corners - edges + faces - voxels of the mask as a union of closed cubes, each element
    once (a slice is a union of closed squares). Tunnels follow from the other three.
    """
    inside = mask.detach().cpu().numpy().astype(bool)
    flat = [n == 1 for n in inside.shape]
    padded = np.pad(inside, [(0, 0) if thin else (1, 1) for thin in flat])
    components = int(ndimage.label(inside, _TOUCHING)[1])
    outside = np.pad(inside, 1)
    cavities = int(ndimage.label(~outside, _BY_FACES)[1]) - 1 if not any(flat) else 0
    euler = _euler_number(padded, [axis for axis in range(3) if not flat[axis]])
    return Topology(components, components + cavities - euler, cavities, euler)


def largest_component(mask: Bool[Tensor, "n0 n1 n2"]) -> Bool[Tensor, "n0 n1 n2"]:
    """The part with the most voxels; an empty mask stays empty."""
    labels, count = _labels(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    return torch.from_numpy(labels == 1 + int(sizes.argmax())).to(mask.device)


def without_small_components(
    mask: Bool[Tensor, "n0 n1 n2"], grid: Grid, *, least_mm3: float
) -> Bool[Tensor, "n0 n1 n2"]:
    """The parts of at least `least_mm3`.

    Raises:
        InputError: the mask does not fit the grid.
    """
    if tuple(mask.shape) != grid.shape:
        raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit a grid of shape {grid.shape}")
    labels, _ = _labels(mask)
    keep = np.bincount(labels.ravel()) * grid.voxel_volume_mm3 >= least_mm3 * (1 - 1e-9)
    keep[0] = False
    return torch.from_numpy(keep[labels]).to(mask.device)


def _labels(mask: Tensor) -> tuple[np.ndarray, int]:
    labels, count = ndimage.label(mask.detach().cpu().numpy().astype(bool), _TOUCHING)
    return labels, int(count)


def _euler_number(padded: np.ndarray, axes: list[int]) -> int:
    """Alternating sum over the elements of a union of closed cubes (or squares, where two axes are given).

    An element across some axes lies in the mask if one of the cubes around it does: the OR over these axes' two sides.
    """
    total = 0
    for count in range(len(axes) + 1):
        for across in itertools.combinations(axes, count):
            around = padded
            for axis in across:
                low = [slice(None)] * 3
                high = [slice(None)] * 3
                low[axis], high[axis] = slice(None, -1), slice(1, None)
                around = around[tuple(low)] | around[tuple(high)]
            dimension = len(axes) - count
            total += (-1) ** dimension * int(around.sum())
    return total
