"""Pictures that the page draws itself, sent as numbers: it can window them and read their values.

One message holds several: the length of a JSON text (4 bytes, little-endian), the text, and the values of all pictures
one after the other as float32, row by row. The text has `pictures` (a list with shape, label, unit, ...) and whatever
else belongs to the message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

MOST_PER_SIDE = 1024  # pixels; more than a screen shows


@dataclass(frozen=True, eq=False)
class Raster:
    """One picture.

    Args:
        label: what stands above it.
        values: rows downwards, columns to the right.
        unit: of the values.
        axes: what rows and columns are: ('view', 'detector column').
        pixel: height and width of a pixel, in the same length.
        window: black and white, or the ends of the colour map.
        colours: 'gray', or 'difference', blue over white to red around the middle of the window.
        edges: letters at left, right, top and bottom, where the picture lies in a patient.
    """

    label: str
    values: Float[np.ndarray, "rows columns"]
    unit: str
    axes: tuple[str, str]
    pixel: tuple[float, float] = (1.0, 1.0)
    window: tuple[float, float] = (0.0, 1.0)
    colours: Literal["gray", "difference"] = "gray"
    edges: tuple[str, str, str, str] | None = None


def encode(pictures: Sequence[Raster], facts: dict[str, Any] | None = None) -> bytes:
    """The message of some pictures; larger ones than `MOST_PER_SIDE` are sent as means of blocks of pixels.

    Values that are not finite become 0.

    Args:
        facts: what else stands in the JSON text.
    """
    entries, parts = [], []
    for picture in pictures:
        values, block = _shrunk(np.nan_to_num(np.asarray(picture.values, np.float32), posinf=0.0, neginf=0.0))
        parts.append(np.ascontiguousarray(values, "<f4").tobytes())
        entries.append(
            {
                "label": picture.label,
                "shape": list(values.shape),
                "block": list(block),
                "unit": picture.unit,
                "axes": list(picture.axes),
                "pixel": [picture.pixel[0] * block[0], picture.pixel[1] * block[1]],
                "window": [float(v) if math.isfinite(v) else 0.0 for v in picture.window],
                "colours": picture.colours,
                "edges": None if picture.edges is None else list(picture.edges),
            }
        )
    text = json.dumps((facts or {}) | {"pictures": entries}).encode()
    text += b" " * (-len(text) % 4)  # the values stand where a Float32Array may begin
    return len(text).to_bytes(4, "little") + text + b"".join(parts)


def decode(message: bytes) -> tuple[dict[str, Any], list[Float[np.ndarray, "rows columns"]]]:
    """The JSON text and the values of a message.

    Raises:
        ValueError: it is cut off.
    """
    size = int.from_bytes(message[:4], "little")
    facts = json.loads(message[4 : 4 + size])
    values, start = [], 4 + size
    for entry in facts["pictures"]:
        rows, columns = entry["shape"]
        values.append(np.frombuffer(message, "<f4", rows * columns, start).reshape(rows, columns))
        start += 4 * rows * columns
    return facts, values


def symmetric(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """A window around zero that holds 99.5 % of the values."""
    limit = float(np.percentile(np.abs(values), 99.5)) if values.size else 0.0
    limit = limit or float(np.abs(values).max(initial=0.0)) or 1.0
    return -limit, limit


def _shrunk(values: Float[np.ndarray, "rows columns"]) -> tuple[Float[np.ndarray, "r c"], tuple[int, int]]:
    """Means of blocks so that no side is longer than `MOST_PER_SIDE`, and the blocks' size; a rest is left out."""
    a, b = (-(-n // MOST_PER_SIDE) for n in values.shape)
    if (a, b) == (1, 1):
        return values, (1, 1)
    rows, columns = values.shape[0] // a, values.shape[1] // b
    return values[: rows * a, : columns * b].reshape(rows, a, columns, b).mean(axis=(1, 3)), (a, b)
