"""Small grey pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from scanfield.report.snapshot import snapshot, usual_window


def test_black_to_white_over_the_window() -> None:
    cut = np.linspace(-1.0, 2.0, 60).reshape(6, 10)
    picture = np.asarray(Image.open(io.BytesIO(snapshot(cut, (0.0, 1.0), (10, 6)))))
    np.testing.assert_array_equal(picture, (255 * cut.clip(0, 1)).astype(np.uint8))


def test_sizes() -> None:
    cut = np.random.default_rng(0).normal(size=(40, 80))
    window = usual_window(cut)
    assert window[0] < 0 < window[1]
    assert Image.open(io.BytesIO(snapshot(cut, window, 20))).size == (20, 10)
    assert Image.open(io.BytesIO(snapshot(cut, window, (33, 7)))).size == (33, 7)


def test_a_flat_image_is_no_division_by_zero() -> None:
    cut = np.full((4, 4), 3.0)
    assert snapshot(cut, usual_window(cut), (4, 4)).startswith(b"\x89PNG")
