"""Output heads: from a network's plain numbers to physical units.

They carry derivatives along (`fields.jets`) by their own first two derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from scanfield.kernels.jvp import Streams, through


class LinearHead(nn.Module):
    """scale * z + offset."""

    def __init__(self, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z + self.offset

    jet_order = 2

    def jets(self, z: Tensor, streams: Streams) -> Tensor:
        return torch.cat([self(z[:1]), self.scale * z[1:]])


class SigmoidHead(nn.Module):
    """scale / (1 + exp(-z)): values in (0, scale). What lies above `scale` is clipped."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.sigmoid()

    jet_order = 2

    def jets(self, z: Tensor, streams: Streams) -> Tensor:
        h = z[0].sigmoid()
        d1 = h * (1 - h)
        return self.scale * through(h, d1, d1 * (1 - 2 * h), z, streams)


class SoftplusHead(nn.Module):
    """scale * log(1 + exp(z)): positive, unbounded."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * functional.softplus(z)

    jet_order = 2

    def jets(self, z: Tensor, streams: Streams) -> Tensor:
        d1 = z[0].sigmoid()
        return self.scale * through(functional.softplus(z[0]), d1, d1 * (1 - d1), z, streams)


class SquareplusHead(nn.Module):
    """scale * (z + sqrt(z^2 + 4)) / 2: positive, unbounded, with algebraic tails.

    s(z) s(-z) = 1 gives the negative side, where the sum itself would cancel to zero.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        size = torch.where(z < 0, -z, z)
        large = (size + (z * z + 4).sqrt()) / 2
        return self.scale * torch.where(z < 0, 1 / large, large)

    jet_order = 2

    def jets(self, z: Tensor, streams: Streams) -> Tensor:
        root = (z[0] * z[0] + 4).sqrt()
        return torch.cat(
            [self(z[:1]), self.scale * through(z[0], 0.5 + z[0] / (2 * root), 2 / root**3, z, streams)[1:]]
        )
