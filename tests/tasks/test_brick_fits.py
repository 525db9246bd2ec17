"""What a brick needs: its measure, and its share of the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.codec.partition import concentration
from scanfield.errors import InputError
from scanfield.tasks.brick_fits import LEAST_BYTES, Survey, share, survey_of

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("shape", [(8, 9, 10), (7, 6, 5), (8, 8, 1)])
def test_the_survey_knows_the_concentration_from_any_level(shape):
    values = RNG.integers(-300, 500, shape).astype(np.int16)
    survey = survey_of(values)
    for low in (-1000.0, -300.0, 0.0):
        wanted = concentration(values.astype(np.float64) - low)
        assert survey.concentration(low) == pytest.approx(wanted, rel=1e-4)
    assert (survey.low, survey.high, survey.voxels) == (values.min(), values.max(), values.size)


def test_a_brick_of_one_value():
    survey = survey_of(np.full((4, 4, 4), 7, dtype=np.int16))
    assert survey.low == survey.high == 7 and survey.concentration(0.0) == 1.0


def test_other_voxels_have_another_checksum():
    values = RNG.integers(0, 99, (5, 5, 5)).astype(np.uint8)
    other = values.copy()
    other[2, 2, 2] += 1
    assert survey_of(values).checksum != survey_of(other).checksum


def test_voxels_without_a_value_are_refused():
    values = np.ones((3, 3, 3), dtype=np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        survey_of(values, where="a.nii: brick 3")


def survey(spread: float, voxels: int = 4096) -> Survey:
    return Survey(voxels, 0.0, 100.0 if spread else 0.0, 50.0 * voxels, 10.0, spread, 0)


def test_bytes_go_to_broad_spectra_and_none_to_bricks_of_one_value():
    bytes_of = share([survey(0.0), survey(1e6), survey(2e6), survey(1e6, 8192)], 100_000)
    assert bytes_of[0] == 0 and 99_990 <= sum(bytes_of) <= 100_000
    assert bytes_of[2] > bytes_of[1] > 0 and bytes_of[3] > bytes_of[1]


def test_shares_that_are_too_small_go_to_the_others():
    surveys = [survey(1e9), survey(1e9), survey(1e5)]
    bytes_of = share(surveys, 4 * LEAST_BYTES)
    assert bytes_of[2] == 0 and min(bytes_of[:2]) >= LEAST_BYTES and sum(bytes_of) <= 4 * LEAST_BYTES
    assert share(surveys, LEAST_BYTES // 2) == [0, 0, 0]
