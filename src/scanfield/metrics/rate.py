"""How much smaller a file is, and how two codecs compare over a range of sizes.

bits per voxel        8 B / n,  B all bytes of the file
compression ratio     bytes of the original's voxels / B
BD-PSNR, BD-rate      mean vertical and horizontal distance between two rate-distortion curves (Bjontegaard,
                      VCEG-M33, 2001): PSNR over log10 rate, here as monotone cubics (PCHIP) in place of one cubic
                      polynomial, over the range that both curves cover
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scanfield.errors import InputError


@dataclass(frozen=True)
class RatePoint:
    """One file: its bytes, and the PSNR (dB) of what it decodes to."""

    size: int
    psnr_db: float


def bits_per_voxel(size: int, voxels: int) -> float:
    """8 B / n.

    Raises:
        InputError: a number is not positive.
    """
    if size <= 0 or voxels <= 0:
        raise InputError(f"a rate needs positive numbers of bytes and voxels, got {size} and {voxels}")
    return 8 * size / voxels


def bd_psnr_db(curve: Sequence[RatePoint], reference: Sequence[RatePoint]) -> float:
    """Mean gain of `curve` over `reference` in dB at equal bytes; positive: better.

    Raises:
        InputError: a curve has fewer than two points, the same size twice, or they have no sizes in common.
    """
    ours, theirs = ([(np.log10(p.size), p.psnr_db) for p in c] for c in (curve, reference))
    return _mean_distance(ours, theirs, "sizes")


def bd_rate_percent(curve: Sequence[RatePoint], reference: Sequence[RatePoint]) -> float:
    """Mean change of bytes in percent at equal PSNR; negative: smaller files.

    Raises:
        InputError: as for `bd_psnr_db`; or more bytes do not give a higher PSNR.
    """
    ours, theirs = (
        [(p.psnr_db, np.log10(p.size)) for p in sorted(c, key=lambda p: p.size)] for c in (curve, reference)
    )
    for line in (ours, theirs):
        if any(b[0] <= a[0] for a, b in itertools.pairwise(line)):
            raise InputError("a rate at equal PSNR needs a PSNR that grows with the bytes")
    return float(100 * (10 ** _mean_distance(ours, theirs, "PSNRs") - 1))


def _mean_distance(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], what: str) -> float:
    from scipy.interpolate import PchipInterpolator

    for line in (ours, theirs):
        if not np.isfinite(line).all():
            raise InputError("a lossless file has no place on a rate-distortion curve: its PSNR is infinite")
        if len({x for x, _ in line}) < max(2, len(line)):
            raise InputError(f"a rate-distortion curve needs two or more points of different {what}")
    low = max(min(x for x, _ in line) for line in (ours, theirs))
    high = min(max(x for x, _ in line) for line in (ours, theirs))
    if high <= low:
        raise InputError(f"the two curves have no {what} in common")
    areas = [float(PchipInterpolator(*np.array(sorted(line)).T).integrate(low, high)) for line in (ours, theirs)]
    return (areas[0] - areas[1]) / (high - low)
