"""Gamma against doses whose gamma is known in closed form, and against pymedphys."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.gamma import GammaCriterion, gamma
from scanfield.space.grid import Grid

SPACING = (2.0, 2.5, 3.0)
GRID = Grid.centred((16, 14, 12), SPACING)
CRITERION = GammaCriterion(3.0, 3.0, cutoff_percent=0.0, global_gy=50.0)
INNER = (slice(5, -5),) * 3


def ramp(gradient_gy_per_mm: float, grid: Grid = GRID) -> torch.Tensor:
    direction = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    x = grid.points().double() @ (direction / direction.norm())
    return (50 + gradient_gy_per_mm * x).float().reshape(grid.shape)


def test_equal_doses_have_gamma_zero():
    found = gamma(ramp(1.0), GRID, ramp(1.0), GRID, CRITERION)
    assert found.values.abs().max() < 1e-4 and found.passing_percent == 100 and found.judged.all()


@pytest.mark.parametrize("difference", [0.3, 1.5, 2.4])
def test_of_an_even_dose_gamma_is_the_difference_over_the_criterion(difference):
    even = torch.full(GRID.shape, 50.0)
    found = gamma(even, GRID, even + difference, GRID, CRITERION)
    assert torch.allclose(found.values, torch.tensor(difference / 1.5), atol=1e-4)
    assert found.passing_percent == (100 if difference <= 1.5 else 0)


@pytest.mark.parametrize("gradient", [0.2, 1.0, 3.0])
def test_in_a_gradient_gamma_is_smaller_by_what_distance_buys(gradient):
    """D + c in a slope g: min over s of (s / d)^2 + ((c - g s) / delta)^2 is c^2 / (delta^2 + g^2 d^2)."""
    difference = 1.2
    found = gamma(ramp(gradient), GRID, ramp(gradient) + difference, GRID, CRITERION)
    expected = difference / math.hypot(1.5, gradient * 3.0)
    assert torch.allclose(found.values[INNER], torch.tensor(expected), rtol=0.03, atol=0.012)  # lattice of d / 10


def test_local_and_global_criteria_differ_where_dose_is_low():
    reference = torch.full(GRID.shape, 10.0)
    reference[:8] = 50.0
    evaluated = reference * 1.02
    everywhere = gamma(reference, GRID, evaluated, GRID, CRITERION)
    local = gamma(reference, GRID, evaluated, GRID, replace(CRITERION, local=True))
    assert float(everywhere.values[14, 7, 6]) == pytest.approx(0.2 / 1.5, rel=1e-3)
    assert float(local.values[14, 7, 6]) == pytest.approx(0.2 / 0.3, rel=1e-3)


def test_points_below_the_cut_off_or_outside_the_mask_are_not_judged():
    reference = ramp(1.0)
    mask = torch.zeros(GRID.shape, dtype=torch.bool)
    mask[4:] = True
    found = gamma(reference, GRID, reference, GRID, replace(CRITERION, cutoff_percent=100 * 48 / 50), mask=mask)
    assert torch.equal(found.judged, mask & (reference >= 48)) and found.values[~found.judged].isnan().all()
    with pytest.raises(InputError, match="above the cut-off"):
        gamma(reference, GRID, reference, GRID, CRITERION, mask=torch.zeros(GRID.shape, dtype=torch.bool))


def test_the_evaluated_dose_may_lie_on_another_grid():
    turn = np.eye(4)
    turn[:3, :3] = [[math.cos(0.4), -math.sin(0.4), 0], [math.sin(0.4), math.cos(0.4), 0], [0, 0, 1]]
    other = Grid.centred((44, 44, 30), 1.5).moved(turn)
    found = gamma(ramp(1.0), GRID, ramp(1.0, other), other, CRITERION)
    assert found.values[INNER].max() < 1e-3


def test_beyond_the_largest_gamma_nothing_is_computed():
    even = torch.full(GRID.shape, 50.0)
    assert torch.allclose(gamma(even, GRID, 2 * even, GRID, CRITERION).values, torch.tensor(2.0))


def test_against_pymedphys():
    """A structured dose with noise and a shift; both search on lattices, finer ones agree better."""
    import pymedphys

    generator = torch.Generator().manual_seed(3)
    x = GRID.points().double().reshape(*GRID.shape, 3)
    reference = (60 * torch.exp(-((x.norm(dim=-1) / 14) ** 2))).float()
    moved = x - torch.tensor([0.8, -0.5, 0.6], dtype=torch.float64)
    evaluated = (60 * torch.exp(-((moved.norm(dim=-1) / 14) ** 2))).float()
    evaluated = evaluated + 0.4 * torch.randn(GRID.shape, generator=generator)
    axes = tuple(np.arange(n) * s for n, s in zip(GRID.shape, SPACING, strict=True))
    for criterion in (GammaCriterion(2.0, 2.0, finer=20), GammaCriterion(3.0, 3.0, local=True, finer=20)):
        ours = gamma(reference, GRID, evaluated, GRID, criterion)
        theirs = pymedphys.gamma(
            axes,
            reference.numpy(),
            axes,
            evaluated.numpy(),
            criterion.dose_percent,
            criterion.distance_mm,
            lower_percent_dose_cutoff=criterion.cutoff_percent,
            interp_fraction=criterion.finer,
            max_gamma=criterion.largest,
            local_gamma=criterion.local,
        )
        judged = ~np.isnan(theirs)
        assert (judged == ours.judged.numpy()).all()
        difference = ours.values.numpy()[judged] - theirs[judged]
        assert np.abs(difference).max() < 0.15 and np.abs(difference).mean() < 0.02
        assert abs(ours.passing_percent - 100 * (theirs[judged] <= 1).mean()) < 0.2


@pytest.mark.parametrize(
    "wrong", [{"dose_percent": 0.0}, {"distance_mm": -1.0}, {"cutoff_percent": 100.0}, {"finer": 0}, {"largest": 0.5}]
)
def test_criteria_that_are_none_are_refused(wrong):
    with pytest.raises(InputError):
        GammaCriterion(**wrong)


def test_a_line_of_voxels_has_no_gamma():
    line = Grid.centred((9, 1, 1), 1.0)
    with pytest.raises(InputError, match="two axes"):
        gamma(torch.ones(9, 1, 1), line, torch.ones(9, 1, 1), line, CRITERION)
