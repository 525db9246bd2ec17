"""Feature-wise linear modulation (FiLM; Perez et al., AAAI 2018): a condition scales and shifts a network's layers.

    h <- (1 + a(z)) h + b(z)                                                                                     eq. 1

with a and b linear in the condition z. Both start at zero: a new network is the one without a condition.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from scanfield.fields.networks.layers import FullyConnected


class Film(nn.Module):
    """Scales and shifts of one layer.

    Args:
        features: numbers of the condition.
        width: of the layer.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = skip_init(nn.Linear, features, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Float[Tensor, "*#n w"], z: Float[Tensor, "*#n k"]) -> Float[Tensor, "*n w"]:
        """(1 + a) h + b; the leading axes of `h` and `z` are broadcast against each other."""
        scale, shift = self.linear(z).chunk(2, dim=-1)
        return (1 + scale) * h + shift


class FilmMlp(nn.Module):
    """A fully connected network whose hidden layers are modulated before their activation.

    As the network of a `Field` it takes coordinates' features and condition side by side: [u, z].

    Args:
        network: the network without a condition.
        features: numbers of the condition.
    """

    def __init__(self, network: FullyConnected, features: int) -> None:
        super().__init__()
        self.network = network
        self.inputs = network.linears[0].in_features
        self.films = nn.ModuleList(Film(features, layer.out_features) for layer in network.linears[:-1])

    def forward(self, h: Float[Tensor, "*n a"]) -> Float[Tensor, "*n b"]:
        """Of [u, z]."""
        return self.modulated(h[..., : self.inputs], h[..., self.inputs :])

    def modulated(self, u: Float[Tensor, "*#n a"], z: Float[Tensor, "*#n k"]) -> Float[Tensor, "*n b"]:
        """Of u under z, with leading axes broadcast: a code of shape (b, 1, k) is turned into scales once, not for
        each of its points (b, n, a)."""
        *hidden, last = self.network.linears
        for level, (layer, film) in enumerate(zip(hidden, self.films, strict=True)):
            u = self.network.activate(film(layer(u), z), level)
        out: Tensor = last(u)
        return out
