"""Descriptors of known bodies, overlaps by hand, and model measures at their ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.shape_model import (
    compactness,
    describe,
    dice_matrix,
    generalisation,
    paired_dice,
    specificity,
)
from scanfield.space.grid import Grid

OBLIQUE = np.array([[0.35, -0.3, 0.0, 40.0], [0.3, 0.35, 0.0, -9.0], [0.0, 0.0, -0.6, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((40, 40, 40), OBLIQUE)


def inside(half_axes: tuple[float, float, float], shift: float = 0.0) -> torch.Tensor:
    x = GRID.points().double() - torch.tensor(GRID.centre_mm) - torch.tensor([shift, 0.0, 0.0])
    return ((x / torch.tensor(half_axes)).norm(dim=1) < 1).reshape(GRID.shape)


def test_a_ball_has_its_volume_area_and_sphericity_on_an_oblique_grid():
    found = describe(inside((6.0, 6.0, 6.0)), GRID)
    assert found.volume_mm3 == pytest.approx(4 / 3 * math.pi * 216, rel=0.02)
    assert found.surface_mm2 == pytest.approx(4 * math.pi * 36, rel=0.03)
    assert 0.97 < found.sphericity < 1.005 and found.components == 1


def test_a_spheroid_is_less_of_a_ball():
    a, c = 3.0, 7.5
    e = math.sqrt(1 - (a / c) ** 2)
    area = 2 * math.pi * a * a * (1 + c / (a * e) * math.asin(e))
    volume = 4 / 3 * math.pi * a * a * c
    found = describe(inside((a, a, c)), GRID)
    assert found.surface_mm2 == pytest.approx(area, rel=0.03)
    assert found.sphericity == pytest.approx(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, rel=0.03)


def test_parts_are_counted_and_nothing_is_refused():
    two = inside((2.5, 2.5, 2.5), 4.0) | inside((2.5, 2.5, 2.5), -4.0)
    found, one = describe(two, GRID), describe(inside((2.5, 2.5, 2.5), 4.0), GRID)
    assert found.components == 2
    assert found.volume_mm3 == pytest.approx(2 * one.volume_mm3, rel=0.02)
    with pytest.raises(InputError, match="mask is empty"):
        describe(torch.zeros(GRID.shape, dtype=torch.bool), GRID)


def test_overlaps_by_hand():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    b = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    torch.testing.assert_close(dice_matrix(a, b), torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(paired_dice(a, b[1:]), torch.tensor([0.4, 1.0]))
    frames = b[:, None, :].expand(3, 2, 4)
    torch.testing.assert_close(dice_matrix(frames, frames), dice_matrix(b, b))


def test_overlaps_are_counted_in_parts(monkeypatch):
    shapes = torch.rand(5, 7, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = dice_matrix(shapes, shapes[:3])
    monkeypatch.setattr("scanfield.metrics.shape_model._AT_ONCE", 100)
    assert torch.equal(dice_matrix(shapes, shapes[:3]), whole)
    torch.testing.assert_close(whole[:3].diagonal(), torch.ones(3))


def test_a_model_that_copies_has_no_specificity_and_unseen_shapes_judge_it():
    shapes = torch.stack([inside((r, r, r)) for r in (4.0, 5.0, 6.0)])
    assert specificity(shapes[[0, 2, 2]], shapes) == 0
    between = torch.stack([inside((4.5, 4.5, 4.5))])
    expected = float(1 - dice_matrix(between, shapes[1:2]))
    assert specificity(between, shapes) == pytest.approx(expected) and 0.05 < expected < 0.4
    assert generalisation(shapes, shapes) == 0
    assert generalisation(shapes[:1], shapes[1:2]) == pytest.approx(1 - 2 * 64 / (64 + 125), abs=0.02)


def test_compactness_of_a_line_and_of_a_ball_of_samples():
    g = torch.Generator().manual_seed(0)
    line = torch.randn(6, 1, generator=g) @ torch.randn(1, 30, generator=g) + 2
    torch.testing.assert_close(compactness(line), torch.ones(5))
    shares = compactness(torch.eye(5))
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.5, 0.75, 1.0]))
    for bad in (line[:1], line[:1].expand(3, -1)):
        with pytest.raises(ValueError, match="variance"):
            compactness(bad)
