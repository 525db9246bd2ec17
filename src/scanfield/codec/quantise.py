"""Uniform quantisation: w ~ step * q with an integer q, and a ladder of steps that one byte names.

Step r of the ladder is 2^(r/4), r = -128 .. 127; a finer step by four rungs costs one bit a number more.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from scanfield.errors import InputError

RUNGS_PER_BIT = 4
LOWEST_RUNG, HIGHEST_RUNG = -128, 127
_ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(k/4): written out, so equal everywhere


def step_of(rung: int) -> float:
    """The step 2^(rung / 4), the same double on every machine."""
    if not LOWEST_RUNG <= rung <= HIGHEST_RUNG:
        raise ValueError(f"the ladder has rungs {LOWEST_RUNG}..{HIGHEST_RUNG}, got {rung}")
    return math.ldexp(_ROOTS[rung % RUNGS_PER_BIT], rung // RUNGS_PER_BIT)


def rung_for_bits(largest: float, bits: int) -> int:
    """The finest rung whose integers for numbers up to `largest` in magnitude fit `bits` bits, sign included.

    Raises:
        InputError: `bits` is not in 2..16.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"a number can be quantised to 2..16 bits, got {bits}")
    most = 2 ** (bits - 1) - 1
    for rung in range(LOWEST_RUNG, HIGHEST_RUNG + 1):
        if round(largest / step_of(rung)) <= most:
            return rung
    raise InputError(f"numbers of magnitude {largest:.3g} are too large to be quantised")


def quantise(values: Float[Tensor, "*n"], rung: int) -> Integer[np.ndarray, " _"]:
    """q = round(w / step), halves to even, flattened.

    Raises:
        InputError: a value is NaN or infinite, or too large for the step.
    """
    numbers = values.detach().cpu().double().numpy().reshape(-1)
    if not np.isfinite(numbers).all():
        raise InputError("weights that are NaN or infinite cannot be stored")
    whole = np.rint(numbers / step_of(rung))
    if len(whole) and np.abs(whole).max() >= 2**40:
        raise InputError(f"the step 2^({rung}/4) is too fine for numbers up to {np.abs(numbers).max():.3g}")
    return whole.astype(np.int64)


def dequantise(integers: Integer[np.ndarray, " _"], rung: int, shape: tuple[int, ...]) -> Float[Tensor, "*n"]:
    """step * q in float32: one product in double, rounded once, so that every machine gets the same bits."""
    return torch.from_numpy((integers.astype(np.float64) * step_of(rung)).astype(np.float32)).reshape(shape)


def straight_through(values: Float[Tensor, "*n"], rung: int) -> Float[Tensor, "*n"]:
    """The quantised values with the gradient of the values themselves (Bengio et al., arXiv 1308.3432, 2013)."""
    step = step_of(rung)
    return values + ((values / step).round() * step - values).detach()
