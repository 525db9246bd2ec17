"""Short texts as bytes."""

from __future__ import annotations

import json
import zlib

import pytest

from scanfield.codec.text import compress_text, expand_text
from scanfield.errors import InputError

HEADER = json.dumps(
    {
        "method": "siren",
        "config": {"width": 32, "hidden_layers": 3, "first_omega": 30.0},
        "spec": {"domain": "isotropic", "grid": {"shape": [128, 128, 1]}, "unit": "HU", "facts": {"channels": 1}},
    },
    separators=(",", ":"),
)


@pytest.mark.parametrize("text", ["", "{}", HEADER, "µ ≤ 1 日本", '{"method":"' * 500, "\x00\x7f~`" * 30])
def test_texts_come_back(text):
    assert expand_text(compress_text(text)) == text


def test_headers_shrink_more_than_with_deflate():
    assert len(compress_text(HEADER)) < 0.75 * len(zlib.compress(HEADER.encode(), 9))


def test_promises_of_billions_are_refused():
    with pytest.raises(InputError, match="promises"):
        expand_text(b"\xff\xff\xff\xff\x7f" + b"x" * 40)


@pytest.mark.parametrize("cut", [0, 1, 9, -1, -4])
def test_truncated_texts_are_refused(cut):
    with pytest.raises(InputError, match=r"damaged|truncated"):
        expand_text(compress_text(HEADER)[:cut])
