"""Output heads: from a network's plain numbers to physical units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LinearHead(nn.Module):
    """scale * z + offset."""

    def __init__(self, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z + self.offset


class SigmoidHead(nn.Module):
    """scale / (1 + exp(-z)): values in (0, scale). What lies above `scale` is clipped."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z.sigmoid()


class SoftplusHead(nn.Module):
    """scale * log(1 + exp(z)): positive, unbounded."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * functional.softplus(z)


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
