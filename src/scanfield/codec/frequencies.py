"""Tables of frequencies that cost few bytes: two families with one parameter, or a list.

With m the most frequent value and k = |value - m|, the families are

    laplace   w_k = theta^k,       theta = b / (b + 1)                     two-sided geometric, mean |k| near b
    gauss     w_k = theta^(k^2),   theta = 2 b^2 / (2 b^2 + 1)             near exp(-k^2 / (2 b^2))

with b = 2^(code/4) / 4, one byte. All weights are computed with integers, so that every machine gets the same table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Integer

from scanfield.codec.rans import PRECISION, TOTAL, Table
from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

MOST_VALUES = 4096  # of a table; wider ranges leave their lowest bits to the caller
Family = Literal["laplace", "gauss", "list"]
_FAMILIES: tuple[Family, ...] = ("laplace", "gauss", "list")
_CODES = 64
_ROOTS = (65536, 77936, 92682, 110218)  # 2^(k/4) in units of 2^-16
_LIST_TOTAL = 4096
_UNIT = 1 << 30


@dataclass(frozen=True)
class Frequencies:
    """A table's description.

    Args:
        family: how the frequencies follow from the rest.
        low, size: the values low .. low + size - 1 can occur.
        mode: the most frequent value, of a family.
        code: the parameter of a family, 0..63.
        listed: of a list: one number per value, out of 4096.
    """

    family: Family
    low: int
    size: int
    mode: int = 0
    code: int = 0
    listed: tuple[int, ...] = ()

    def table(self) -> Table:
        """The frequencies themselves."""
        if self.family == "list":
            return Table(self.low, np.array(self.listed, dtype=np.int64) * (TOTAL // _LIST_TOTAL))
        away = np.abs(np.arange(self.low, self.low + self.size) - self.mode)
        weight = _weights(self.family, self.code)[away]
        counts = 1 + weight * (TOTAL - self.size) // weight.sum()
        counts[self.mode - self.low] += TOTAL - counts.sum()
        return Table(self.low, counts)

    def write(self, out: Writer) -> None:
        """Appends the description."""
        out.block(bytes([_FAMILIES.index(self.family) * _CODES + self.code]))
        out.signed(self.low)
        out.unsigned(self.size - 1)
        if self.family == "list":
            for number in self.listed:
                out.unsigned(number)
        elif self.size > 1:
            out.unsigned(self.mode - self.low)

    @staticmethod
    def read(source: Reader) -> Frequencies:
        """Reads what `write` wrote.

        Raises:
            InputError: it describes no table.
        """
        kind, code = divmod(source.block(1)[0], _CODES)
        low, size = source.signed(), source.unsigned() + 1
        damaged = InputError("the file is damaged: it describes no table of frequencies", where=source.where)
        if kind >= len(_FAMILIES) or size > MOST_VALUES or abs(low) > 2**40:
            raise damaged
        if _FAMILIES[kind] == "list":
            listed = tuple(source.unsigned() for _ in range(size))
            if sum(listed) != _LIST_TOTAL:
                raise damaged
            return Frequencies("list", low, size, listed=listed)
        mode = low + (source.unsigned() if size > 1 else 0)
        if mode >= low + size:
            raise damaged
        return Frequencies(_FAMILIES[kind], low, size, mode, code)


def describe(values: Integer[np.ndarray, " n"]) -> Frequencies:
    """The description with the fewest bytes for these values and itself.

    Raises:
        ValueError: no values, or a range of more than `MOST_VALUES`.
    """
    if len(values) == 0:
        raise ValueError("a table needs values")
    low = int(values.min())
    counts = np.bincount(values.astype(np.int64) - low)
    if len(counts) > MOST_VALUES:
        raise ValueError(f"values {low}..{low + len(counts) - 1} do not fit a table of {MOST_VALUES}")
    if len(counts) == 1:
        return Frequencies("laplace", low, 1, low)
    mode = low + int(np.searchsorted(np.cumsum(counts), (len(values) + 1) // 2))
    candidates = [Frequencies(family, low, len(counts), mode, code) for family, code in _near(counts, mode - low)]
    listed = _listed(counts, low)
    if listed is not None:
        candidates.append(listed)
    return min(candidates, key=lambda found: _size(found, counts))


def coded_bits(values: Integer[np.ndarray, " n"], found: Frequencies) -> float:
    """What the values cost with a table and its description, in bits, without the ends of a stream."""
    counts = np.bincount(values.astype(np.int64) - found.low, minlength=found.size)
    return _size(found, counts) / 65536


def _near(counts: np.ndarray, mode: int) -> list[tuple[Family, int]]:
    """Parameters around the mean distance and the root mean square distance from the mode, in integers."""
    away, total = np.abs(np.arange(len(counts)) - mode), int(counts.sum())
    first, second = int((counts * away).sum()), int((counts * away * away).sum())
    scales = [_scale(code) for code in range(_CODES)]  # 2^18 b
    laplace = sum(scale * total < first << 18 for scale in scales)
    gauss = sum(scale * scale * total < second << 36 for scale in scales)
    return [("laplace", code) for code in _around(laplace)] + [("gauss", code) for code in _around(gauss)]


def _around(code: int) -> range:
    return range(max(code - 3, 0), min(code + 3, _CODES))


def _listed(counts: np.ndarray, low: int) -> Frequencies | None:
    """The counts themselves, out of 4096; None where too many values occur for that."""
    share = np.where(counts > 0, np.maximum(counts * _LIST_TOTAL // int(counts.sum()), 1), 0)
    most = int(np.argmax(share))
    share[most] += _LIST_TOTAL - int(share.sum())
    if share[most] < 1:
        return None
    return Frequencies("list", low, len(counts), listed=tuple(int(n) for n in share))


def _size(found: Frequencies, counts: np.ndarray) -> int:
    """Cost of the values and of the description, in 2^-16 bits."""
    out = Writer()
    replace(found, listed=()).write(out)
    listed = sum(1 if number < 128 else 2 for number in found.listed)
    return int((counts * _cost(found.table().frequencies)).sum()) + (8 * (len(out.content) + listed) << 16)


def _scale(code: int) -> int:
    return _ROOTS[code % 4] << (code // 4)


@cache
def _weights(family: Family, code: int) -> np.ndarray:
    """w_k for k = 0 .. MOST_VALUES, out of 2^30."""
    b = _scale(code)
    if family == "laplace":
        theta = (b << 60) // (b + (1 << 18))
        growth = 1 << 60
    else:
        theta = (2 * b * b << 60) // (2 * b * b + (1 << 36))
        growth = theta * theta >> 60
    weights, weight, factor = [], 1 << 60, theta
    for _ in range(MOST_VALUES + 1):
        weights.append(weight >> 30)
        weight = weight * factor >> 60
        factor = factor * growth >> 60
    return np.array(weights, dtype=np.int64)


def _cost(frequencies: np.ndarray) -> np.ndarray:
    """Bits of a symbol of each frequency in 2^-16 bits, rounded up, by integers: log2 by repeated squaring."""
    f = np.maximum(frequencies, 1).astype(np.uint64)
    whole = np.zeros_like(f)
    for bit in (16, 8, 4, 2, 1):
        big = (f >> whole) >= np.uint64(1 << bit)
        whole = whole + np.where(big, np.uint64(bit), np.uint64(0))
    mantissa = f << (np.uint64(31) - whole)  # in [2^31, 2^32)
    bits = whole
    for _ in range(16):
        mantissa = mantissa * mantissa >> np.uint64(31)
        over = mantissa >> np.uint64(32)
        bits = bits * np.uint64(2) + over
        mantissa = mantissa >> over
    return (PRECISION << 16) - bits.astype(np.int64)
