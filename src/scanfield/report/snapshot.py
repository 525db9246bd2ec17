"""Small grey pictures of slices, for notebooks and lists."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, Num
from PIL import Image


def usual_window(values: Num[np.ndarray, "*n"]) -> tuple[float, float]:
    """The 1st to 99.5th percentile."""
    low, high = (float(p) for p in np.percentile(values, [1, 99.5]))
    return low, high


def snapshot(cut: Float[np.ndarray, "rows columns"], window: tuple[float, float], size: tuple[int, int] | int) -> bytes:
    """A slice as PNG, black to white over a window.

    Args:
        size: width and height in pixels; or the most either may have, with square pixels as they are.
    """
    low, high = window
    grey = ((cut - low) / max(high - low, 1e-12)).clip(0, 1)
    picture = Image.fromarray((255 * grey).astype(np.uint8))
    if isinstance(size, int):
        picture.thumbnail((size, size))
    else:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()
