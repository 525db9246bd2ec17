"""What every sampler and operator speaks: points with their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.space.domain import Domain


@dataclass(frozen=True)
class Samples:
    """Points in the world at which a field is asked for its value.

    Args:
        x: world coordinates, (..., w): x, y, z in mm, then further axes.
        weight: quadrature weight of each point (mm on a ray), or None.
        cell: size of the voxel or PSF each point stands for, or None.
        lattice: shape of the lattice the points form (for windowed losses and finite differences), or None.
    """

    x: Float[Tensor, "*n w"]
    weight: Float[Tensor, "*n"] | None = None
    cell: Float[Tensor, "*n w"] | None = None
    lattice: tuple[int, ...] | None = None


def random_index(count: int, size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """`size` indices drawn uniformly from 0..count-1, with replacement."""
    return torch.randint(count, (size,), generator=generator)


def random_points(domain: Domain, size: int, generator: torch.Generator) -> Float[Tensor, "size w"]:
    """World points drawn uniformly from a domain's box."""
    half = torch.tensor(domain.extent, dtype=torch.float64) / 2 / torch.from_numpy(domain.half_scale())
    u = (2 * torch.rand(size, domain.dims, generator=generator) - 1) * half.float()
    return domain.from_unit(u)
