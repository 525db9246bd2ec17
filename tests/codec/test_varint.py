"""Integers as bytes."""

from __future__ import annotations

import pytest

from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

NUMBERS = [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**31, 2**62 - 1]


def test_numbers_come_back():
    out = Writer()
    for n in NUMBERS:
        out.unsigned(n)
        out.signed(n // 2)
        out.signed(-(n // 2))
    source = Reader(bytes(out.content))
    assert [source.unsigned() if k % 3 == 0 else source.signed() for k in range(3 * len(NUMBERS))] == [
        m for n in NUMBERS for m in (n, n // 2, -(n // 2))
    ]
    assert source.left == 0


def test_small_numbers_take_one_byte():
    out = Writer()
    out.unsigned(127)
    out.signed(-64)
    assert bytes(out.content) == bytes([127, 127])


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff" * 20])
def test_numbers_without_an_end_are_refused(content):
    with pytest.raises(InputError, match=r"truncated|no end"):
        Reader(content).unsigned()


def test_blocks_beyond_the_end_are_refused():
    source = Reader(b"abc", "file.sfz")
    assert source.block(2) == b"ab"
    with pytest.raises(InputError, match=r"truncated.*\n.*file\.sfz"):
        source.block(2)


@pytest.mark.parametrize("value", [-1, 2**63])
def test_numbers_out_of_range_are_programming_errors(value):
    with pytest.raises(ValueError, match="63-bit"):
        Writer().unsigned(value)
