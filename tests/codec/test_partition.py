"""The cut: the dynamic program against every cut there is, and the code that travels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scanfield.codec.partition import adaptive_cut, boxes_of, children, concentration, regular_cut, shares, whole
from scanfield.errors import InputError

RNG = np.random.default_rng(4)


def all_cuts(box, levels):
    """Every cut of the tree below a box, as lists of boxes."""
    yield [box]
    if levels and (halves := children(box)):
        for parts in itertools.product(*(list(all_cuts(half, levels - 1)) for half in halves)):
            yield [b for part in parts for b in part]


def objective(values, boxes):
    total = 0.0
    for box in boxes:
        part = values[tuple(slice(a, b) for a, b in box)]
        total += concentration(part) * part.size / values.size
    return total


@pytest.mark.parametrize("shape", [(16, 16, 1), (13, 11, 1), (32, 8, 1), (8, 8, 8)])
@pytest.mark.parametrize("blocks", [1, 3, 4, 7, 10, 20])
def test_dynamic_programming_is_brute_force(shape, blocks):
    levels = 2 if shape[2] == 1 else 1
    x = np.linspace(0, 1, shape[0])[:, None, None]
    values = 50 + 40 * np.sin(9 * x) + 10 * RNG.normal(size=shape) * (x > 0.4)
    cut = adaptive_cut(values, blocks=blocks, levels=levels, smallest=1)
    best = max(objective(values, boxes) for boxes in all_cuts(whole(shape), levels) if len(boxes) <= blocks)
    assert cut.value == pytest.approx(best, rel=1e-12)
    assert objective(values, cut.boxes) == pytest.approx(best, rel=1e-12) and len(cut.boxes) <= blocks


@pytest.mark.parametrize("shape", [(17, 9, 30), (16, 16, 1), (64, 8, 8), (2, 2, 2)])
def test_blocks_tile_the_image_and_the_code_gives_them_back(shape):
    values = RNG.random(shape)
    for cut in (adaptive_cut(values, blocks=12, levels=3, smallest=1), regular_cut(shape, blocks=20, smallest=1)):
        painted = np.zeros(shape, dtype=int)
        for box in cut.boxes:
            painted[tuple(slice(a, b) for a, b in box)] += 1
        assert (painted == 1).all()
        assert tuple(boxes_of(cut.code, shape)) == cut.boxes


def test_long_boxes_are_halved_along_their_long_axes_only():
    assert len(children(whole((64, 16, 8)))) == 2
    assert len(children(whole((16, 16, 8)))) == 4
    assert len(children(whole((16, 16, 9)))) == 8
    assert children(whole((1, 1, 1))) == []


def test_concentration():
    assert concentration(np.full((6, 5, 4), 3.0)) == pytest.approx(1.0)
    assert concentration(np.zeros((4, 4, 4))) == 1.0
    for shape in ((6, 5, 4), (6, 4, 5), (8, 8, 1)):
        values = RNG.random(shape)
        full = np.abs(np.fft.fftn(values))
        assert concentration(values) == pytest.approx(full.max() / full.sum())


def test_shares_sum_to_one_and_follow_size_over_concentration():
    values = np.full((16, 8, 8), 50.0)
    values[:8] += RNG.normal(size=(8, 8, 8))
    boxes = boxes_of("100", values.shape)
    for by in ("concentration", "size", "equal"):
        assert shares(values, boxes, by).sum() == pytest.approx(1)
    wanted = concentration(values[8:]) / concentration(values[:8])
    a, b = shares(values, boxes, "concentration")
    assert a / b == pytest.approx(wanted)
    with pytest.raises(ValueError, match="concentration"):
        shares(values, boxes, "luck")


@pytest.mark.parametrize("code", ["", "1", "00", "2", "10", "1" * 50])
def test_damaged_codes_are_refused(code):
    with pytest.raises(InputError, match=r"describes|cuts"):
        boxes_of(code, (8, 8, 1))


def test_an_image_needs_a_block():
    with pytest.raises(InputError, match="at least one"):
        adaptive_cut(RNG.random((8, 8, 8)), blocks=0, levels=1)
