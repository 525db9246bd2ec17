"""The coder: what goes in comes out, at the cost that the table says, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.codec.rans import TOTAL, Table, decode, encode, lanes
from scanfield.errors import InputError

RNG = np.random.default_rng(5)


def skewed(size: int, low: int = 0) -> Table:
    counts = np.ones(size, dtype=np.int64)
    counts[size // 3] += TOTAL - size
    return Table(low, counts)


def even(size: int) -> Table:
    return Table(-size // 2, np.full(size, TOTAL // size))


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 8192, 8193, 50_001])
def test_symbols_come_back(count):
    table = even(64)
    symbols = RNG.integers(-32, 32, count)
    payload = encode(symbols, [table])
    assert (decode(payload, count, [table]) == symbols).all()


def test_costs_what_the_table_says():
    """log2(M / f) bits a symbol, and 8 bytes a lane."""
    counts = np.array([1, 3, 12, 240]) * (TOTAL // 256)
    symbols = RNG.choice(4, 40_000, p=counts / TOTAL)
    bits = -np.log2(counts[symbols] / TOTAL).sum()
    size = len(encode(symbols, [Table(0, counts)])) - 8 * lanes(len(symbols))
    assert -4 * lanes(len(symbols)) <= size - bits / 8 <= 4 * lanes(len(symbols)) + 1e-3 * bits / 8


def test_every_symbol_has_its_own_table():
    tables = [skewed(5), skewed(300, low=-100), even(16), Table(7, np.array([TOTAL]))]
    context = RNG.integers(0, 4, 9000)
    symbols = np.array([RNG.integers(t.low, t.low + len(t.frequencies)) for t in (tables[c] for c in context)])
    assert (decode(encode(symbols, tables, context), 9000, tables, context) == symbols).all()


def test_certain_symbols_cost_nothing():
    assert len(encode(np.full(4000, 7), [Table(7, np.array([TOTAL]))])) == 8


def test_gaps_in_a_table_are_skipped():
    table = Table(0, np.array([0, TOTAL // 2, 0, 0, TOTAL // 2, 0]))
    symbols = RNG.choice([1, 4], 777)
    assert (decode(encode(symbols, [table]), 777, [table]) == symbols).all()
    with pytest.raises(ValueError, match="frequency 0"):
        encode(np.array([1, 2]), [table])


def test_the_bytes_are_these_on_every_machine():
    symbols = np.arange(40) ** 2 % 16 - 8
    assert encode(symbols, [even(16)]).hex() == EXPECTED


EXPECTED = "14000080000000001410949014109490141094901410949000109490"


@pytest.mark.parametrize("cut", [0, 4, 7, 8, -4, -1])
def test_truncated_streams_are_refused(cut):
    symbols = RNG.integers(-32, 32, 500)
    payload = encode(symbols, [even(64)])
    with pytest.raises(InputError, match="damaged"):
        decode(payload[:cut], 500, [even(64)])


def test_streams_with_more_or_fewer_symbols_are_refused():
    payload = encode(RNG.integers(-32, 32, 500), [even(64)])
    for count in (0, 400, 499, 501, 9000):
        with pytest.raises(InputError, match="damaged"):
            decode(payload, count, [even(64)])


def test_altered_streams_never_crash():
    symbols = RNG.integers(-32, 32, 300)
    payload = bytearray(encode(symbols, [even(64)]))
    for at in range(0, len(payload), 3):
        altered = bytes(payload[:at]) + bytes([payload[at] ^ 0xFF]) + bytes(payload[at + 1 :])
        try:
            assert (decode(altered, 300, [even(64)]) != symbols).any()
        except InputError as error:
            assert "damaged" in str(error)


def test_wrong_tables_are_programming_errors():
    with pytest.raises(ValueError, match="sum to"):
        Table(0, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="outside its table"):
        encode(np.array([64]), [even(64)])
