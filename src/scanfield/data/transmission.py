"""From what a detector counts to line integrals: p = -log(I / I0), with I0 the counts in air."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from scanfield.errors import InputError


def line_integrals(
    counts: Num[np.ndarray, "views rows columns"], air: float | Num[np.ndarray, "rows columns"], *, source: str = ""
) -> Float[np.ndarray, "views rows columns"]:
    """Line integrals (dimensionless, float32) of a transmission measurement, dark current removed.

    Args:
        counts: what every pixel counted, in any linear unit.
        air: the same without an object, one number or one per pixel.
        source: the file, for messages.

    Raises:
        InputError: air is not positive; a pixel counted nothing or less, is not a number, or is saturated (an integer
            at the largest value of its type).
    """
    blank = np.asarray(air, dtype=np.float64)
    if not np.isfinite(blank).all() or blank.min() <= 0:
        raise InputError("the counts in air must be positive numbers", where=source)
    what = {
        "are NaN or infinite": ~np.isfinite(counts),
        "have no or negative transmission (dead, or no photon arrived)": counts <= 0,
    }
    if counts.dtype.kind in "iu":
        what["are saturated"] = counts == np.iinfo(counts.dtype).max
    for problem, where in what.items():
        if where.any():
            view, row, column = (int(i[0]) for i in np.nonzero(where))
            raise InputError(
                f"{int(where.sum())} of {counts.size} pixels {problem}, the first at view {view}, row {row}, "
                f"column {column}",
                where=source,
                fix="interpolate bad pixels from their neighbours before the logarithm",
            )
    return (np.log(blank) - np.log(counts.astype(np.float64))).astype(np.float32)
