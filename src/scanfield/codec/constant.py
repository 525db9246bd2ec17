"""A brick of one value: what is left of a brick that is one, or whose share of the bytes is too small for a field.

    constant    the value c: the brick's own, or its mean
    residual    only with a bound: round(v / s) - round(c / s), s and the bound as in `codec.residual`

The quotient c / s is one division, which every machine rounds alike, so nothing depends on arithmetic here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from scanfield.codec.container import Container, Section
from scanfield.codec.entropy import decode_integers, encode_integers
from scanfield.codec.residual import RESIDUAL, RESIDUAL_KIND
from scanfield.errors import InputError


def encode_constant(
    values: Shaped[np.ndarray, "n0 n1 n2"], *, step: float | None
) -> tuple[dict[str, Any], list[Section]]:
    """Header and sections of a brick.

    Args:
        step: of the residual; None without a bound.
    """
    low, high = values.min(), values.max()
    mean = low if low == high else values.mean(dtype=np.float64)
    value = float(mean) if values.dtype.kind == "f" else round(float(mean))
    header = {"constant": value}
    if low == high or step is None:
        return header, []
    residual = np.rint(values.astype(np.float64) / step).astype(np.int64) - round(value / step)
    return header, [Section(RESIDUAL, RESIDUAL_KIND, encode_integers([residual.reshape(-1)]))]


def decode_constant(
    content: Container, shape: tuple[int, int, int], facts: Mapping[str, Any], *, where: str = ""
) -> Shaped[np.ndarray, "n0 n1 n2"]:
    """The voxels of a brick, in the type that `facts` names.

    Args:
        facts: `type`, `low` and `high` of the volume; `step` if there is a bound.

    Raises:
        InputError: the brick is damaged.
    """
    try:
        value, kind = float(content.header["constant"]), np.dtype(str(facts["type"]))
        low, high, step = float(facts["low"]), float(facts["high"]), float(facts.get("step", 1.0))
    except (TypeError, ValueError, KeyError):
        value, step = math.nan, 0.0
    if not (math.isfinite(value) and step > 0):
        raise InputError("the file is damaged: a brick has no value", where=where)
    if not content.sections:
        out = np.empty(shape, dtype=kind)  # the fewest passes: bricks of one value are most of many a volume
        out[...] = min(max(value, low), high)
        return out
    (residual,) = decode_integers(content.section(RESIDUAL).payload, [math.prod(shape)], where=where)
    values = np.clip((round(value / step) + residual.reshape(shape)) * step, low, high)
    return (values if kind.kind == "f" else np.rint(values)).astype(kind)
