"""Straight rays, clipped to a box and marched in millimetres.

Notation: r(t) = o + t d with |d| = 1, t in mm; near <= t <= far inside the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.space.domain import SPATIAL, Domain
from scanfield.space.samples import Samples


@dataclass(frozen=True)
class Rays:
    """Rays in world millimetres; `direction` has unit length, so t is a distance from `origin`."""

    origin: Float[Tensor, "m 3"]
    direction: Float[Tensor, "m 3"]


def clip(rays: Rays, domain: Domain) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Where rays enter and leave a domain's box (slab method), t >= 0; near == far where a ray misses it."""
    assert domain.frame is not None
    frame = torch.tensor(domain.frame, dtype=rays.origin.dtype, device=rays.origin.device)
    origin = rays.origin @ frame[:3, :3].T + frame[:3, 3]
    direction = rays.direction @ frame[:3, :3].T
    near = torch.zeros_like(origin[:, 0])
    far = torch.full_like(near, torch.inf)
    for axis in domain.axes:
        if axis.name not in SPATIAL:
            continue
        o, d = origin[:, SPATIAL.index(axis.name)], direction[:, SPATIAL.index(axis.name)]
        parallel = d.abs() < 1e-9
        safe = torch.where(parallel, torch.ones_like(d), d)
        a, b = (axis.low - o) / safe, (axis.high - o) / safe
        outside = (o < axis.low) | (o > axis.high)
        enter = torch.where(parallel, torch.where(outside, torch.inf, -torch.inf), torch.minimum(a, b))
        leave = torch.where(parallel, torch.where(outside, -torch.inf, torch.inf), torch.maximum(a, b))
        near, far = torch.maximum(near, enter), torch.minimum(far, leave)
    hit = (far > near) & torch.isfinite(near) & torch.isfinite(far)
    zero = torch.zeros_like(near)
    return torch.where(hit, near, zero), torch.where(hit, far, zero)


def march(rays: Rays, domain: Domain, count: int, generator: torch.Generator | None = None) -> Samples:
    """`count` points on the part of every ray inside the box, weighted by their interval's length in mm.

    Midpoint rule without a generator; with one, a uniform random point in each interval (unbiased). The sum of
    weight times value approximates the line integral whatever `count` is.
    """
    near, far = clip(rays, domain)
    step = (far - near) / count
    place = torch.arange(count, dtype=near.dtype, device=near.device)
    if generator is None:
        place = (place + 0.5).expand(len(near), count)
    else:
        place = place + torch.rand(len(near), count, generator=generator, dtype=near.dtype).to(near.device)
    t = near[:, None] + place * step[:, None]
    x = rays.origin[:, None, :] + t[..., None] * rays.direction[:, None, :]
    return Samples(x, step[:, None].expand(len(near), count))
