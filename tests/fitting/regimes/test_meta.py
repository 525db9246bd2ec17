"""Gradients through gradient steps: against formulas, against autograd and finite differences, and in a whole fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.meta import LearnedRates, adapt, meta_loss
from scanfield.run import Run

RATE = 0.1


def quadratic(theta: torch.Tensor):
    """support = sum theta^2 v^2 / 2: one step multiplies v by 1 - a theta^2."""
    return lambda now: (theta.square() * now["v"].square()).sum() / 2


def test_steps_are_those_of_the_formula():
    theta, v = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([4.0, -5.0, 6.0]).double()
    found = adapt(quadratic(theta), {"v": v}, rates=RATE, steps=3)["v"]
    assert torch.allclose(found, v * (1 - RATE * theta.square()) ** 3)
    assert torch.equal(adapt(quadratic(theta), {"v": v}, rates=RATE, steps=0)["v"], v)
    each = {"v": torch.tensor([0.0, 0.1, 0.2]).double()}
    assert torch.allclose(adapt(quadratic(theta), {"v": v}, rates=each, steps=1)["v"], v * (1 - each["v"] * theta**2))


def outer(theta: torch.Tensor, second_order: bool) -> torch.Tensor:
    """query = sum (v_2 - theta)^2 with v_0 = theta."""
    found = adapt(quadratic(theta), {"v": 1.0 * theta}, rates=RATE, steps=2, second_order=second_order)["v"]
    return (found - theta).square().sum()


def test_second_order_gradient_is_that_of_the_closed_form_and_first_order_is_not():
    theta = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(outer(theta, True), theta)
    closed = (theta * (1 - RATE * theta.square()) ** 2 - theta).square().sum()
    (expected,) = torch.autograd.grad(closed, theta)
    assert torch.allclose(found, expected)
    (first,) = torch.autograd.grad(outer(theta, False), theta)
    # v_2 = theta - a (g_0 + g_1) with constant g: dv_2 / dtheta = 1, so the gradient of (v_2 - theta)^2 vanishes.
    assert torch.allclose(first, torch.zeros(3).double()) and not torch.allclose(first, expected, rtol=0.1)


def test_gradient_through_a_network_s_weights_is_that_of_differences():
    draws = torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=draws, dtype=torch.float64))
    x, y = (torch.randn(6, n, generator=draws, dtype=torch.float64) for n in (2, 1))
    names = [name for name, _ in network.named_parameters()]

    def query(*base: torch.Tensor) -> torch.Tensor:
        start = dict(zip(names, base, strict=True))
        fast = adapt(
            lambda now: (functional_call(network, now, (x,)) - y).square().mean(),
            start,
            rates=0.05,
            steps=2,
            second_order=True,
        )
        return (functional_call(network, fast, (x + 1,)) - y).abs().sum()

    assert torch.autograd.gradcheck(query, [p.detach().clone().requires_grad_() for p in network.parameters()])


def test_gradient_to_learned_rates():
    theta, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double()
    rates = LearnedRates({"v": torch.zeros(2).double()}, 0.1)
    found = adapt(quadratic(theta), {"v": v}, rates=rates(), steps=1, second_order=True)["v"]
    found.sum().backward()
    assert torch.allclose(found.detach(), v * (1 - 0.1 * theta**2))
    assert torch.allclose(next(rates.parameters()).grad, -0.1 * theta**2 * v)  # d/dl of exp(l) = a


def test_steps_of_a_batch_do_not_depend_on_its_size():
    theta = torch.tensor(2.0)
    one = adapt(quadratic(theta), {"v": torch.ones(1)}, rates=RATE, steps=2)["v"]
    many = adapt(quadratic(theta), {"v": torch.ones(50)}, rates=RATE, steps=2)["v"]
    assert torch.equal(many, one.expand(50))


def test_nothing_stays_attached_to_a_first_order_look():
    theta = torch.tensor(2.0, requires_grad=True)
    with torch.no_grad():
        found = adapt(quadratic(theta), {"v": torch.ones(3)}, rates=RATE, steps=2)["v"]
    assert torch.allclose(found, torch.full((3,), (1 - 4 * RATE) ** 2))


def sinusoids(second_order: bool) -> tuple[list[float], nn.Module]:
    """MAML on random sine waves: after five steps on ten points the rest should be known."""
    run = Run(seed=0)
    network = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=run.generator("weights")))

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        phase = 3 * torch.rand(1, generator=run.generator("tasks"))
        x = 6 * torch.rand(20, 1, generator=run.generator("tasks")) - 3
        return x, torch.sin(x + phase)

    def error(now, batch, half):
        x, y = (part[half] for part in batch)
        return (functional_call(network, now, (x,)) - y).square().mean()

    loss = meta_loss(
        lambda batch: dict(network.named_parameters()),
        lambda now, batch: error(now, batch, slice(10)),
        lambda now, batch: error(now, batch, slice(10, 20)),
        rates=lambda: 0.05,
        steps=3,
        second_order=second_order,
    )
    log = minimise("maml", [ParameterGroup("base", list(network.parameters()), 5e-3)], loss, draw, FitConfig(200), run)
    return [line["loss"]["after"] for line in log.history], network


def test_the_loss_falls_and_the_orders_differ():
    second, network = sinusoids(True)
    first, other = sinusoids(False)
    for history in (first, second):
        assert sum(history[-40:]) < 0.5 * sum(history[:40])
    assert not torch.equal(network[0].weight, other[0].weight)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="negative"):
        adapt(quadratic(torch.ones(1)), {"v": torch.ones(1)}, rates=RATE, steps=-1)
    with pytest.raises(ValueError, match="differ"):
        adapt(quadratic(torch.ones(1)), {"v": torch.ones(1)}, rates={"w": torch.ones(1)}, steps=1)
    with pytest.raises(ValueError, match="positive"):
        LearnedRates({"v": torch.ones(1)}, 0.0)
