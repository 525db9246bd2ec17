from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from scanfield.fields.networks.init import set_output_bias, shrink_output
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_siren_weights_are_those_of_the_paper():
    """Sitzmann et al. 2020, section 3.2: U(-1/n, 1/n) first, then U(-sqrt(6/n)/omega, sqrt(6/n)/omega)."""
    network = Siren([3, 256, 256, 256, 1], omegas=[30, 30, 10], generator=seeded())
    bounds = [1 / 3, (6 / 256) ** 0.5 / 30, (6 / 256) ** 0.5 / 10, (6 / 256) ** 0.5 / 10]
    for layer, bound in zip(network.layers, bounds, strict=True):
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        if layer.weight.numel() > 1000:
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        limit = layer.in_features**-0.5
        assert layer.bias.abs().max() <= limit


def test_siren_keeps_its_distribution_at_any_depth():
    """Pre-activations stay about N(0, 1). Exactly: E sin^2 of N(0, v) is (1 - e^-2v) / 2, and v = 2 E sin^2 of the
    layer before, so that v falls from 1 to the fixed point 0.797 of v = 1 - e^-2v, and stays there.
    """
    network = Siren([2, *[512] * 7, 1], omegas=[30] * 7, generator=seeded())
    for layer in network.layers:
        torch.nn.init.zeros_(layer.bias)
    h = 2 * torch.rand(2000, 2, generator=seeded(1)) - 1
    expected = 1.0
    for k, (layer, omega) in enumerate(zip(network.layers[:-1], network.omegas, strict=True)):
        before = omega * layer(h)
        h = torch.sin(before)
        if k > 0:
            assert before.var().item() == pytest.approx(expected, abs=0.06)
            assert (before.abs() > 3.5).float().mean() < 0.01
            expected = 1 - math.exp(-2 * expected)
    assert expected == pytest.approx(0.797, abs=0.01)


def test_siren_applies_each_omega_to_its_layer():
    network = Siren([2, 8, 8, 3], omegas=[5, 11], generator=seeded()).double()
    u = torch.rand(4, 2, generator=seeded(1), dtype=torch.float64)
    first, second, last = network.layers
    h = torch.sin(5 * (u @ first.weight.T + first.bias))
    h = torch.sin(11 * (h @ second.weight.T + second.bias))
    torch.testing.assert_close(network(u), h @ last.weight.T + last.bias)
    x = u.clone().requires_grad_()
    assert torch.autograd.gradcheck(network, x) and torch.autograd.gradgradcheck(network, x)


@pytest.mark.parametrize("omegas", [[], [30], [30, 30, 30]])
def test_siren_wants_one_omega_per_hidden_layer(omegas):
    with pytest.raises(ValueError, match="2 hidden layers"):
        Siren([2, 8, 8, 1], omegas=omegas, generator=seeded())


def test_mlp_weights_keep_the_variance_of_relu_activations():
    network = MLP([64, *[512] * 5, 1], generator=seeded())
    h = torch.randn(2000, 64, generator=seeded(1))
    for layer in network.layers[:-1]:
        assert (layer.bias == 0).all()
        bound = (6 / layer.in_features) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        h = functional.relu(layer(h))
        assert h.square().mean().item() == pytest.approx(1.0, abs=0.2)
    assert network.layers[-1].weight.abs().max() <= (3 / 512) ** 0.5


def test_mlp_by_hand_and_activation():
    network = MLP([2, 6, 3], generator=seeded(), activation=torch.tanh).double()
    u = torch.rand(5, 4, 2, generator=seeded(1), dtype=torch.float64)
    first, last = network.layers
    torch.testing.assert_close(network(u), torch.tanh(u @ first.weight.T) @ last.weight.T)


@pytest.mark.parametrize(
    "make",
    [lambda g: MLP([2, 8, 1], generator=g), lambda g: Siren([2, 8, 1], omegas=[30], generator=g)],
    ids=["mlp", "siren"],
)
def test_weights_come_from_the_generator_and_nothing_else(make):
    before = torch.get_rng_state()
    one, same, other = make(seeded()), make(seeded()), make(seeded(1))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert (a == 0).all() or not torch.equal(a, c)
    state = torch.get_rng_state()
    assert torch.equal(before, state), "the global generator was used"


def test_output_bias_and_near_identity_start():
    for network in (MLP([2, 32, 1], generator=seeded()), Siren([2, 32, 1], omegas=[30], generator=seeded())):
        u = torch.rand(50, 2, generator=seeded(1))
        without = network(u) - network.layers[-1].bias
        set_output_bias(network, 0.4)
        torch.testing.assert_close(network(u), without + 0.4)
        shrink_output(network, 1e-4, seeded(2))
        assert 0 < network(u).abs().max() <= 32 * 1e-4 * 4
