"""Initialisation beyond a network's own: part of a method's contract, often decisive.

The functions act on fully connected networks, whose last layer is linear.
"""

from __future__ import annotations

import torch

from scanfield.fields.networks.layers import FullyConnected
from scanfield.fields.networks.mlp import MLP


def set_output_bias(network: FullyConnected, value: float) -> None:
    """Starts the network at `value` (before the head), e.g. the mean of the target."""
    with torch.no_grad():
        network.linears[-1].bias.fill_(value)


def shrink_output(network: FullyConnected, bound: float, generator: torch.Generator) -> None:
    """Redraws the output weights from U(-bound, bound) and zeroes the bias: a displacement starts near identity."""
    with torch.no_grad():
        network.linears[-1].weight.uniform_(-bound, bound, generator=generator)
        network.linears[-1].bias.zero_()


def spread_biases(network: MLP, generator: torch.Generator) -> None:
    """Redraws all biases from U(-1/sqrt(n), 1/sqrt(n)), n = fan-in: the kinks of a ReLU network start spread out.

    With biases of zero they all pass through the centre of the box, which handicaps a network on plain coordinates.
    """
    with torch.no_grad():
        for layer in network.linears:
            bound = layer.in_features**-0.5
            layer.bias.uniform_(-bound, bound, generator=generator)


def normal_weights(network: FullyConnected, generator: torch.Generator) -> None:
    """Redraws all weights from N(0, 1/n), n = fan-in, and all biases from U(-1/sqrt(n), 1/sqrt(n))."""
    with torch.no_grad():
        for layer in network.linears:
            bound = layer.in_features**-0.5
            layer.weight.normal_(0.0, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
