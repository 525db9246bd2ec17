"""Line integrals whose rays are worked out once, for fits of many steps over one scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.operators.rays import LineIntegral
from scanfield.space.rays import clip
from scanfield.space.samples import Samples

RAYS_PER_CHUNK = 2**18


@dataclass(frozen=True, eq=False)
class StoredLineIntegral:
    """`LineIntegral` with the rays in memory: the same points and weights, a tenth of the work a step.

    Args:
        of: the line integrals.
        start: (n, 3) where each ray enters the box, world mm.
        step: (n, 3) from one point to the next, world mm.
    """

    of: LineIntegral
    start: Float[Tensor, "n 3"]
    step: Float[Tensor, "n 3"]

    @staticmethod
    def make(rays: LineIntegral, device: torch.device | str = "cpu") -> StoredLineIntegral:
        """Works out all rays of a scan; 24 bytes each.

        Raises:
            ValueError: the rays follow poses, which change.
        """
        if rays.poses is not None:
            raise ValueError("rays that follow poses change with every step: use LineIntegral itself")
        parts = []
        for begin in range(0, rays.geometry.count, RAYS_PER_CHUNK):
            index = torch.arange(begin, min(begin + RAYS_PER_CHUNK, rays.geometry.count))
            found = rays.geometry.rays(index)
            near, far = clip(found, rays.domain)
            length = ((far - near) / rays.count)[:, None]
            parts.append((found.origin + near[:, None] * found.direction, length * found.direction))
        start, step = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
        return StoredLineIntegral(rays, start, step)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def samples(self, index: Int[Tensor, " m"], generator: torch.Generator | None = None) -> Samples:
        """See `LineIntegral.samples`."""
        count = self.of.count
        start, step = self.start[index], self.step[index]
        place = torch.arange(count, device=start.device, dtype=start.dtype)
        if generator is None:
            place = (place + 0.5).expand(len(start), count)
        else:
            place = place + torch.rand(len(start), count, generator=generator).to(start)
        x = start[:, None] + place[..., None] * step[:, None]
        return Samples(x, step.norm(dim=-1, keepdim=True).expand(len(start), count))

    def reduce(self, values: Float[Tensor, "m s c"], samples: Samples) -> Float[Tensor, "m *out"]:
        """See `LineIntegral.reduce`."""
        return self.of.reduce(values, samples)
