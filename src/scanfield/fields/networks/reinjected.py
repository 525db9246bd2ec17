"""A network on coordinates and a latent that sees both again at later layers (Wiesner et al., MICCAI 2022).

The coordinates u enter every layer beside the layer before, the latent z enters the first layer and those of `inject`:

    h_1     = a(W_0 u + A_0 z + b_0)
    h_{l+1} = a(W_l [h_l, u] + A_l z + b_l)           A_l = 0 where z does not enter
    value   = W_L [h_L, u] + b_L

a(x) = sin(omega x), or max(0, x). A signal's latent is the same at all of its points: A z is evaluated once for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from scanfield.errors import InputError

NetworkActivation = Literal["sine", "relu"]


class ReinjectedNetwork(nn.Module):
    """Coordinates and a latent -> one value.

    Initial weights: U(-b, b) with n the number of inputs of a layer, latent included. Sine: b = 1/n in the first layer,
    sqrt(6/n)/omega in the others (Sitzmann et al. 2020). Rectifier: b = sqrt(6/n), the last layer's sqrt(3/n) (He et
    al. 2015). Biases: b = 1/sqrt(n).

    Args:
        dims: number of coordinates.
        latent: size of z.
        width: units of a hidden layer.
        layers: number of hidden layers.
        inject: numbers of the hidden layers, counted from 0, that the latent enters again after the first.
        activation: 'sine' or 'relu'.
        omega: frequency of all sine layers; rectifiers have none.
        generator: draws the initial weights.

    Raises:
        InputError: the latent enters a layer that does not exist, or the layers are not in their order.
    """

    def __init__(
        self,
        *,
        dims: int,
        latent: int,
        width: int,
        layers: int,
        inject: Sequence[int],
        activation: NetworkActivation,
        omega: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        entered = (0, *inject)
        if list(entered) != sorted(set(entered)) or entered[-1] >= layers:
            raise InputError(
                f"the code enters hidden layers between 1 and {layers - 1} again, each once and in order, got {inject}"
            )
        self.entered, self.activation, self.omega = entered, activation, omega
        inputs = [dims, *[width + dims] * layers]
        self.linears = nn.ModuleList(skip_init(nn.Linear, n, width if k < layers else 1) for k, n in enumerate(inputs))
        self.latents = nn.ModuleList(skip_init(nn.Linear, latent, width, bias=False) for _ in entered)
        with torch.no_grad():
            for k, layer in enumerate(self.linears):
                assert isinstance(layer, nn.Linear)
                n = inputs[k] + (latent if k in entered else 0)
                bound = self._bound(n, first=k == 0, last=k == layers)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-(n**-0.5), n**-0.5, generator=generator)
                if k in entered:
                    own = self.latents[entered.index(k)]
                    assert isinstance(own, nn.Linear)
                    own.weight.uniform_(-bound, bound, generator=generator)

    def _bound(self, n: int, *, first: bool, last: bool) -> float:
        if self.activation == "sine":
            return 1 / n if first else (6 / n) ** 0.5 / self.omega
        return ((3 if last else 6) / n) ** 0.5

    def forward(self, u: Float[Tensor, "*#n d"], z: Float[Tensor, "*#n k"]) -> Float[Tensor, "*n 1"]:
        """Values at coordinates; the leading axes of `u` and `z` are broadcast against each other."""
        h = u
        for k, layer in enumerate(self.linears):
            before: Tensor = layer(h if k == 0 else torch.cat([h, u], dim=-1))
            if k in self.entered:
                before = before + self.latents[self.entered.index(k)](z)
            if k == len(self.linears) - 1:
                return before
            h = torch.sin(self.omega * before) if self.activation == "sine" else before.relu()
            if h.shape[:-1] != u.shape[:-1]:
                u = u.expand(*h.shape[:-1], -1)
        raise AssertionError("a network has an output layer")
