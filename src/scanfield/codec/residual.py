"""Near-lossless: what stands beside a field in a file so that no voxel errs by more than a bound, on any machine.

Notation: v image, f field, E bound, s step, k and p whole numbers.

    k = round(v / s),  p = round(f / s),     stored: k - p,     decoded: s k,     |v - s k| <= E

s = 2 E + 1 for whole numbers; for others 2 E less what rounding to float32 adds at the end.

The decoder needs the encoder's p, bit for bit, although the last digits of floating-point arithmetic differ between
machines. So f is computed in double precision, and every voxel whose f / s lies within a margin of the place where
rounding changes is listed in the file with its p. The margin is 2^-14 of the largest difference between f in single and
in double precision: double arithmetic errs by 2^-29 of that difference, so a machine may err 2^15 times as much as it
should before a voxel that is not listed could come out different. A checksum over all p proves that none did; where one
did, decoding is refused.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from scanfield.codec.container import Section
from scanfield.codec.entropy import decode_integers, encode_integers
from scanfield.errors import InputError
from scanfield.kernels.backend import using
from scanfield.tasks.result import Reconstruction

RESIDUAL, RESIDUAL_KIND = "residual", 5
TIES, TIES_KIND = "ties", 6  # voxels near a place where rounding changes
_CLASSES = 8  # by how much the field changes around a voxel
_CHUNK = 2**13
_MARGIN, _LEAST_MARGIN = 2.0**-14, 2.0**-40  # of the difference between precisions; of the largest value


def step_of_bound(bound: float, *, whole: bool, low: float, high: float) -> float:
    """The step s with which no voxel of an image between `low` and `high` errs by more than `bound`.

    Raises:
        InputError: the bound is negative, is 0 for an image that has fractions, or is finer than float32.
    """
    if whole:
        if not bound >= 0:
            raise InputError(f"the bound on the error cannot be {bound:g}", fix="give a bound of at least 0")
        return float(2 * int(bound) + 1)
    if not bound > 0:
        fix = "give a bound above 0; lossless is for volumes of whole numbers"
        raise InputError(f"the bound on the error cannot be {bound:g} for numbers with fractions", fix=fix)
    largest = max(abs(low), abs(high))
    rounding = float(np.spacing(np.float32(largest))) / 2
    if bound <= 2 * rounding:
        raise InputError(
            f"the bound {bound:g} is finer than the numbers themselves: float32 steps by {2 * rounding:.3g} at "
            f"{largest:g}",
            fix=f"give a bound above {2 * rounding:.3g}",
        )
    return 2 * (bound - rounding) * (1 - 2.0**-40)  # v / s and s k round, too


def encode_residual(
    result: Reconstruction, values: Shaped[np.ndarray, "n0 n1 n2"], bound: float, facts: dict[str, Any]
) -> tuple[list[Section], dict[str, Any]]:
    """The sections that bound the error of a field, and the facts that their decoder needs.

    Args:
        result: the field, with the weights of the file.
        values: the image on the field's own grid.
        facts: `type`, `low` and `high` of the image.

    Raises:
        InputError: as for `step_of_bound`.
    """
    whole = facts["type"] != "float32"
    step = step_of_bound(bound, whole=whole, low=float(facts["low"]), high=float(facts["high"]))
    exact = _values(result, torch.float64)
    apart = float(np.abs(_values(result, torch.float32) - exact).max())
    margin = max(_MARGIN * apart, _LEAST_MARGIN * float(np.abs(exact).max())) / step
    predicted = _rounded(exact, step)
    listed = np.flatnonzero(np.abs(np.abs(exact / step - predicted) - 0.5) <= margin)
    residual = _rounded(values.astype(np.float64), step) - predicted
    sections = [
        Section(RESIDUAL, RESIDUAL_KIND, encode_integers([residual[part] for part in _classes(predicted)])),
    ]
    if len(listed):
        pair = [np.diff(listed, prepend=0), predicted.reshape(-1)[listed]]
        sections.append(Section(TIES, TIES_KIND, encode_integers(pair)))
    more: dict[str, Any] = {"bound": bound, "step": step, "crc": _crc(predicted)}
    return sections, more | ({"ties": len(listed)} if len(listed) else {})


def decode_residual(
    result: Reconstruction, payloads: Mapping[str, bytes], facts: Mapping[str, Any], *, where: str
) -> Float[np.ndarray, "n0 n1 n2"]:
    """s k: the image within its bound, in double precision. The field is computed on the device it is on.

    Args:
        payloads: of the sections, by name.

    Raises:
        InputError: the residual is missing or damaged, or this machine's arithmetic does not give the field that it
            was made for.
    """
    size = result.spec.grid.size
    try:
        step, crc, ties = float(facts["step"]), int(facts["crc"]), int(facts.get("ties", 0))
    except (KeyError, TypeError, ValueError):
        step = 0.0
    if not (step > 0 and 0 <= ties <= size and RESIDUAL in payloads and (ties == 0 or TIES in payloads)):
        raise InputError("the file is damaged: its residual is missing or not described", where=where)
    predicted = _rounded(_values(result, torch.float64), step)
    if ties:
        gaps, right = decode_integers(payloads[TIES], [ties, ties], where=where)
        place = np.cumsum(gaps)
        if place.min() < 0 or place.max() >= size:
            raise InputError("the file is damaged: it lists voxels that do not exist", where=where)
        predicted.reshape(-1)[place] = right
    if _crc(predicted) != crc:
        raise InputError(
            "this machine computes another field than the one the residual was made for",
            where=where,
            fix="decode with --spacing-mm or --like for the field alone, or on another machine",
        )
    classes = _classes(predicted)
    parts = decode_integers(payloads[RESIDUAL], [int(c.sum()) for c in classes], where=where)
    for chosen, residual in zip(classes, parts, strict=True):
        predicted[chosen] += residual
    return predicted * step


def _values(result: Reconstruction, precision: torch.dtype) -> Float[np.ndarray, "n0 n1 n2"]:
    """The field at its own voxels, computed in this precision; as doubles."""
    grid = result.spec.grid
    field = copy.deepcopy(result.field).double() if precision == torch.float64 else result.field
    device = next((tensor.device for tensor in field.state_dict().values()), torch.device("cpu"))
    values = np.empty(grid.size)  # filled in place: small tensors kept between large ones would hold the heap open
    with torch.no_grad(), using("reference"):  # the kernels know single precision only
        for start in range(0, grid.size, _CHUNK):
            flat = torch.arange(start, min(start + _CHUNK, grid.size), device=device)
            x = grid.to_world(grid.voxels(flat).double()).to(precision)
            values[start : start + len(flat)] = field(x)[:, 0].double().cpu().numpy()
    return values.reshape(grid.shape)


def _rounded(values: Float[np.ndarray, "n0 n1 n2"], step: float) -> Int[np.ndarray, "n0 n1 n2"]:
    return np.rint(values / step).astype(np.int64)


def _classes(predicted: Int[np.ndarray, "n0 n1 n2"]) -> list[np.ndarray]:
    """Voxels by the number of bits of |p - neighbour|, summed over the axes: errors are larger where it changes."""
    activity = np.zeros(predicted.shape, dtype=np.int64)
    for axis in range(3):
        activity += np.abs(np.diff(predicted, axis=axis, prepend=np.take(predicted, [0], axis=axis)))
    bits = np.zeros(predicted.shape, dtype=np.int64)
    for k in range(_CLASSES - 1):
        bits += activity >= 1 << k
    return [bits == k for k in range(_CLASSES)]


def _crc(predicted: np.ndarray) -> int:
    return zlib.crc32(predicted.astype("<i8").tobytes())
