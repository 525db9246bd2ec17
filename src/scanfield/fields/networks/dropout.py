"""Dropout, in training point by point, and afterwards unit by unit: every draw is a network of its own.

Notation: layer l maps h_l to W_l h_l + b_l; r the dropout rate. On the input of every layer but the first

    m ~ Bernoulli(1 - r) / (1 - r),   h_l <- m h_l

(Srivastava et al., JMLR 15:1929-1958, 2014). In training every point and unit has an m of its own: what they do to a
sum over many points averages out. A draw of the posterior (Gal & Ghahramani, ICML 2016) is one function and has one m a
unit for all points, otherwise it would be an image with white noise; that is W_l <- W_l diag(m_l): an ordinary network.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.fields.networks.layers import FullyConnected


class Dropout(nn.Module):
    """A fully connected network whose hidden units are dropped.

    Args:
        network: the network; evaluated as it is until `scatter` is called, and after `clear`.
        rate: r, the probability of dropping a unit, in [0, 1).

    Raises:
        InputError: the rate is outside of [0, 1).
    """

    def __init__(self, network: FullyConnected, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"a dropout rate lies in [0, 1), got {rate}")
        self.network, self.rate = network, rate
        self._draws: torch.Generator | None = None

    def scatter(self, generator: torch.Generator) -> None:
        """Drops units anew at every point of all following forward passes, from one number that `generator` draws.

        The masks are drawn where the points are; the same device makes the same masks again.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        self._draws = torch.Generator(self.network.linears[0].weight.device).manual_seed(seed)

    def clear(self) -> None:
        """Drops nothing from here on."""
        self._draws = None

    def thinned(self, generator: torch.Generator) -> FullyConnected:
        """One draw as an ordinary network with parameters of its own."""
        network = deepcopy(self.network)
        with torch.no_grad():
            for layer in network.linears[1:]:
                kept = torch.rand(layer.in_features, generator=generator, device=generator.device) >= self.rate
                layer.weight.mul_((kept.float() / (1 - self.rate)).to(layer.weight))
        return network

    def forward(self, h: Float[Tensor, "*n a"]) -> Float[Tensor, "*n b"]:
        if self._draws is None:
            return self.network(h)
        first, *others = self.network.linears
        h = first(h)
        for k, layer in enumerate(others):
            h = self.network.activate(h, k)
            h = layer(h * self._masks(h))
        return h

    def _masks(self, h: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """m for every number of h, with r in 256ths: a random byte each, eight at a time, the cheapest way on a CPU."""
        words = torch.empty(-(-h.numel() // 8), dtype=torch.int64, device=h.device)
        words.random_(-(2**63), None, generator=self._draws)
        dropped = min(255, round(256 * self.rate))
        kept = words.view(torch.uint8)[: h.numel()].reshape(h.shape) >= dropped
        return kept / (1 - dropped / 256)
