"""Standard codecs: at most the bytes asked for, the right volume back, and honest failures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from scanfield.baselines import codecs
from scanfield.errors import InputError, MissingExtra

RNG = np.random.default_rng(0)


def volume(shape=(40, 36, 12)):
    i, j, k = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return -400 + 900 * np.sin(5 * i) * np.cos(4 * j + 2 * k) + 5 * RNG.normal(size=shape)


@pytest.mark.parametrize("shape", [(40, 36, 12), (36, 40, 1), (5, 7, 11)])
def test_mosaics_come_apart_again(shape):
    values = RNG.random(shape)
    assert np.array_equal(codecs.unmosaic(codecs.mosaic(values), shape), values)
    rows, columns = codecs.mosaic(volume()).shape
    assert 0.4 < rows / columns < 2.5


@pytest.mark.parametrize("name", codecs.CODECS)
def test_files_are_small_enough_and_show_the_volume(name):
    pytest.importorskip("imagecodecs")
    values = volume()
    errors = []
    for size in (2500, 9000):
        coded = codecs.code(name, values, size)
        assert 0.6 * size < coded.size <= size
        assert coded.values.shape == values.shape
        errors.append(np.sqrt(np.mean((coded.values - values) ** 2)))
    assert errors[1] < errors[0] < 0.2 * values.std()


@pytest.mark.parametrize("name", codecs.CODECS)
def test_slices(name):
    pytest.importorskip("imagecodecs")
    values = volume((64, 48, 1))
    coded = codecs.code(name, values, 2000)
    assert coded.size <= 2000 and np.abs(coded.values - values).max() < 0.5 * np.ptp(values)


def test_what_no_codec_can_do_is_said():
    pytest.importorskip("imagecodecs")
    with pytest.raises(InputError, match="ZFP cannot make a file of 20 bytes"):
        codecs.code("zfp", volume(), 20)
    with pytest.raises(InputError, match="constant"):
        codecs.code("sperr", np.ones((8, 8, 8)), 1000)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingExtra, match=r"scanfield\[codec\]"):
        codecs.code("sperr", volume(), 1000)
