"""Multilayer perceptrons with plain activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scanfield.fields.networks.layers import linear_layers


class MLP(nn.Module):
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
        activation: Callable[[Tensor], Tensor] = functional.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.layers = linear_layers(widths)
        with torch.no_grad():
            for k, layer in enumerate(self.linears):
                gain = 6.0 if k < len(self.layers) - 1 else 3.0
                bound = (gain / layer.in_features) ** 0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, from input to output."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, h: Float[Tensor, "*n a"]) -> Float[Tensor, "*n b"]:
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        out: Tensor = self.layers[-1](h)
        return out
