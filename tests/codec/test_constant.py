"""Bricks of one value, with and without a bound."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.codec.constant import decode_constant, encode_constant
from scanfield.codec.container import Container, Section
from scanfield.codec.residual import RESIDUAL, RESIDUAL_KIND, step_of_bound
from scanfield.errors import InputError

SHAPE = (5, 4, 3)


@pytest.mark.parametrize(("kind", "bound"), [("int16", 0.0), ("int16", 2.0), ("uint8", 1.0), ("float32", 0.25)])
def test_the_bound_holds(kind, bound):
    values = (50 + 20 * np.random.default_rng(1).normal(size=SHAPE)).astype(kind)
    low, high = values.min().item(), values.max().item()
    step = step_of_bound(bound, whole=kind != "float32", low=low, high=high)
    header, sections = encode_constant(values, step=step)
    facts = {"type": kind, "low": low, "high": high, "step": step}
    back = decode_constant(Container(header, tuple(sections)), SHAPE, facts)
    assert back.dtype == values.dtype
    assert np.abs(back.astype(np.float64) - values.astype(np.float64)).max() <= bound


def test_without_a_bound_it_is_the_mean_and_one_value_is_exact():
    values = np.arange(60, dtype=np.int16).reshape(SHAPE)
    header, sections = encode_constant(values, step=None)
    assert header == {"constant": 30} and sections == []
    same = np.full(SHAPE, np.float32(0.1))
    for step in (None, 0.02):
        header, sections = encode_constant(same, step=step)
        assert sections == []
        back = decode_constant(Container(header, ()), SHAPE, {"type": "float32", "low": 0.0, "high": 1.0})
        assert np.array_equal(back, same)


@pytest.mark.parametrize("header", [{"constant": None}, {"constant": "x"}, {"constant": float("inf")}])
def test_damaged(header):
    with pytest.raises(InputError, match="no value"):
        decode_constant(Container(header, ()), SHAPE, {"type": "int16", "low": 0, "high": 9})


def test_a_damaged_residual():
    content = Container({"constant": 3}, (Section(RESIDUAL, RESIDUAL_KIND, b"\x01\x02"),))
    with pytest.raises(InputError):
        decode_constant(content, SHAPE, {"type": "int16", "low": 0, "high": 9, "step": 1.0})
