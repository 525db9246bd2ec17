"""A set of samples: mean, deviation and intervals, of few and of many."""

from __future__ import annotations

import pytest
import torch

from scanfield.errors import InputError
from scanfield.tasks.posterior import RESOLVING, Posterior


def _normal(count: int, shape: tuple[int, ...] = (3, 4, 1)) -> Posterior:
    return Posterior(5 + 2 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)))


def test_mean_and_deviation_are_those_of_the_samples():
    posterior = _normal(20)
    torch.testing.assert_close(posterior.mean, posterior.samples.mean(dim=0))
    torch.testing.assert_close(posterior.deviation, posterior.samples.std(dim=0))
    assert torch.equal(Posterior.of(iter(posterior.samples)).samples, posterior.samples)


def test_many_samples_give_their_quantiles():
    """Of 0, 1, .., 100 in any order the central 90 % are 5 to 95."""
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    posterior = Posterior(order.float()[:, None, None, None].expand(-1, 2, 3, 1).contiguous())
    assert posterior.resolved
    low, high = posterior.interval(0.9)
    assert low.shape == (2, 3, 1)
    torch.testing.assert_close(low, torch.full((2, 3, 1), 5.0))
    torch.testing.assert_close(high, torch.full((2, 3, 1), 95.0))


def test_quantiles_do_not_depend_on_how_many_values_are_sorted_at_a_time(monkeypatch):
    posterior = _normal(RESOLVING, (7, 5, 3))
    low, high = posterior.interval(0.5)
    monkeypatch.setattr("scanfield.tasks.posterior.QUANTILE_VALUES", 100)
    again = posterior.interval(0.5)
    assert torch.equal(again[0], low) and torch.equal(again[1], high)
    assert ((posterior.samples >= low) & (posterior.samples <= high)).float().mean() == pytest.approx(0.5, abs=0.03)


def test_few_samples_give_the_interval_of_a_normal_distribution():
    posterior = _normal(RESOLVING - 1)
    low, high = posterior.interval(0.95)
    torch.testing.assert_close(low, posterior.mean - 1.959964 * posterior.deviation)
    torch.testing.assert_close(high, posterior.mean + 1.959964 * posterior.deviation)


def test_one_sample_and_impossible_levels_are_refused():
    with pytest.raises(InputError, match="at least two samples"):
        Posterior(torch.zeros(1, 2))
    with pytest.raises(InputError, match="at least two samples"):
        Posterior.of(iter(()))
    for level in (0.0, 1.0, 90.0):
        with pytest.raises(InputError, match="between 0 and 1"):
            _normal(5).interval(level)
