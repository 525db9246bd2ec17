"""The rivals of a stored dose at the same number of bytes: error-bounded codecs, and a coarser grid.

Each is run as it comes, and with a mask of where there is dose at all, which takes its share of the bytes: the dose
steps to zero at the body's surface, and what codes that step with waves or coarse samples wastes its bytes there. With
the mask, the dose is continued smoothly beyond the surface before it is coded, and cut off again after decoding.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt, uniform_filter
from torch import Tensor

from scanfield.baselines.codecs import CODECS, SIDE_BYTES, code
from scanfield.codec.mask import encode_mask
from scanfield.errors import InputError
from scanfield.operators.resample import resample
from scanfield.space.grid import Grid

COARSER = "coarser grid"
LABELS = {"sperr": CODECS["sperr"].label, "sz3": CODECS["sz3"].label, "downsampled": COARSER}
LABELS |= {f"{name}-mask": f"{label} + mask" for name, label in LABELS.items()}
_STEPS = 7  # of the search for the spacing
_LARGEST = 65535
_SMOOTHINGS = 10


def stored(
    name: str, dose: Float[Tensor, "n0 n1 n2"], grid: Grid, max_bytes: int
) -> tuple[Float[Tensor, "n0 n1 n2"], int]:
    """A dose after a rival that may use `max_bytes`, not below zero, and the bytes it used.

    Args:
        name: one of `LABELS`.
        dose: Gy, on `grid`.

    Raises:
        InputError: the rival cannot make a file so small.
        MissingExtra: imagecodecs is not installed.
    """
    if name.endswith("-mask"):
        mask = dose > 0
        side = len(encode_mask(mask))
        if side >= max_bytes:
            raise InputError(f"{max_bytes} bytes do not even hold the mask, which takes {side}")
        values, size = stored(name.removesuffix("-mask"), continued(dose, grid), grid, max_bytes - side)
        return values * mask, size + side
    if name == "downsampled":
        return downsampled(dose, grid, max_bytes)
    found = code(name, dose.numpy(), max_bytes)
    return torch.from_numpy(found.values.astype(np.float32)).clamp(min=0), found.size


def continued(dose: Float[Tensor, "n0 n1 n2"], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The dose with every voxel of zero filled: by its nearest neighbour with dose, then smoothed among themselves."""
    empty = (dose == 0).numpy()
    if not empty.any():
        return dose
    nearest = distance_transform_edt(empty, sampling=grid.spacing_mm, return_distances=False, return_indices=True)
    values = dose.numpy()[tuple(nearest)].astype(np.float64)
    for _ in range(_SMOOTHINGS):
        values[empty] = uniform_filter(values, 3, mode="nearest")[empty]
    return torch.from_numpy(values.astype(np.float32))


def downsampled(dose: Float[Tensor, "n0 n1 n2"], grid: Grid, max_bytes: int) -> tuple[Float[Tensor, "n0 n1 n2"], int]:
    """The dose on the finest coarser grid whose samples, 16 bits each and deflated, fit `max_bytes`; read trilinearly.

    Raises:
        InputError: not even a few samples fit.
    """
    # Logarithms of the factor: deflated samples are between a tenth and all of their 16 bits.
    coarse = float(np.log(max(2 * grid.size / max_bytes, 1.0))) / 3 + 0.05
    fine = coarse - float(np.log(10)) / 3
    best: tuple[np.ndarray, Grid, int] | None = None
    scale = float(dose.max()) / _LARGEST
    for k in range(_STEPS):
        middle = coarse if k == 0 else (fine + coarse) / 2
        factor = float(np.exp(middle))
        a, b, c = (spacing * factor for spacing in grid.spacing_mm)
        target = grid.resampled((a, b, c))
        samples = np.rint(resample(dose, grid, target).numpy() / scale).astype("<u2")
        size = len(zlib.compress(samples.tobytes(), 9)) + SIDE_BYTES
        if size <= max_bytes:
            coarse = middle
            if best is None or target.size > best[1].size:
                best = samples, target, size
        elif k == 0:
            raise InputError(f"a coarser grid of {max_bytes} bytes holds no dose")
        else:
            fine = middle
    assert best is not None
    samples, target, size = best
    values = torch.from_numpy(samples.astype(np.float32) * scale)
    return resample(values, target, grid), size
