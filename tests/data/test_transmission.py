from __future__ import annotations

import numpy as np
import pytest

from scanfield.data.transmission import line_integrals
from scanfield.errors import InputError

COUNTS = np.full((2, 3, 4), 500, dtype=np.uint16)


def test_the_logarithm_of_air_over_counts():
    np.testing.assert_allclose(line_integrals(COUNTS, 1000.0), np.log(2), rtol=1e-6)
    air = np.full((3, 4), 1000.0)
    air[1, 2] = 2000.0
    found = line_integrals(COUNTS.astype(np.float32), air)
    assert found.dtype == np.float32 and found[0, 1, 2] == pytest.approx(np.log(4))
    assert found[1, 0, 0] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (0, np.uint16, "1 of 24 pixels have no or negative transmission"),
        (-3, np.int16, "no or negative transmission.*view 1, row 2, column 3"),
        (65535, np.uint16, "1 of 24 pixels are saturated"),
        (np.nan, np.float32, "are NaN or infinite"),
        (np.inf, np.float64, "are NaN or infinite"),
    ],
)
def test_pixels_without_a_line_integral_are_named(value, dtype, words):
    counts = COUNTS.astype(dtype)
    counts[1, 2, 3] = value
    with pytest.raises(InputError, match=words):
        line_integrals(counts, 1000.0)


@pytest.mark.parametrize("air", [0.0, -1.0, np.nan, np.inf])
def test_air_is_a_positive_number(air):
    with pytest.raises(InputError, match="counts in air"):
        line_integrals(COUNTS, air)
