"""Binary masks <-> bytes: from coarse to fine, every voxel predicted by its neighbours that are known already.

A lattice of every 8th voxel is stored as it is. Then the lattice is refined axis by axis: new voxels lie halfway
between two known ones a, b and beside four known ones around each. With the votes 3 (a + b) + sum of the eight,

    votes 0 or 14   the voxel is as they are; the few exceptions are listed by their distances
    otherwise       one binary symbol, its probability by the number of votes (`codec.rans`)

The probabilities are one byte each for the whole mask. Beyond the mask's border there is nothing (0). A smooth object
costs about one bit per voxel of its surface and two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from scanfield.codec import rans
from scanfield.codec.varint import Reader, Writer
from scanfield.data.guard import check_memory
from scanfield.errors import InputError

_COARSEST = 8
_BETWEEN, _BESIDE = 3, 1
_ALL = 2 * _BETWEEN + 8 * _BESIDE
_CLASSES = range(1, _ALL)


def encode_mask(mask: Bool[Tensor, "n0 n1 n2"]) -> bytes:
    """The bytes of a mask; the same on every machine."""
    whole = mask.cpu().numpy()
    out = Writer()
    for size in whole.shape:
        out.unsigned(size)
    out.block(np.packbits(_coarse(whole)).tobytes())
    phases = []
    ones = np.zeros((_ALL + 1, 2), dtype=np.int64)
    for place, votes in _phases(whole):
        bits = whole[place].reshape(-1)
        np.add.at(ones, (votes, bits.astype(np.int64)), 1)
        phases.append((votes, bits))
    chance = np.clip(256 * ones[:, 1] // np.maximum(ones.sum(axis=1), 1), 1, 255).astype(np.uint8)
    out.block(chance[1:_ALL].tobytes())
    tables = _tables(chance[1:_ALL])
    for votes, bits in phases:
        agreed = (votes == 0) | (votes == _ALL)
        wrong = np.flatnonzero(bits[agreed] != (votes[agreed] > 0))
        out.unsigned(len(wrong))
        for gap in np.diff(wrong, prepend=-1):
            out.unsigned(int(gap) - 1)
        payload = rans.encode(bits[~agreed].astype(np.int64), tables, votes[~agreed] - 1)
        out.unsigned(len(payload))
        out.block(payload)
    return bytes(out.content)


def decode_mask(payload: bytes, *, where: str = "") -> Bool[Tensor, "n0 n1 n2"]:
    """The mask that `encode_mask` turned into `payload`.

    Raises:
        InputError: the payload is truncated or was altered.
    """
    source = Reader(payload, where)
    shape = (source.unsigned(), source.unsigned(), source.unsigned())
    if min(shape) < 1:
        raise InputError(f"the file is damaged: it describes a mask of shape {shape}", where=where)
    size = shape[0] * shape[1] * shape[2]
    coarse = tuple(-(-n // _COARSEST) for n in shape)
    if coarse[0] * coarse[1] * coarse[2] > 8 * len(payload):
        raise InputError("the file is truncated: it holds less than the coarsest part of its mask", where=where)
    check_memory(40 * size, where)
    whole = np.zeros(shape, dtype=bool)
    count = int(np.prod(coarse))
    bits = np.unpackbits(np.frombuffer(source.block(-(-count // 8)), np.uint8))[:count]
    _coarse(whole)[...] = bits.reshape(coarse).astype(bool)
    tables = _tables(np.frombuffer(source.block(len(_CLASSES)), np.uint8))
    for place, votes in _phases(whole):
        agreed = (votes == 0) | (votes == _ALL)
        found = votes > 0
        settled = found[agreed]
        at = -1
        for _ in range(source.unsigned()):
            at += source.unsigned() + 1
            if at >= len(settled):
                raise InputError("the file is damaged: its mask has more voxels than there are", where=where)
            settled[at] = not settled[at]
        found[agreed] = settled
        symbols = rans.decode(
            source.block(source.unsigned()), int((~agreed).sum()), tables, votes[~agreed] - 1, where=where
        )
        found[~agreed] = symbols.astype(bool)
        whole[place] = found.reshape(whole[place].shape)
    if source.left:
        raise InputError("the file is damaged: there are bytes after its mask", where=where)
    return torch.from_numpy(whole)


def _coarse(whole: np.ndarray) -> np.ndarray:
    return whole[::_COARSEST, ::_COARSEST, ::_COARSEST]


def _tables(chance: np.ndarray) -> list[rans.Table]:
    """Of every number of votes, from the probability of a one out of 256."""
    if (chance == 0).any():
        raise InputError("the file is damaged: it describes no table of probabilities")
    ones = chance.astype(np.int64) * (rans.TOTAL // 256)
    return [rans.Table(0, np.array([rans.TOTAL - one, one])) for one in ones]


def _phases(whole: np.ndarray) -> Iterator[tuple[tuple[slice, slice, slice], np.ndarray]]:
    """The places of the voxels that are added next, and their votes, flat. Reads `whole` when it is asked for them."""
    stride = [_COARSEST] * 3
    while max(stride) > 1:
        for axis in range(3):
            step = stride[axis] // 2
            place = [slice(None, None, s) for s in stride]
            place[axis] = slice(step, None, stride[axis])
            where = (place[0], place[1], place[2])
            votes = _votes(whole, where, axis, step, stride)
            stride[axis] = step
            if votes.size:
                yield where, votes.reshape(-1)


def _votes(whole: np.ndarray, place: tuple[slice, slice, slice], axis: int, step: int, stride: list[int]) -> np.ndarray:
    starts = [s.indices(n)[0] for s, n in zip(place, whole.shape, strict=True)]
    counts = [len(range(*s.indices(n))) for s, n in zip(place, whole.shape, strict=True)]
    total = np.zeros(counts, dtype=np.int64)
    if total.size == 0:
        return total
    for side in (-step, step):
        offset = [0, 0, 0]
        offset[axis] = side
        _add(total, whole, starts, counts, stride, offset, _BETWEEN)
        for other, sign in itertools.product((k for k in range(3) if k != axis), (-1, 1)):
            beside = list(offset)
            beside[other] = sign * stride[other]
            _add(total, whole, starts, counts, stride, beside, _BESIDE)
    return total


def _add(
    total: np.ndarray,
    whole: np.ndarray,
    starts: list[int],
    counts: list[int],
    stride: list[int],
    offset: list[int],
    weight: int,
) -> None:
    """Adds `weight` where the neighbour at `offset` (voxels) is set; neighbours outside the mask are not."""
    here, there = [], []
    for axis in range(3):
        first, jump = starts[axis] + offset[axis], stride[axis]
        low = max(0, -(first // jump))  # the first one inside
        high = min(counts[axis], (whole.shape[axis] - 1 - first) // jump + 1)
        if high <= low:
            return
        here.append(slice(low, high))
        begin = first + low * jump
        there.append(slice(begin, begin + (high - low - 1) * jump + 1, jump))
    total[tuple(here)] += weight * whole[tuple(there)]
