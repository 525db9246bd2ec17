"""Samplers on a Gaussian posterior whose mean and covariance are known, and what a stop does to a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.hmc import HmcConfig, hmc
from scanfield.fitting.regimes.sampling import Langevin, Thinning, polynomial_decay
from scanfield.run import Run

MEAN = torch.tensor([1.0, -2.0, 0.5])
COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.1], [0.0, -0.1, 0.25]])
PRECISION = torch.linalg.inv(COVARIANCE)


def _target(copies: int = 1) -> tuple[list[nn.Parameter], Any]:
    """Two parameters that together are independent copies of N(MEAN, COVARIANCE), and U."""
    parameters = [nn.Parameter(torch.zeros(copies, 2)), nn.Parameter(torch.zeros(copies, 1))]

    def energy() -> torch.Tensor:
        difference = torch.cat(parameters, dim=1) - MEAN
        return ((difference @ PRECISION) * difference).sum() / 2

    return parameters, energy


def _langevin(run: Run, thinning: Thinning, *, copies: int = 1, precondition: bool = True) -> torch.Tensor:
    parameters, energy = _target(copies)
    sampler = Langevin(thinning, run.generator("langevin"), precondition=precondition)
    groups = [ParameterGroup("field", parameters, 0.02, optimiser=sampler)]
    minimise("chain", groups, lambda step, batch: {"U": energy()}, lambda step: None, FitConfig(thinning.steps), run)
    return sampler.draws()


def _hmc(run: Run, thinning: Thinning) -> tuple[torch.Tensor, Any]:
    parameters, energy = _target()
    draws, log = hmc("chain", parameters, energy, HmcConfig(thinning, leapfrog=8, first_step=0.3), run)
    return draws, log


def _check(draws: torch.Tensor, mean_error: float, covariance_error: float) -> None:
    assert (draws.mean(dim=0) - MEAN).abs().max() < mean_error
    assert (torch.cov(draws.T) - COVARIANCE).abs().max() < covariance_error


@pytest.mark.parametrize("precondition", [False, True])
def test_langevin_dynamics_has_the_posterior_s_mean_and_covariance(precondition):
    draws = _langevin(Run(seed=1), Thinning(400, 60, 5), copies=1000, precondition=precondition)
    assert draws.shape == (5, 3000)
    first, second = draws.split([2000, 1000], dim=1)
    _check(torch.cat([first.reshape(-1, 2), second.reshape(-1, 1)], dim=1), 0.05, 0.06)


def test_a_long_langevin_step_is_biased_as_theory_says():
    """Unadjusted: the variance of a quadratic U with curvature k at rate r is 1 / (k (1 - r k / 2)) instead of 1/k."""
    parameter, k, rate = nn.Parameter(torch.zeros(4000)), 2.0, 0.4
    run = Run(seed=2)
    sampler = Langevin(Thinning(60, 10, 10), run.generator("langevin"), precondition=False)
    groups = [ParameterGroup("field", [parameter], rate, optimiser=sampler)]

    def loss(step: int, batch: None) -> dict[str, torch.Tensor]:
        return {"U": k / 2 * parameter.square().sum()}

    minimise("chain", groups, loss, lambda step: None, FitConfig(160), run)
    assert sampler.draws().var().item() == pytest.approx(1 / (k * (1 - rate * k / 2)), rel=0.03)


def test_hmc_has_the_posterior_s_mean_and_covariance():
    draws, log = _hmc(Run(seed=1), Thinning(150, 1, 1500))
    assert draws.shape == (1500, 3)
    _check(draws, 0.08, 0.1)
    late = [line["loss"]["acceptance"] for line in log.history[2:]]
    assert 0.6 < sum(late) / len(late) < 0.99
    assert log.stopped == "steps" and log.steps == 1650


def test_scales_change_the_path_not_the_posterior():
    parameters, energy = _target()
    scales = [torch.tensor([[1.0, 0.9]]), torch.tensor([[0.5]])]
    config = HmcConfig(Thinning(150, 1, 1500), leapfrog=8, first_step=0.3)
    draws, _ = hmc("chain", parameters, energy, config, Run(seed=3), scales=scales)
    _check(draws, 0.08, 0.1)
    torch.testing.assert_close(torch.cat([p.detach().reshape(-1) for p in parameters]), draws[-1])


def _stopping(folder: Path, at: int) -> Run:
    run = Run(folder, seed=5)

    def stop(event: dict[str, Any]) -> None:
        if event.get("step", 0) >= at:
            run.stop.set()

    run.observers = (stop,)
    return run


def test_a_stopped_langevin_chain_continues_bit_for_bit(tmp_path):
    thinning = Thinning(40, 5, 20)
    whole = _langevin(Run(seed=5), thinning)
    part = _langevin(_stopping(tmp_path, 90), thinning)
    assert len(part) == 10 and torch.equal(part, whole[:10])
    assert torch.equal(_langevin(Run(tmp_path, seed=5, resume=True), thinning), whole)
    assert torch.equal(_langevin(Run(tmp_path, seed=5, resume=True), thinning), whole), "a finished chain is only read"


def test_a_stopped_hmc_chain_continues_bit_for_bit(tmp_path):
    thinning = Thinning(20, 2, 20)
    whole, log = _hmc(Run(seed=5), thinning)
    part, cut = _hmc(_stopping(tmp_path, 36), thinning)
    assert cut.stopped == "interrupted" and 0 < len(part) < 20 and torch.equal(part, whole[: len(part)])
    again, finished = _hmc(Run(tmp_path, seed=5, resume=True), thinning)
    assert torch.equal(again, whole)
    assert [line["loss"] for line in finished.history] == [line["loss"] for line in log.history]
    assert torch.equal(_hmc(Run(tmp_path, seed=5, resume=True), thinning)[0], whole)


def test_the_rate_decays_as_a_polynomial():
    schedule = polynomial_decay(100, 0.55)
    assert schedule(0, 1000) == 1.0
    assert schedule(300, 1000) == pytest.approx(4**-0.55)


@pytest.mark.parametrize(("burn_in", "every", "count"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_chains_of_impossible_lengths_are_refused(burn_in, every, count):
    with pytest.raises(InputError, match="a chain needs"):
        Thinning(burn_in, every, count)


def test_hmc_refuses_settings_and_starts_that_cannot_work():
    with pytest.raises(InputError, match="HMC needs"):
        HmcConfig(Thinning(0, 1, 1), leapfrog=0)
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(InputError, match="where the chain starts"):
        hmc("chain", [parameter], lambda: parameter.sum() * float("nan"), HmcConfig(Thinning(0, 1, 1)), Run())
