"""Likelihood, slopes and priors of slice-to-volume reconstruction against closed forms."""

import pytest
import torch

from scanfield.losses.slices import (
    edge_preserving,
    misfit,
    motion,
    slope_cost,
    squared_slopes,
    total_variation,
    typical_intensity,
    uncertainty,
)


def test_misfit_and_uncertainty_are_a_normal_likelihood():
    p, y, s = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0]), torch.tensor([0.5, 2.0])
    expected = -torch.distributions.Normal(p, s).log_prob(y).mean() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    assert misfit(p, y, s**2) + uncertainty(s**2) == pytest.approx(float(expected), rel=1e-5)


def test_the_best_variance_is_the_mean_square_error():
    error = torch.tensor([0.3, -0.1, 0.2])
    log = torch.zeros((), requires_grad=True)
    best = error.square().mean().log()
    with torch.no_grad():
        log += best
    variance = log.exp().expand(3)
    (misfit(error, torch.zeros(3), variance) + uncertainty(variance)).backward()
    assert log.grad.abs() < 1e-6


def test_slopes_of_a_ramp_are_its_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, 3, generator=generator)
    way = torch.tensor([0.3, -0.2, 0.5])
    square = squared_slopes(x @ way, x)
    assert square.shape == (50, 4)
    first = x[0, 0] - x[0, 7]
    assert square[0, 0] == pytest.approx(float((first @ way) ** 2 / first.square().sum()), rel=1e-4)
    assert (square <= way.square().sum() + 1e-5).all()
    assert squared_slopes(torch.zeros(2, 5), torch.zeros(2, 5, 3)).shape == (2, 2)


def test_edges_cost_linearly_and_ripples_quadratically():
    low, high = torch.full((4,), 1e-6), torch.full((4,), 1e4)
    assert edge_preserving(low, 0.2) == pytest.approx(1e-6 / (2 * 0.2), rel=0.3)
    assert edge_preserving(high, 0.2) == pytest.approx(100 - 0.2, rel=1e-3)
    assert total_variation(high) == pytest.approx(100, rel=1e-5)
    assert slope_cost("l2", high, 0.2) == 1e4
    assert slope_cost("tv", high, 0.2) == total_variation(high)
    assert slope_cost("edge", high, 0.2) == edge_preserving(high, 0.2)


def test_motion_weighs_a_turn_of_one_radian_like_a_shift_of_32_mm():
    zero = torch.zeros(2, 3)
    one = torch.tensor([[0.0, 0, 1], [0, 0, 0]])
    assert motion(one, zero) == pytest.approx(0.5)
    assert motion(zero, one * 1000**0.5) == pytest.approx(0.5, rel=1e-5)


def test_typical_intensity_leaves_out_the_ends():
    values = torch.cat([torch.zeros(5), torch.full((90,), 0.6), torch.full((5,), 50.0)])
    assert typical_intensity(values) == pytest.approx(0.6)
    assert typical_intensity(torch.zeros(10)) == 0.01
