"""Networks and their derivatives along given directions, in one pass.

Notation: a jet is the value of a function of t = (t_1 .. t_k) with some of its derivatives at t = 0, side by side as
streams: x, the k first derivatives x_i, and the second derivatives x_ij of m chosen pairs (i, j), each an (n, columns)
matrix. With x = u + sum_i t_i e_i they are the Jacobian and the Hessian. A layer maps a jet to a jet (d1, d2: the first
two derivatives of the activation at z):

    z = W h + b     z_i = W h_i        z_ij = W h_ij
    h = act(z)      h_i = d1 z_i       h_ij = d1 z_ij + d2 z_i z_j

All streams pass through one matrix product. For three outputs that costs as many operations as three reverse passes,
and a fraction of their memory traffic. Jets can be differentiated with respect to the parameters and to the input jet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scanfield.kernels.backend import Abilities, choose
from scanfield.kernels.mlp import Activation


@dataclass(frozen=True)
class Streams:
    """What a jet holds besides the value.

    Args:
        first: k, the number of directions.
        pairs: the pairs (i, j) of directions, from 0, that have a second derivative.
    """

    first: int
    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.first < 0 or any(not 0 <= i < self.first for pair in self.pairs for i in pair):
            raise ValueError(f"pairs of directions from 0 to {self.first - 1} are needed, got {self.pairs}")

    @property
    def count(self) -> int:
        """Number of streams: 1 + k + m."""
        return 1 + self.first + len(self.pairs)

    @staticmethod
    def hessian(directions: int) -> Streams:
        """Every pair i <= j of that many directions."""
        pairs = [(i, j) for i in range(directions) for j in range(i, directions)]
        return Streams(directions, tuple(pairs))


ABILITIES = {"cpu": Abilities(dtypes=(torch.float32,))}


def mlp_jets(
    x: Float[Tensor, "s n a"],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    streams: Streams,
) -> Float[Tensor, "s n b"]:
    """The jet of a network's output for the jet x of its input.

    Raises:
        ValueError: x has another number of streams.
    """
    if len(x) != streams.count:
        raise ValueError(f"the input has {len(x)} streams, {streams.count} are needed")
    if choose(ABILITIES, x) == "cpu":
        from scanfield.kernels.mlp_cpu import jets

        return jets(x, weights, biases, activation, streams)
    return reference(x, weights, biases, activation, streams)


def reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, streams: Streams
) -> Tensor:
    """`mlp_jets` in plain torch, differentiable as often as anyone likes."""
    for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        z = functional.linear(x, weight)
        value = z[0] + bias
        if activation.kind == "sine":
            omega = activation.omegas[layer]
            h, d1 = torch.sin(omega * value), omega * torch.cos(omega * value)
            d2 = -(omega**2) * h
        else:
            h, d1 = functional.relu(value), (value > 0).to(value.dtype)
            d2 = torch.zeros_like(value)
        x = through(h, d1, d2, z, streams)
    z = functional.linear(x, weights[-1])
    return torch.cat([z[:1] + biases[-1], z[1:]])


def through(h: Tensor, d1: Tensor, d2: Tensor, z: Float[Tensor, "s n w"], streams: Streams) -> Float[Tensor, "s n w"]:
    """The jet of act(z), given act(z) = h and its derivatives d1, d2; z's own value stream is not read."""
    first = z[1 : 1 + streams.first]
    second = [d1 * z[1 + streams.first + m] + d2 * first[i] * first[j] for m, (i, j) in enumerate(streams.pairs)]
    return torch.cat([h[None], d1 * first, *(s[None] for s in second)])
