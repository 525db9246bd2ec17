"""The network is the published one: its number of weights, and its values as those of concatenated inputs."""

from __future__ import annotations

import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.networks.reinjected import ReinjectedNetwork


def made(activation: str = "sine", seed: int = 0, **settings: object) -> ReinjectedNetwork:
    chosen = {"dims": 4, "latent": 5, "width": 7, "layers": 5, "inject": (2, 4), "omega": 30.0} | settings
    return ReinjectedNetwork(**chosen, activation=activation, generator=torch.Generator().manual_seed(seed))


def test_the_published_layout_has_the_published_number_of_weights():
    network = made(dims=4, latent=192, width=124, layers=10, inject=(4, 7))
    assert sum(p.numel() for p in network.parameters()) == 216_137


@pytest.mark.parametrize("activation", ["sine", "relu"])
def test_values_are_those_of_concatenated_inputs(activation):
    network = made(activation).double()
    g = torch.Generator().manual_seed(1)
    u, z = (torch.randn(11, n, generator=g, dtype=torch.float64) for n in (4, 5))
    h = torch.empty(11, 0, dtype=torch.float64)
    for k, layer in enumerate(network.linears):
        weight, inputs = layer.weight, torch.cat([h, u], dim=1)
        if k in (0, 2, 4):
            weight = torch.cat([weight, network.latents[(0, 2, 4).index(k)].weight], dim=1)
            inputs = torch.cat([inputs, z], dim=1)
        h = inputs @ weight.T + layer.bias
        if k < 5:
            h = torch.sin(30 * h) if activation == "sine" else h.clamp(min=0)
    torch.testing.assert_close(network(u, z), h)


def test_a_latent_of_a_signal_serves_all_its_points():
    network = made().double()
    g = torch.Generator().manual_seed(2)
    u, z = torch.randn(3, 6, 4, generator=g).double(), torch.randn(3, 1, 5, generator=g).double()
    together = network(u, z)
    assert together.shape == (3, 6, 1)
    torch.testing.assert_close(together, network(u, z.expand(3, 6, 5)))
    torch.testing.assert_close(network(u[0], z[1:]), torch.stack([network(u[0], z[k]) for k in (1, 2)]))


def test_gradients_reach_coordinates_latent_and_weights():
    network = made(width=4, layers=3, inject=(1,), omega=3.0).double()
    g = torch.Generator().manual_seed(3)
    u, z = (torch.randn(2, n, generator=g, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    assert torch.autograd.gradcheck(lambda a, b: network(a, b), (u, z))
    network(u, z).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_initial_weights_have_the_stated_bounds_and_layers_keep_their_spread():
    network = made(latent=192, width=124, layers=10, inject=(4, 7))
    assert network.linears[0].weight.abs().max() <= 1 / 196 and network.latents[0].weight.abs().max() <= 1 / 196
    bound = (6 / 320) ** 0.5 / 30
    assert 0.9 * bound < network.linears[4].weight.abs().max() <= bound
    assert 0.9 * bound < network.latents[1].weight.abs().max() <= bound
    g = torch.Generator().manual_seed(4)
    value = network(2 * torch.rand(4000, 4, generator=g) - 1, torch.randn(1, 192, generator=g) / 192**0.5)
    assert 0.01 < value.std() < 1


def test_the_same_generator_gives_the_same_network_and_wrong_layers_are_refused():
    one, two, other = made(), made(), made(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.linears[0].weight, other.linears[0].weight)
    for inject in ((5,), (0, 2), (3, 2)):
        with pytest.raises(InputError, match="enters hidden layers between 1 and 4"):
            made(inject=inject)
