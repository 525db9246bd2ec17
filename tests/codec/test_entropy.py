"""Groups of integers: exact for every range, near the entropy, damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfield.codec.entropy import cost_bits, decode_integers, encode_integers
from scanfield.errors import InputError

RNG = np.random.default_rng(8)
GROUPS = st.lists(st.lists(st.integers(-(2**39), 2**39), max_size=30), max_size=4)


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_any_integers_come_back(groups):
    arrays = [np.array(group, dtype=np.int64) for group in groups]
    back = decode_integers(encode_integers(arrays), [len(a) for a in arrays])
    assert [b.tolist() for b in back] == groups


def test_cost_is_what_a_group_adds():
    groups = [np.rint(RNG.normal(0, 20, 6000)).astype(int), np.rint(RNG.normal(0, 20_000, 6000)).astype(int)]
    whole = len(encode_integers(groups))
    assert whole == pytest.approx(sum(map(cost_bits, groups)) / 8 + 16, rel=0.003)
    gauss = 6000 * np.log2(20_000 * np.sqrt(2 * np.pi * np.e))
    assert cost_bits(groups[1]) == pytest.approx(gauss, rel=0.01)
    assert cost_bits(np.array([], dtype=int)) == 0


def test_every_byte_counts():
    groups = [np.rint(RNG.laplace(0, 3, 60)).astype(int), RNG.integers(0, 100_000, 20)]
    content = encode_integers(groups)
    for at in range(len(content)):
        altered = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        try:
            back = decode_integers(altered, [60, 20])
        except InputError:
            continue
        assert any((a != b).any() for a, b in zip(back, groups, strict=True))
    for cut in (0, 1, 5, len(content) - 1):
        with pytest.raises(InputError):
            decode_integers(content[:cut], [60, 20])


def test_no_bytes_for_no_numbers():
    assert encode_integers([np.array([], dtype=int)]) == b""
    assert [len(a) for a in decode_integers(b"", [0, 0])] == [0, 0]
    with pytest.raises(InputError, match="after its last number"):
        decode_integers(b"x", [0])


def test_too_large_is_a_programming_error():
    with pytest.raises(ValueError, match="magnitude"):
        encode_integers([np.array([2**40])])
