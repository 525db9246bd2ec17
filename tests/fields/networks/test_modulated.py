"""A shared sine network with shifts: against the formula, its batches, and its gradients."""

from __future__ import annotations

import torch

from scanfield.fields.networks.modulated import ModulatedSiren


def network(seed: int = 0) -> ModulatedSiren:
    draws = torch.Generator().manual_seed(seed)
    return ModulatedSiren(dims=2, width=7, layers=4, latent=3, omega=5.0, generator=draws)


def test_values_are_those_of_the_formula():
    net, draws = network().double(), torch.Generator().manual_seed(1)
    u, z = (torch.randn(n, generator=draws, dtype=torch.float64) for n in (2, 3))
    s = net.modulation.weight @ z + net.modulation.bias
    h = u
    for level, layer in enumerate(net.base.linears[:-1]):
        h = torch.sin(5.0 * (layer.weight @ h + layer.bias + s[7 * level : 7 * level + 7]))
    expected = net.base.linears[-1].weight @ h + net.base.linears[-1].bias
    assert torch.allclose(net(u, net.shifts(z)), expected)


def test_shapes_of_points_and_of_batches_of_patches():
    net, draws = network(), torch.Generator().manual_seed(1)
    u, z = torch.rand(11, 2, generator=draws), torch.randn(4, 3, generator=draws)
    assert net.shifts(z).shape == (4, 3, 7)
    together = net(u, net.shifts(z)[:, None])
    assert together.shape == (4, 11, 1)
    for b in range(4):
        each = net(u, net.shifts(z[b].expand(11, 3)))
        assert torch.allclose(together[b], each, atol=1e-6)


def test_without_a_modulation_it_is_the_base():
    net = network()
    with torch.no_grad():
        net.modulation.bias.zero_()
    u = torch.rand(9, 2, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(net(u, net.shifts(torch.zeros(3))), net.base(u), atol=1e-6)


def test_it_can_be_differentiated_twice_by_latent_and_weight():
    net, draws = network().double(), torch.Generator().manual_seed(3)
    u = torch.rand(5, 2, generator=draws, dtype=torch.float64)
    z = torch.randn(3, generator=draws, dtype=torch.float64, requires_grad=True)
    weight = net.base.linears[1].weight

    def slope(z: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad(net(u, net.shifts(z)).square().sum(), z, create_graph=True)
        return g

    assert torch.autograd.gradcheck(slope, [z])
    assert torch.autograd.grad(slope(z).sum(), weight)[0].abs().sum() > 0


def test_the_generator_decides():
    assert torch.equal(network(0).modulation.weight, network(0).modulation.weight)
    assert not torch.equal(network(0).modulation.weight, network(1).modulation.weight)
