"""Missing voxels by interpolation along the grid's lines: the classical rival of a field fitted to the others.

Every missing voxel is interpolated along each of its grid lines from the known voxels of that line; the estimates are
averaged with weights 1 / spacing^2, so that coarse axes count less.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid


def fill_missing(
    values: Float[Tensor, "n0 n1 n2"], known: Bool[Tensor, "n0 n1 n2"], grid: Grid, *, kind: Literal["linear", "cubic"]
) -> Float[Tensor, "n0 n1 n2"]:
    """The image with its unknown voxels interpolated: linearly, or by natural-ended cubic splines.

    Beyond the outermost known voxels of a line the nearest one is repeated. A voxel without a known one on any of its
    lines becomes the mean of the known voxels.

    Raises:
        InputError: no voxel is known.
    """
    if not bool(known.any()):
        raise InputError("there is no known voxel to interpolate from")
    image, have = values.double().numpy(), known.numpy()
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for axis, spacing in enumerate(grid.spacing_mm):
        if image.shape[axis] < 2:
            continue
        lines, flags = np.moveaxis(image, axis, -1), np.moveaxis(have, axis, -1)
        sums, weights = np.moveaxis(total, axis, -1), np.moveaxis(weight, axis, -1)
        for place in zip(*np.nonzero(~flags.all(axis=-1) & flags.any(axis=-1)), strict=True):
            at, missing = np.flatnonzero(flags[place]), np.flatnonzero(~flags[place])
            sums[place][missing] += _interpolate(lines[place][at], at, missing, kind) / spacing**2
            weights[place][missing] += 1 / spacing**2
    filled = np.where(weight > 0, total / np.maximum(weight, 1e-30), image[have].mean())
    return torch.from_numpy(np.where(have, image, filled)).float()


def _interpolate(values: np.ndarray, at: np.ndarray, wanted: np.ndarray, kind: str) -> np.ndarray:
    wanted = np.clip(wanted, at[0], at[-1])
    if kind == "linear" or len(at) < 3:
        return np.interp(wanted, at, values)
    return np.asarray(CubicSpline(at, values, bc_type="natural")(wanted))
