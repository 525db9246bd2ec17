"""Calibration against truths whose distribution is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.calibration import LEVELS, of_normal, of_samples

N = 40_000


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]:
    """Means, deviations of many sizes, and truths drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(N, generator=generator, dtype=torch.float64)
    deviation = torch.rand(N, generator=generator, dtype=torch.float64) * 2 + 0.1
    truth = mean + deviation * torch.randn(N, generator=generator, dtype=torch.float64)
    return mean, deviation, truth, generator


def test_truths_drawn_from_the_stated_distributions_are_covered_as_stated():
    mean, deviation, truth, _ = _case()
    found = of_normal(mean, deviation, truth)
    error = 4 * np.sqrt(0.25 / N)
    assert np.abs(np.array(found.observed) - np.array(LEVELS)).max() < error
    assert found.coverage == pytest.approx((0.5, 0.9, 0.95), abs=error)
    assert found.ece < error
    assert found.sharpness == pytest.approx(float(deviation.square().mean().sqrt()))
    assert found.rmse == pytest.approx(float((truth - mean).square().mean().sqrt()))
    assert found.count == N


def test_samples_of_the_stated_distributions_give_the_same_picture():
    mean, deviation, truth, generator = _case()
    samples = mean + deviation * torch.randn(200, N, generator=generator, dtype=torch.float64)
    found, exact = of_samples(samples, truth), of_normal(mean, deviation, truth)
    assert np.abs(np.array(found.observed) - np.array(exact.observed)).max() < 0.015  # quantiles of 200 samples
    assert found.nll == pytest.approx(exact.nll, rel=0.01)
    assert found.rank_correlation == pytest.approx(exact.rank_correlation, abs=0.01)


def test_deviations_of_half_the_size_cover_what_theory_says():
    """P(|z| < q / 2) with q the normal quantile: too little at every level."""
    from scipy.stats import norm

    mean, deviation, truth, _ = _case()
    found = of_normal(mean, deviation / 2, truth)
    expected = [2 * norm.cdf(norm.ppf(0.5 + p / 2) / 2) - 1 for p in LEVELS]
    assert found.observed == pytest.approx(expected, abs=0.01)
    assert found.ece == pytest.approx(0.05 * np.abs(np.array(expected) - LEVELS).sum(), abs=0.005)
    assert found.ece > 10 * of_normal(mean, deviation, truth).ece


def test_likelihood_is_best_at_the_true_deviation_and_has_its_closed_form():
    mean, deviation, truth, _ = _case()
    scores = [of_normal(mean, factor * deviation, truth).nll for factor in (0.5, 1.0, 2.0)]
    assert scores[1] == min(scores)
    one = of_normal(torch.zeros(3), torch.full((3,), 0.5), torch.tensor([0.0, 0.5, 1.0]), data_range=2.0)
    w = 0.25**2 + 1e-6
    assert one.nll == pytest.approx(0.5 * np.log(2 * np.pi * w) + (0.0625 + 0.25) / 3 / (2 * w), rel=1e-9)


def test_likelihood_and_calibration_do_not_depend_on_the_unit():
    mean, deviation, truth, _ = _case()
    found, scaled = of_normal(mean, deviation, truth), of_normal(1e-3 * mean, 1e-3 * deviation, 1e-3 * truth)
    assert scaled.nll == pytest.approx(found.nll, rel=1e-9)
    assert scaled.ece == pytest.approx(found.ece, abs=1e-9)
    assert scaled.widening == pytest.approx(1e-3 * found.widening, abs=1e-12)


def test_rank_correlation_is_one_where_errors_grow_with_the_deviation_and_undefined_where_it_is_constant():
    deviation = torch.linspace(0.1, 1, 50)
    assert of_normal(torch.zeros(50), deviation, deviation).rank_correlation == pytest.approx(1.0)
    constant = of_normal(torch.zeros(50), torch.ones(50), deviation)
    assert np.isnan(constant.rank_correlation)
    assert json.loads(json.dumps(constant.to_json(), allow_nan=False))["rank_correlation"] is None


def test_a_tiny_widening_mends_intervals_that_cannot_reach_the_border():
    """Half of the truths are zero, samples stay 1e-9 above it, as those of a sigmoid: none covered without widening.
    The other half is covered too little: of widened intervals too many and too few make up for each other."""
    mean, deviation, truth, generator = _case()
    samples = mean + deviation / 2 * torch.randn(100, N, generator=generator, dtype=torch.float64)
    air = torch.arange(N) % 2 == 0
    samples[:, air] = 1e-9 * (1 + torch.rand(100, int(air.sum()), generator=generator, dtype=torch.float64))
    truth[air] = 0.0
    found = of_samples(samples, truth)
    assert found.observed[10] == pytest.approx(0.13, abs=0.02)
    assert found.ece_widened < 0.7 * found.ece
    assert 0 < found.widening < 1e-7


def test_only_the_mask_counts():
    mean, deviation, truth, _ = _case()
    mask = torch.zeros(N, dtype=torch.bool)
    mask[::3] = True
    broken = truth.clone()
    broken[~mask] = float("nan")
    assert of_normal(mean, deviation, broken, mask) == of_normal(mean[mask], deviation[mask], truth[mask])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(1, 4)}, "at least two samples"),
        ({"truth": torch.zeros(5)}, "differ in shape"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, "mask is empty"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask has shape"),
        ({"truth": torch.full((4,), float("nan"))}, "NaN or infinite"),
        ({"truth": torch.ones(4)}, "no data range"),
        ({"data_range": -1.0}, "data range is -1"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"samples": torch.rand(3, 4), "truth": torch.arange(4.0), "mask": None, "data_range": None}
    values = good | change
    with pytest.raises(InputError, match=message):
        of_samples(values["samples"], values["truth"], values["mask"], data_range=values["data_range"])


def test_a_negative_deviation_is_refused():
    with pytest.raises(InputError, match="negative"):
        of_normal(torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.arange(3.0))
