"""Line integrals of a field along rays: y = sum_j w_j mu(x_j), w in mm, mu in 1/mm, y dimensionless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.space.domain import Domain
from scanfield.space.projection import ProjectionGeometry
from scanfield.space.rays import march
from scanfield.space.samples import Samples


@dataclass(frozen=True)
class LineIntegral:
    """The line integrals of a CT scan, sampled.

    Args:
        geometry: the scan.
        domain: box to which rays are clipped; the field is taken as zero outside.
        count: samples per ray. The value converges with it and does not scale with it.
        poses: gives where the object was in every view, (views, 4, 4) world transforms, such as
            `space.view_poses.ViewPoses`; called anew for every batch, so that it can be fitted with the field.
    """

    geometry: ProjectionGeometry
    domain: Domain
    count: int
    poses: Callable[[], Float[Tensor, "views 4 4"]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.geometry.shape

    def samples(self, index: Int[Tensor, " m"], generator: torch.Generator | None = None) -> Samples:
        """Points on the rays of the flat indices; stratified random with a generator, midpoints without."""
        pose = None if self.poses is None else self.poses()
        return march(self.geometry.rays(index, pose=pose), self.domain, self.count, generator)

    def reduce(self, values: Float[Tensor, "m s c"], samples: Samples) -> Float[Tensor, "m *out"]:
        """Weighted sum along each ray; one channel gives (m,), several give (m, c)."""
        assert samples.weight is not None
        integral = (values * samples.weight[..., None]).sum(dim=-2)
        return integral.squeeze(-1) if integral.shape[-1] == 1 else integral
