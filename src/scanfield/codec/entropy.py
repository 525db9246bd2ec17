"""Groups of integers <-> bytes: one table of frequencies a group, one stream for all (see `codec.rans`).

per group   its shift s (LEB128), its table (`codec.frequencies`); nothing for an empty group
low bits    the s lowest bits of every value of a group whose range is wider than a table
stream      value >> s of all values
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from scanfield.codec import rans
from scanfield.codec.frequencies import MOST_VALUES, Frequencies, coded_bits, describe
from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

_MOST_SHIFT = 40


def encode_integers(groups: Sequence[Integer[np.ndarray, " _"]]) -> bytes:
    """The bytes of several groups of integers; the same on every machine.

    Raises:
        ValueError: a value of magnitude 2^40 or more.
    """
    out, found = Writer(), []
    for values in groups:
        if len(values) == 0:
            continue
        if max(-int(values.min()), int(values.max())) >= 2**40:
            raise ValueError("only integers of magnitude below 2^40 can be coded")
        shift = _shift(values)
        high = values.astype(np.int64) >> shift
        table = describe(high)
        out.unsigned(shift)
        table.write(out)
        found.append((high, values.astype(np.int64) & ((1 << shift) - 1), shift, table))
    if not found:
        return bytes(out.content)
    out.block(_pack([(low, shift) for _, low, shift, _ in found]))
    high = np.concatenate([part for part, *_ in found])
    out.block(rans.encode(high, [table.table() for *_, table in found], _context([len(part) for part, *_ in found])))
    return bytes(out.content)


def decode_integers(payload: bytes, counts: Sequence[int], *, where: str = "") -> list[Integer[np.ndarray, " _"]]:
    """The groups that `encode_integers` turned into `payload`, of `counts` integers each.

    Raises:
        InputError: the payload is truncated, or was altered.
    """
    source = Reader(payload, where)
    full = [count for count in counts if count > 0]
    shifts, tables = [], []
    for _ in full:
        shifts.append(source.unsigned())
        if shifts[-1] > _MOST_SHIFT:
            raise InputError("the file is damaged: it describes numbers that no encoder writes", where=where)
        tables.append(Frequencies.read(source))
    if not full:
        if source.left:
            raise InputError("the file is damaged: there are bytes after its last number", where=where)
        return [np.empty(0, dtype=np.int64) for _ in counts]
    size = -(-sum(count * shift for count, shift in zip(full, shifts, strict=True)) // 8)
    low = _unpack(source.block(size), full, shifts)
    high = rans.decode(source.rest(), sum(full), [table.table() for table in tables], _context(full), where=where)
    parts = iter(np.split(high, np.cumsum(full)[:-1]))
    values = (part << shift | bits for part, shift, bits in zip(parts, shifts, low, strict=True))
    return [next(values) if count > 0 else np.empty(0, dtype=np.int64) for count in counts]


def cost_bits(values: Integer[np.ndarray, " n"]) -> float:
    """What a group adds to the bytes of `encode_integers`, in bits: its values and its table."""
    if len(values) == 0:
        return 0.0
    shift = _shift(values)
    high = values.astype(np.int64) >> shift
    return coded_bits(high, describe(high)) + len(values) * shift + 8


def _shift(values: np.ndarray) -> int:
    """How many low bits stay outside the table."""
    shift = 0
    while (int(values.max()) >> shift) - (int(values.min()) >> shift) >= MOST_VALUES:
        shift += 1
    return shift


def _context(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def _pack(groups: Sequence[tuple[np.ndarray, int]]) -> bytes:
    """The `shift` lowest bits of every value, most significant first, all groups together."""
    bits = []
    for low, shift in groups:
        table = np.empty((len(low), shift), dtype=np.uint8)
        for k in range(shift):
            table[:, shift - 1 - k] = low >> k & 1
        bits.append(table.ravel())
    return np.packbits(np.concatenate(bits)).tobytes()


def _unpack(content: bytes, counts: Sequence[int], shifts: Sequence[int]) -> list[np.ndarray]:
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    values, at = [], 0
    for count, shift in zip(counts, shifts, strict=True):
        part = bits[at : at + count * shift].reshape(count, shift)
        low = np.zeros(count, dtype=np.int64)
        for k in range(shift):
            low |= part[:, shift - 1 - k].astype(np.int64) << k
        values.append(low)
        at += count * shift
    return values
