"""What every fully connected network is: linear layers with an activation between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from scanfield.errors import InputError
from scanfield.kernels.jvp import Streams, mlp_jets
from scanfield.kernels.mlp import Activation, mlp


class FullyConnected(nn.Module):
    """Linear layers with an activation between them; the last layer is linear.

    Sine and rectifier networks run on the kernels (see `kernels.mlp`); any other activation is plain torch.

    Args:
        widths: sizes of input, hidden layers and output.
        activation: one the kernels know, or a function of the pre-activations.
    """

    def __init__(self, widths: Sequence[int], activation: Activation | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = linear_layers(widths)
        self.activation = activation

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, from input to output."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.linears]

    @property
    def biases(self) -> list[Tensor]:
        return [layer.bias for layer in self.linears]

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return 2 if isinstance(self.activation, Activation) else 0

    def forward(self, h: Float[Tensor, "*n a"]) -> Float[Tensor, "*n b"]:
        if isinstance(self.activation, Activation):
            out = mlp(h.reshape(-1, h.shape[-1]), self.weights, self.biases, self.activation)
            return out.reshape(*h.shape[:-1], -1) if h.numel() else h.new_empty(*h.shape[:-1], out.shape[-1])
        for layer in self.linears[:-1]:
            h = self.activation(layer(h))
        last: Tensor = self.linears[-1](h)
        return last

    def activate(self, z: Float[Tensor, "*n a"], layer: int) -> Float[Tensor, "*n a"]:
        """What follows layer number `layer`, from 0."""
        activation = self.activation
        return activation(z, layer) if isinstance(activation, Activation) else activation(z)

    def jets(self, h: Float[Tensor, "s n a"], streams: Streams) -> Float[Tensor, "s n b"]:
        """See `fields.jets`."""
        assert isinstance(self.activation, Activation)
        return mlp_jets(h, self.weights, self.biases, self.activation, streams)


def linear_layers(widths: Sequence[int]) -> nn.ModuleList:
    """One linear layer between each pair of neighbouring widths; draws nothing from the global generator.

    Raises:
        InputError: fewer than two widths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise InputError(f"a network needs at least two widths of at least 1, got {list(widths)}")
    return nn.ModuleList(skip_init(nn.Linear, a, b) for a, b in itertools.pairwise(widths))
