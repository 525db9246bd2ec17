"""Hypernetworks (Ha, Dai & Le, ICLR 2017): a condition becomes the weights of a small network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.fields.networks.layers import FullyConnected
from scanfield.fields.networks.mlp import MLP
from scanfield.kernels.mlp import Activation


@dataclass(frozen=True, eq=False)
class GeneratedMlp:
    """Networks of a batch, each with weights of its own.

    Args:
        weights: of every layer, (b, outputs, inputs).
        biases: of every layer, (b, outputs).
        activation: between the layers.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    activation: Activation

    def __call__(self, h: Float[Tensor, "b n a"]) -> Float[Tensor, "b n c"]:
        """Each network at its own points."""
        for level, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            if level < len(self.weights) - 1:
                h = self.activation(h, level)
        return h


class HyperNetwork(nn.Module):
    """Conditions -> the weights of fully connected networks of one shape.

        [W_1, b_1, ..., W_L, b_L](z) = theta + M g(z)

    theta are the weights of `target`, learned; g is a network, M starts small: at first every condition makes nearly
    the network that `target` is.

    Args:
        target: the network whose shape, first weights and activation are taken.
        size: numbers of a condition.
        hidden: widths of g's hidden layers.
        generator: draws g and M.
        scale: of M at the start, in units of its usual initialisation.

    Raises:
        ValueError: the target's activation is none of `kernels.mlp.Activation`.
    """

    def __init__(
        self,
        target: FullyConnected,
        size: int,
        *,
        hidden: Sequence[int],
        generator: torch.Generator,
        scale: float = 1e-2,
    ) -> None:
        super().__init__()
        if not isinstance(target.activation, Activation):
            raise ValueError("a generated network needs an activation of kernels.mlp.Activation")
        self.activation = target.activation
        self.widths = [target.linears[0].in_features, *(layer.out_features for layer in target.linears)]
        flat = [part.detach().flatten() for layer in target.linears for part in (layer.weight, layer.bias)]
        self.theta = nn.Parameter(torch.cat(flat))
        self.network = MLP([size, *hidden, len(self.theta)], generator=generator)
        with torch.no_grad():
            self.network.linears[-1].weight.mul_(scale)

    def forward(self, z: Float[Tensor, "b k"]) -> GeneratedMlp:
        """The networks of a batch of conditions."""
        flat = self.theta + self.network(z)
        weights, biases, start = [], [], 0
        for inputs, outputs in itertools.pairwise(self.widths):
            weights.append(flat[:, start : start + outputs * inputs].reshape(-1, outputs, inputs))
            start += outputs * inputs
            biases.append(flat[:, start : start + outputs])
            start += outputs
        return GeneratedMlp(weights, biases, self.activation)
