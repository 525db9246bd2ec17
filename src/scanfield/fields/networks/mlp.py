"""Multilayer perceptrons with plain activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scanfield.fields.networks.layers import FullyConnected
from scanfield.kernels.mlp import Activation

RELU = Activation("relu")


class MLP(FullyConnected):
    """Linear layers with an activation between them; the last layer is linear.

    Weights U(-sqrt(6 / fan_in), sqrt(6 / fan_in)) (He et al. 2015, for ReLU), the last layer's with 3 instead of 6;
    biases zero.

    Args:
        widths: sizes of input, hidden layers and output.
        generator: draws the initial weights.
        activation: applied after every layer but the last.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        generator: torch.Generator,
        activation: Activation | Callable[[Tensor], Tensor] = RELU,
    ) -> None:
        super().__init__(widths, activation)
        with torch.no_grad():
            for k, layer in enumerate(self.linears):
                gain = 6.0 if k < len(self.layers) - 1 else 3.0
                bound = (gain / layer.in_features) ** 0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
