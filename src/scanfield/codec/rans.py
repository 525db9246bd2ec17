"""Range asymmetric numeral systems: integers <-> bytes at the cost that a table of frequencies gives them.

J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540, 2013), in the range variant. A symbol s with frequency f_s out
of M = 2^16, starting at c_s = sum_{t < s} f_t, costs log2(M / f_s) bits:

    encode    x <- (x div f_s) M + x mod f_s + c_s            decode    s: c_s <= x mod M < c_s + f_s
                                                                        x <- f_s (x div M) + x mod M - c_s

with x kept in [2^31, 2^63) by moving words of 32 bits to and from the stream. Everything is integer arithmetic, so the
bytes are the same on every machine. The symbols are dealt to several states in turn ("lanes"), which makes every step
an operation on arrays; a stream costs 8 bytes a lane beyond its symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from scanfield.errors import InputError

PRECISION = 16  # bits: the frequencies of a table sum to 2^16
TOTAL = 1 << PRECISION
_LOWEST = np.uint64(1 << 31)
_WORD = np.uint64(32)
_SYMBOLS_PER_LANE, _MOST_LANES = 4096, 1024


@dataclass(frozen=True, eq=False)
class Table:
    """How often the symbols low, low + 1, ... occur, out of 2^16. A symbol of frequency 0 cannot be encoded."""

    low: int
    frequencies: Integer[np.ndarray, " size"]

    def __post_init__(self) -> None:
        if self.frequencies.sum() != TOTAL or self.frequencies.min() < 0:
            raise ValueError(f"frequencies are not negative and sum to {TOTAL}, got {self.frequencies.sum()}")


def lanes(count: int) -> int:
    """The number of states that `count` symbols are dealt to."""
    return min(max(count // _SYMBOLS_PER_LANE, 1), _MOST_LANES)


def encode(
    symbols: Integer[np.ndarray, " n"], tables: Sequence[Table], context: Integer[np.ndarray, " n"] | None = None
) -> bytes:
    """The bytes of `symbols`; symbol i is coded with `tables[context[i]]` (default: the first).

    Raises:
        ValueError: a symbol is not in its table.
    """
    if len(symbols) == 0:
        return b""
    joint = _Joint(tables)
    frequency, start = joint.coded(symbols, context)
    width = lanes(len(symbols))
    state = np.full(width, _LOWEST, dtype=np.uint64)
    words: list[np.ndarray] = []
    for step in reversed(range(0, len(symbols), width)):
        f, c = frequency[step : step + width], start[step : step + width]
        x = state[: len(f)]
        full = x >= f << np.uint64(63 - PRECISION)
        words.append(x[full].astype("<u4"))  # the low word
        x = np.where(full, x >> _WORD, x)
        state[: len(f)] = (x // f << np.uint64(PRECISION)) + x % f + c
    return state.astype("<u8").tobytes() + b"".join(word.tobytes() for word in reversed(words))


def decode(
    payload: bytes,
    count: int,
    tables: Sequence[Table],
    context: Integer[np.ndarray, " n"] | None = None,
    *,
    where: str = "",
) -> Integer[np.ndarray, " n"]:
    """The `count` symbols that `encode` turned into `payload`, with the same tables and context.

    Raises:
        InputError: the payload is truncated or was altered.
    """
    symbols = np.empty(count, dtype=np.int64)
    if count == 0 and not payload:
        return symbols
    damaged = InputError("the file is damaged: its coded numbers do not end where they should", where=where)
    width = lanes(count)
    if count == 0 or len(payload) < 8 * width or len(payload) % 4:
        raise damaged
    joint = _Joint(tables)
    state = np.frombuffer(payload, "<u8", width).astype(np.uint64)
    words = np.frombuffer(payload, "<u4", offset=8 * width).astype(np.uint64)
    at = 0
    for step in range(0, count, width):
        stop = min(step + width, count)
        x = state[: stop - step]
        slot = x & np.uint64(TOTAL - 1)
        place = joint.find(slot, None if context is None else context[step:stop])
        symbols[step:stop] = joint.symbol[place]
        x = joint.frequency[place] * (x >> np.uint64(PRECISION)) + slot - joint.start[place]
        short = np.flatnonzero(x < _LOWEST)
        if at + len(short) > len(words):
            raise damaged
        x[short] = x[short] << _WORD | words[at : at + len(short)]
        at += len(short)
        state[: stop - step] = x
    if at != len(words) or (state != _LOWEST).any():
        raise damaged
    return symbols


class _Joint:
    """All tables one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        sizes = [len(table.frequencies) for table in tables]
        self.offset = np.cumsum([0, *sizes])
        self.low = np.array([table.low for table in tables])
        self.size = np.array(sizes)
        frequencies = np.concatenate([table.frequencies for table in tables]).astype(np.int64)
        before = np.cumsum(frequencies) - frequencies  # over all tables: table t begins at t 2^16
        self.before = before
        self.frequency = frequencies.astype(np.uint64)
        self.start = (before % TOTAL).astype(np.uint64)
        self.symbol = np.concatenate([np.arange(t.low, t.low + len(t.frequencies)) for t in tables])

    def coded(self, symbols: np.ndarray, context: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Frequency and start of every symbol."""
        which = np.zeros(len(symbols), dtype=np.int64) if context is None else context.astype(np.int64)
        inner = symbols.astype(np.int64) - self.low[which]
        if ((inner < 0) | (inner >= self.size[which])).any():
            raise ValueError("a symbol lies outside its table")
        place = self.offset[which] + inner
        if (self.frequency[place] == 0).any():
            raise ValueError("a symbol has frequency 0")
        return self.frequency[place], self.start[place]

    def find(self, slot: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Where the symbol lies whose range of its table holds the slot."""
        target = slot.astype(np.int64)
        if context is not None:
            target = target + (context.astype(np.int64) << PRECISION)
        return np.searchsorted(self.before, target, side="right") - 1
