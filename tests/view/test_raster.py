"""Messages of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.view.raster import MOST_PER_SIDE, Raster, decode, encode, symmetric


def test_a_message_says_what_was_put_into_it() -> None:
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    pictures = [
        Raster("measured", first, "1", ("view", "column"), (2.0, 1.0), (0.0, 5.0)),
        Raster("residual — µ", -first.T, "1", ("a", "b"), colours="difference", edges=("R", "L", "A", "P")),
    ]
    message = encode(pictures, {"step": 7})
    facts, values = decode(message)
    assert facts["step"] == 7 and [p["label"] for p in facts["pictures"]] == ["measured", "residual — µ"]
    np.testing.assert_array_equal(values[0], first)
    np.testing.assert_array_equal(values[1], -first.T)
    assert facts["pictures"][0]["pixel"] == [2.0, 1.0] and facts["pictures"][1]["edges"] == ["R", "L", "A", "P"]
    assert int.from_bytes(message[:4], "little") % 4 == 0, "a Float32Array begins at a multiple of four"


def test_what_is_larger_than_a_screen_is_averaged() -> None:
    values = np.random.default_rng(0).random((3 * MOST_PER_SIDE + 1, 8)).astype(np.float32)
    facts, (sent,) = decode(encode([Raster("", values, "", ("", ""), (1.0, 2.0))]))
    picture = facts["pictures"][0]
    assert picture["block"] == [4, 1] and picture["pixel"] == [4.0, 2.0] and max(sent.shape) <= MOST_PER_SIDE
    np.testing.assert_allclose(sent[5, 3], values[20:24, 3].mean(), rtol=1e-5)


def test_no_value_or_window_that_json_or_a_screen_cannot_show() -> None:
    values = np.array([[np.nan, np.inf, 1.0]])
    facts, (sent,) = decode(encode([Raster("", values, "", ("", ""), window=(float("nan"), 1.0))]))
    assert np.isfinite(sent).all() and sent[0, 2] == 1 and facts["pictures"][0]["window"] == [0.0, 1.0]


def test_a_cut_off_message_is_noticed() -> None:
    message = encode([Raster("", np.ones((4, 4)), "", ("", ""))])
    with pytest.raises(ValueError, match="buffer"):
        decode(message[:-8])


def test_windows_of_residuals_are_symmetric_and_never_empty() -> None:
    low, high = symmetric(np.array([-3.0, 1.0, 0.5]))
    assert low == -high and 2.9 < high <= 3
    assert symmetric(np.zeros(5)) == (-1.0, 1.0) and symmetric(np.zeros(0)) == (-1.0, 1.0)
    assert symmetric(np.array([0.0] * 999 + [4.0])) == (-4.0, 4.0)
