"""Initialisation helpers."""

import torch

from scanfield.fields.networks.init import spread_biases
from scanfield.fields.networks.mlp import MLP


def test_spread_biases_are_uniform_by_fan_in_and_leave_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    network = MLP([4, 4000, 1], generator=generator)
    weights = [layer.weight.clone() for layer in network.layers]
    spread_biases(network, generator)
    bias = network.layers[0].bias.detach()
    assert bias.abs().max() <= 0.5 and bias.abs().max() > 0.49
    assert abs(float(bias.std()) - 0.5 / 3**0.5) < 0.01
    assert all(torch.equal(a, layer.weight) for a, layer in zip(weights, network.layers, strict=True))
