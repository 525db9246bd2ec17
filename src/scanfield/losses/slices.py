"""Terms of slice-to-volume reconstruction: what pixels of unequal noise say, and what a volume should look like.

All are means over pixels or slices: a weight does not depend on how many there are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Prior = Literal["edge", "tv", "l2"]

_TINY_MM2 = 1e-6  # under the root of a squared distance
_SHIFT_WEIGHT = 1e-3  # rad^2/mm^2: a translation of 32 mm counts as a turn by 1 rad


def misfit(
    predicted: Float[Tensor, " m"], measured: Float[Tensor, " m"], variance: Float[Tensor, " m"]
) -> Float[Tensor, ""]:
    """mean (p - y)^2 / (2 s^2), a Gaussian's negative log-likelihood without its normalisation."""
    return ((predicted - measured).square() / (2 * variance)).mean()


def uncertainty(variance: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """mean (log s^2) / 2, the rest of that likelihood: what it costs to call everything noise."""
    return variance.log().mean() / 2


def motion(turn: Float[Tensor, "n 3"], shift_mm: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """mean over slices of |w|^2 + 0.001 |t|^2, with rotation vectors w (rad) and translations t (mm)."""
    return turn.square().sum(-1).mean() + _SHIFT_WEIGHT * shift_mm.square().sum(-1).mean()


def squared_slopes(v: Float[Tensor, "m k"], x: Float[Tensor, "m k 3"]) -> Float[Tensor, "m h"]:
    """g^2 = (v_k - v_l)^2 / (|x_k - x_l|^2 + 1e-6 mm^2) between the k points of a pixel: the first with the last, the
    second with the last but one, and so on; per mm^2."""
    half = v.shape[1] // 2
    rise = v[:, :half] - v.flip(1)[:, :half]
    way = x[:, :half] - x.flip(1)[:, :half]
    return rise.square() / (way.square().sum(-1) + _TINY_MM2)


def slope_cost(kind: Prior, square: Float[Tensor, "*n"], contrast: float) -> Float[Tensor, ""]:
    """What squared slopes g^2 cost: 'edge' (`edge_preserving`), 'tv' (mean g) or 'l2' (mean g^2)."""
    if kind == "edge":
        return edge_preserving(square, contrast)
    return total_variation(square) if kind == "tv" else square.mean()


def edge_preserving(square: Float[Tensor, "*n"], contrast: float) -> Float[Tensor, ""]:
    """d (mean sqrt(1 + g^2 / d^2) - 1): quadratic for slopes below d = `contrast`, linear beyond (Charbonnier et al.,
    IEEE TIP 6:298-311, 1997)."""
    return contrast * ((1 + square / contrast**2).sqrt().mean() - 1)


def total_variation(square: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """mean g."""
    return (square + torch.finfo(square.dtype).eps).sqrt().mean()


def typical_intensity(pixels: Float[Tensor, " m"]) -> float:
    """The mean of the intensities between their 10th and 90th percentile, which sets the contrast of an edge; a
    hundredth where that is less."""
    values = pixels.cpu().numpy()
    low, high = np.percentile(values, [10, 90])
    return max(0.01, float(values[(values >= low) & (values <= high)].mean()))
