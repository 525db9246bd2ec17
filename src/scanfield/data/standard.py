"""Images as an encoder wants them: axes in one order, voxels of one size, intensities in one window.

A convolution knows neither millimetres nor which way is left. So that the same anatomy looks the same to it however it
was stored, the voxel axes are put into the order and direction nearest to right, anterior, superior (nothing is
interpolated), voxels are brought to a given size, and two intensities become -1 and 1. The grid follows: everything
stays where it is in the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from scanfield.data.intensity import Window
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

_SAME = 0.01  # voxels that differ by less than this part of their size count as equal: nothing is resampled


@dataclass(frozen=True)
class Intensities:
    """Which intensities become -1 and 1."""

    window: tuple[float, ...] = ()
    """two values that mean the same in every image, such as -150 and 250 HU; none: two percentiles of each image"""
    low_percentile: float = 0.5
    """of an image's values: -1 where there is no window"""
    high_percentile: float = 99.5
    """of an image's values: 1 where there is no window"""

    def ends(self, scan: Scan) -> tuple[float, float]:
        """The values of an image that become -1 and 1.

        Raises:
            InputError: the window is not two ascending values, or the percentiles are not two from 0 to 100; several
                channels, or a constant image.
        """
        if self.window and (len(self.window) != 2 or not self.window[0] < self.window[1]):
            raise InputError(f"a window is two values, the lower one first, got {self.window}")
        if not 0 <= self.low_percentile <= self.high_percentile <= 100:
            two = f"{self.low_percentile:g} and {self.high_percentile:g}"
            raise InputError(f"percentiles lie between 0 and 100, the lower one first, got {two}")
        own = Window(scan, self.low_percentile, self.high_percentile)
        if self.window:
            return self.window[0], self.window[1]
        return own.offset - own.scale, own.offset + own.scale


@dataclass(frozen=True, eq=False)
class StandardImage:
    """An image for an encoder.

    Args:
        values: -1 and 1 at the ends of its window.
        grid: where its voxels are, in the world of the image it was made from.
        window: the values of the image that became -1 and 1.
    """

    values: Float[Tensor, "n0 n1 n2"]
    grid: Grid
    window: tuple[float, float]


def standard_image(scan: Scan, intensities: Intensities, spacing_mm: Sequence[float] | None = None) -> StandardImage:
    """An image in the order R, A, S of its axes, windowed, and at another spacing where one is given.

    Args:
        spacing_mm: of the result, along its three axes; an axis of one voxel keeps its own.

    Raises:
        InputError: several channels, a constant image, or an impossible window.
    """
    low, high = intensities.ends(scan)
    values, grid = in_ras_order((scan.values.float() - (low + high) / 2) / ((high - low) / 2), scan.grid)
    if spacing_mm is not None:
        values, grid = at_spacing(values, grid, spacing_mm)
    return StandardImage(values, grid, (low, high))


def in_ras_order(values: Shaped[Tensor, "n0 n1 n2"], grid: Grid) -> tuple[Shaped[Tensor, "m0 m1 m2"], Grid]:
    """The same voxels at the same places, with the voxel axes in the order and direction nearest to R, A, S."""
    orientation = nib.orientations.io_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    flips = [k for k, axis in enumerate(order) if orientation[axis, 1] < 0]
    return values.permute(*(int(axis) for axis in order)).flip(flips).contiguous(), ras_grid(grid)


def ras_grid(grid: Grid) -> Grid:
    """The grid of `in_ras_order`."""
    orientation = nib.orientations.io_orientation(grid.affine)
    a, b, c = (grid.shape[axis] for axis in np.argsort(orientation[:, 0]))
    return Grid((a, b, c), grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape))


def at_spacing(
    values: Float[Tensor, "n0 n1 n2"], grid: Grid, spacing_mm: Sequence[float]
) -> tuple[Float[Tensor, "m0 m1 m2"], Grid]:
    """An image on `spaced_grid`: linear between voxels where that is finer; where it is coarser, a triangle as wide as
    the new voxels weighs the old ones, so that fine detail is averaged and not aliased."""
    target = spaced_grid(grid, spacing_mm)
    for axis in range(3):
        step = target.spacing_mm[axis] / grid.spacing_mm[axis]
        if abs(step - 1) > 1e-9:
            weights = _triangles(grid.shape[axis], target.shape[axis], step)
            values = torch.movedim(torch.movedim(values, axis, -1) @ weights.to(values).T, -1, axis)
    return values.contiguous(), target


def spaced_grid(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """`grid.resampled(spacing_mm)`, but for axes whose spacing agrees within a hundredth: they stay as they are."""
    old = np.asarray(grid.spacing_mm)
    a, b, c = np.where(np.abs(np.asarray(spacing_mm) / old - 1) < _SAME, old, spacing_mm)
    return grid.resampled((float(a), float(b), float(c)))


def _triangles(old: int, new: int, step: float) -> Float[Tensor, "new old"]:
    """Weights of the old voxels in every new one: the new ones are `step` old voxels apart and share their centre."""
    place = (torch.arange(new).double() - (new - 1) / 2) * step + (old - 1) / 2
    place = place.clamp(0, old - 1)  # beyond the outermost centres the image is constant
    width = max(1.0, step)
    weights = (1 - (place[:, None] - torch.arange(old).double()).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)
