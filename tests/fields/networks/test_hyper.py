"""Weights that a network makes."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from scanfield.fields.networks.hyper import HyperNetwork
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets():
    return [Siren([3, 6, 5, 2], omegas=[4.0, 4.0], generator=draws()), MLP([3, 6, 5, 2], generator=draws())]


@pytest.mark.parametrize("target", targets(), ids=["sine", "relu"])
def test_a_generated_network_is_the_explicit_one_with_its_weights(target):
    hyper = HyperNetwork(target, 4, hidden=[8], generator=draws(1), scale=1.0)
    z, x = torch.randn(3, 4, generator=draws(2)), torch.randn(3, 7, 3, generator=draws(3))
    made = hyper(z)
    found = made(x)
    assert found.shape == (3, 7, 2)
    for k in range(3):
        weights = {f"layers.{level}.weight": w[k] for level, w in enumerate(made.weights)}
        weights |= {f"layers.{level}.bias": b[k] for level, b in enumerate(made.biases)}
        torch.testing.assert_close(found[k], functional_call(target, weights, (x[k],)))
    assert not torch.allclose(made(x[:1].expand(3, 7, 3))[0], made(x[:1].expand(3, 7, 3))[1]), "by condition"


@pytest.mark.parametrize("target", targets(), ids=["sine", "relu"])
def test_at_first_it_makes_nearly_the_target(target):
    x, z = torch.randn(2, 9, 3, generator=draws(4)), torch.randn(2, 4, generator=draws(5))
    expected = target(x)
    exact = HyperNetwork(target, 4, hidden=[8], generator=draws(1), scale=0.0)
    torch.testing.assert_close(exact(z)(x), expected)
    near = HyperNetwork(target, 4, hidden=[8], generator=draws(1))(z)(x)
    assert 0 < (near - expected).abs().max() < 0.2 * expected.abs().max()


def test_gradients_reach_the_condition_the_target_and_the_points():
    hyper = HyperNetwork(targets()[0], 4, hidden=[8], generator=draws(1)).double()
    z = torch.randn(2, 4, generator=draws(2)).double().requires_grad_()
    x = torch.randn(2, 3, 3, generator=draws(3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, x: hyper(z)(x), (z, x))
    hyper(z)(x).sum().backward()
    assert all(parameter.grad is not None for parameter in hyper.parameters())


def test_activations_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match="activation"):
        HyperNetwork(MLP([3, 4, 1], generator=draws(), activation=torch.tanh), 2, hidden=[4], generator=draws())
