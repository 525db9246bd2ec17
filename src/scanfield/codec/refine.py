"""Latents of many signals as integers, chosen by rate and distortion instead of by rounding.

Notation: q_ij integer j of signal i, D_i its error as decoded from q_i, R_j(q) the bits of a value in column j's table.

    q_ij <- argmin over q_ij - 1, q_ij, q_ij + 1 of  D_i(q) + price R_j(q_ij),     column after column

Every step lowers the sum of D + price R for the tables it was made with. At fine steps D_j = s_j step_j^2 / 12 per
signal for a slope s_j = mean (d f / d z_j)^2, so the price at which the steps themselves are worth their bits is
-dD / dR = ln 2 / 6 s_j step_j^2 (Sullivan & Wiegand, IEEE Signal Process. Mag. 15(6):74-90, 1998, for video).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.codec.quantise import RUNGS_PER_BIT, dequantise, step_of
from scanfield.codec.weights import COARSEST_BITS, FINEST_BITS, coarsened, quantised, rungs_for_bits, size_of
from scanfield.errors import InputError

SPARE = 1.12  # so many times the bytes are dealt to the steps: refining saves some
ATTEMPTS, DEARER = 3, 1.6  # the price of a bit changes by this factor until the bytes are kept and used
FULL = 0.97  # so much of the bytes is used well
DROPPED = 6  # rungs beyond those of two bits: nothing but zeros is left of a column


def price_of(slope: float, step: float) -> float:
    """What a bit is worth where a step was chosen well: in units of the error, for one signal."""
    return math.log(2) / 6 * slope * step**2


def refined(
    codes: Int[Tensor, "m k"],
    steps: Float[Tensor, " k"],
    errors: Callable[[Float[Tensor, "m k"]], Float[Tensor, " m"]],
    price: float,
    *,
    sweeps: int = 1,
) -> Int[Tensor, "m k"]:
    """Codes that cost less: `errors` plus `price` times their bits.

    Args:
        codes: the integers of m signals.
        steps: of every column; a value is its integer times the step.
        errors: the error of every signal decoded from such values; signals do not depend on each other.
        price: of a bit.
        sweeps: how often all columns are visited; each asks twice a column for the errors of all signals.
    """
    if price < 0:
        raise ValueError(f"the price of a bit cannot be negative, got {price}")
    best, now = codes.clone(), errors(codes * steps)
    for _ in range(sweeps):
        for column in range(codes.shape[1]):
            for move in (-1, 1):
                bits, low = _bits(best[:, column])
                trial = best.clone()
                trial[:, column] += move
                then = errors(trial * steps)
                more = bits[trial[:, column] - low] - bits[best[:, column] - low]
                better = then + price * more < now
                best[better, column] = trial[better, column]
                now = torch.where(better, then, now)
    return best


def _bits(column: Int[Tensor, " m"]) -> tuple[Float[Tensor, " r"], int]:
    """Bits of the values low, low + 1, .. up to one beyond those that occur, by how often they do."""
    low = int(column.min()) - 1
    counts = torch.bincount(column - low, minlength=int(column.max()) - low + 2)
    return math.log2(len(column)) - (counts.float() + 0.5).log2(), low


def coded_latents(
    latents: dict[str, Tensor],
    slopes: Callable[[], Sequence[float]],
    errors: Callable[[Float[Tensor, "m k"]], Float[Tensor, " m"]],
    *,
    most: int | None,
    bits: int,
    sweeps: int,
) -> dict[str, Tensor]:
    """The latents as a file will hold them, with a step and a table for each column (`codec.weights`).

    Args:
        latents: (m,) numbers by name, a column each.
        slopes: s_j of every column; asked for where they are needed.
        errors: the error of every signal, from the values of all columns.
        most: bytes of the sections; None: each column's largest number has `bits` bits.
        sweeps: of `refined`; 0 rounds.

    Raises:
        InputError: not even zeros fit.
    """
    slope = slopes() if sweeps or most is not None else []
    if most is None:
        rungs = rungs_for_bits(latents, bits)
    else:
        rungs = _rungs_of_one_price(latents, slope, round(most * (SPARE if sweeps else 1)))
    if sweeps == 0:
        return quantised(latents, rungs)
    values = torch.stack(list(latents.values()), dim=-1)
    steps = torch.tensor([step_of(rungs[name]) for name in latents], device=values.device)
    rounded = (values / steps).round().long()
    prices = [price_of(s, float(step)) for s, step in zip(slope, steps, strict=True)]
    price = float(np.median([p for k, p in enumerate(prices) if bool(rounded[:, k].any())] or [0.0]))
    best: dict[str, Tensor] | None = None
    too_large = False
    for _ in range(ATTEMPTS):
        columns = refined(rounded, steps, errors, price, sweeps=sweeps).cpu().numpy().T
        found = {n: dequantise(q, rungs[n], (len(q),)) for n, q in zip(latents, columns, strict=True)}
        size = 0 if most is None else size_of(found, rungs)
        if most is None or size <= most:
            best = found
            if most is None or too_large or size > FULL * most:
                break
            price /= DEARER
        else:
            too_large = True
            if best is not None:
                break
            price *= DEARER
    if best is not None:
        return best
    assert most is not None
    return quantised(found, coarsened(found, rungs, most))


def _rungs_of_one_price(latents: dict[str, Tensor], slopes: Sequence[float], most: int) -> dict[str, int]:
    """Steps with s_j step_j^2 the same for all columns, as fine as the bytes allow: a bit is worth the same everywhere.

    Raises:
        InputError: not even steps that leave nothing but zeros fit.
    """
    finest, coarsest = (rungs_for_bits(latents, b) for b in (FINEST_BITS, COARSEST_BITS))
    own = {n: round(-RUNGS_PER_BIT / 2 * math.log2(max(s, 1e-12))) for n, s in zip(latents, slopes, strict=True)}

    def at(level: int) -> dict[str, int]:
        return {n: min(max(level + own[n], finest[n]), coarsest[n] + DROPPED) for n in latents}

    fits = max(coarsest[n] + DROPPED - own[n] for n in latents)
    if size_of(latents, at(fits)) > most:
        raise InputError(
            f"{len(latents)} x {len(next(iter(latents.values())))} numbers do not fit {most} bytes",
            fix=f"allow at least {size_of(latents, at(fits))} bytes for them, or use a model of fewer numbers",
        )
    too_fine = min(finest[n] - own[n] for n in latents) - 1
    while fits - too_fine > 1:
        middle = (fits + too_fine) // 2
        fits, too_fine = (middle, too_fine) if size_of(latents, at(middle)) <= most else (fits, middle)
    return at(fits)
