"""Fourier encodings of unit coordinates, with the factor of 2 pi an explicit argument.

Published systems use 2 pi, pi or 1; the same bandwidth number means three different things.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.kernels.jvp import Streams, through

Factor = Literal["2pi", "pi", "1"]
_FACTORS: dict[str, float] = {"2pi": 2 * math.pi, "pi": math.pi, "1": 1.0}


class Identity(nn.Module):
    """gamma(u) = u."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.out_dims = dims

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return u

    jet_order = 2

    def jets(self, u: Float[Tensor, "s n d"], streams: Streams) -> Float[Tensor, "s n d"]:
        """See `fields.jets`."""
        return u


class Frequency(nn.Module):
    """gamma(u) = [u, sin(a 2^k u), cos(a 2^k u)], k = 0 .. octaves - 1 (NeRF, Mildenhall et al. 2020, eq. 4: a = pi).

    Args:
        dims: number of coordinates.
        octaves: number of frequencies per coordinate.
        factor: a.
        include_input: whether u itself is part of the features.
    """

    scales: Tensor

    def __init__(self, dims: int, octaves: int, *, factor: Factor = "pi", include_input: bool = True) -> None:
        super().__init__()
        self.include_input = include_input
        scales = _FACTORS[factor] * 2.0 ** torch.arange(octaves, dtype=torch.float32)
        self.register_buffer("scales", scales, persistent=False)
        self.out_dims = dims * (2 * octaves + include_input)

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        phase = (u[..., None] * self.scales.to(u.dtype)).flatten(-2)
        parts = [u] if self.include_input else []
        return torch.cat([*parts, phase.sin(), phase.cos()], dim=-1)

    jet_order = 2

    def jets(self, u: Float[Tensor, "s n d"], streams: Streams) -> Float[Tensor, "s n e"]:
        """See `fields.jets`."""
        phase = (u[..., None] * self.scales.to(u.dtype)).flatten(-2)
        parts = [u] if self.include_input else []
        return torch.cat([*parts, *_waves(phase, streams)], dim=-1)


class GaussianFourier(nn.Module):
    """gamma(u) = [sin(a B u), cos(a B u)], rows of B ~ N(0, sigma^2 I) (Tancik et al. 2020, eq. 5: a = 2 pi).

    B is saved with the weights: a redrawn B silently destroys a prior.
    """

    frequencies: Tensor

    def __init__(
        self, dims: int, features: int, sigma: float, *, generator: torch.Generator, factor: Factor = "2pi"
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", sigma * torch.randn(features, dims, generator=generator))
        self.factor = _FACTORS[factor]
        self.out_dims = 2 * features

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        phase = self.factor * (u @ self.frequencies.to(u.dtype).T)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    jet_order = 2

    def jets(self, u: Float[Tensor, "s n d"], streams: Streams) -> Float[Tensor, "s n e"]:
        """See `fields.jets`."""
        return torch.cat(_waves(self.factor * (u @ self.frequencies.to(u.dtype).T), streams), dim=-1)


def _waves(phase: Tensor, streams: Streams) -> list[Tensor]:
    """The jets of sine and cosine."""
    sin, cos = phase[0].sin(), phase[0].cos()
    return [through(sin, cos, -sin, phase, streams), through(cos, -sin, -cos, phase, streams)]
