"""Rates, and distances between rate-distortion curves that are known exactly."""

from __future__ import annotations

import pytest

from scanfield.errors import InputError
from scanfield.metrics.rate import RatePoint, bd_psnr_db, bd_rate_percent, bits_per_voxel

LINE = [RatePoint(1000 * 2**k, 30 + 3 * k) for k in range(5)]


def test_bits_per_voxel():
    assert bits_per_voxel(1000, 64_000) == 0.125
    for wrong in ((0, 10), (10, 0)):
        with pytest.raises(InputError, match="positive"):
            bits_per_voxel(*wrong)


def test_a_curve_above_another_by_a_constant():
    above = [RatePoint(p.size, p.psnr_db + 1.5) for p in LINE]
    assert bd_psnr_db(above, LINE) == pytest.approx(1.5)
    assert bd_psnr_db(LINE, above) == pytest.approx(-1.5)
    assert bd_rate_percent(above, LINE) == pytest.approx(100 * (2**-0.5 - 1))  # 3 dB a doubling


def test_half_the_bytes():
    smaller = [RatePoint(p.size // 2, p.psnr_db) for p in LINE]
    assert bd_rate_percent(smaller, LINE) == pytest.approx(-50)
    assert bd_psnr_db(smaller, LINE) == pytest.approx(3)


def test_only_the_common_range_counts_and_order_does_not():
    wide = [*LINE, RatePoint(64_000, 90.0)]
    assert bd_psnr_db(wide[::-1], LINE) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("curve", "match"),
    [
        (LINE[:1], "two or more"),
        ([LINE[0], LINE[0]], "two or more"),
        ([RatePoint(1000, 30.0), RatePoint(2000, float("inf"))], "lossless"),
        ([RatePoint(10**8, 80.0), RatePoint(10**9, 90.0)], "in common"),
    ],
)
def test_curves_that_cannot_be_compared(curve, match):
    with pytest.raises(InputError, match=match):
        bd_psnr_db(curve, LINE)


def test_rates_need_rising_curves():
    with pytest.raises(InputError, match="grows"):
        bd_rate_percent([RatePoint(1000, 30.0), RatePoint(2000, 29.0)], LINE)
