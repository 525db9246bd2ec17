"""Tables: exact, cheap, and near the distribution they describe."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.codec.frequencies import MOST_VALUES, Frequencies, _cost, coded_bits, describe
from scanfield.codec.rans import TOTAL
from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

RNG = np.random.default_rng(2)
SAMPLES = {
    "laplace": np.rint(RNG.laplace(3, 4, 3000)).astype(int),
    "gauss": np.rint(RNG.normal(-50, 30, 3000)).astype(int),
    "list": RNG.choice([-9, 0, 1, 40], 3000, p=[0.5, 0.05, 0.05, 0.4]),
}


def written(found: Frequencies) -> bytes:
    out = Writer()
    found.write(out)
    return bytes(out.content)


@pytest.mark.parametrize("family", SAMPLES)
def test_the_right_family_near_the_entropy(family):
    values = SAMPLES[family]
    found = describe(values)
    assert found.family == family
    _, counts = np.unique(values, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum()
    assert entropy < coded_bits(values, found) < 1.04 * entropy + 8 * len(written(found))


@pytest.mark.parametrize("family", SAMPLES)
def test_descriptions_come_back(family):
    found = describe(SAMPLES[family])
    assert Frequencies.read(Reader(written(found))) == found
    assert found.table().frequencies.sum() == TOTAL
    assert len(written(found)) < 8 or family == "list"


@pytest.mark.parametrize("values", [[5], [5, 5, 5], [-3, 4], [0, MOST_VALUES - 1]])
def test_few_values(values):
    found = describe(np.array(values))
    frequencies = found.table().frequencies
    assert all(frequencies[v - found.low] > 0 for v in values)
    assert Frequencies.read(Reader(written(found))) == found


def test_too_wide_or_empty_is_a_programming_error():
    with pytest.raises(ValueError, match="do not fit"):
        describe(np.array([0, MOST_VALUES]))
    with pytest.raises(ValueError, match="needs values"):
        describe(np.array([], dtype=int))


@pytest.mark.parametrize("family", ["laplace", "gauss"])
@pytest.mark.parametrize("code", [0, 7, 30, 63])
def test_every_parameter_gives_a_table_that_falls_from_its_mode(family, code):
    frequencies = Frequencies(family, -300, 601, 0, code).table().frequencies
    assert frequencies.min() >= 1 and frequencies.sum() == TOTAL
    assert (np.diff(frequencies[300:]) <= 0).all() and (frequencies[299::-1] == frequencies[301:]).all()


def test_integer_logarithms_are_logarithms():
    f = np.arange(1, TOTAL + 1)
    assert np.abs(_cost(f) / 65536 - (16 - np.log2(f))).max() < 1e-4


@pytest.mark.parametrize(
    "content",
    [
        bytes([255, 0, 0]),  # a family that does not exist
        bytes([0, 0, 255, 255, 255, 255, 15]),  # a range of billions
        bytes([0, 0, 4, 9]),  # a mode outside the range
        bytes([128, 0, 1, 5, 5]),  # a list that does not sum to 4096
        bytes([0]),  # cut off
    ],
)
def test_damaged_descriptions_are_refused(content):
    with pytest.raises(InputError, match=r"damaged|truncated"):
        Frequencies.read(Reader(content))
