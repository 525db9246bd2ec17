"""Phantoms made of ellipsoids, whose line integrals are known exactly.

Notation: an ellipsoid with centre c, half axes h and rotation R about +z holds the points x with |p(x)| <= 1, where
p(x) = R^T (x - c) / h. A ray o + t d meets it where |p(o) + t q| = 1 with q = R^T d / h: the chord, in the ray's own
millimetres because |d| = 1, has the half length sqrt(|q|^2 - |p(o) x q|^2) / |q|^2 about t = -p(o).q / |q|^2.
Values add up where ellipsoids overlap. A half axis may be infinite: a phantom that is the same in every slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.errors import InputError
from scanfield.space.rays import Rays


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid of constant value.

    Args:
        centre_mm: world position of its centre.
        half_axes_mm: half axes along its own x, y, z; the last may be `math.inf` (an elliptic cylinder).
        rotation_deg: rotation about +z, counter-clockwise from x to y.
        value: what it adds inside, for CT in 1/mm.
    """

    centre_mm: tuple[float, float, float]
    half_axes_mm: tuple[float, float, float]
    rotation_deg: float = 0.0
    value: float = MU_WATER_PER_MM

    def __post_init__(self) -> None:
        axes = np.asarray(self.half_axes_mm, dtype=np.float64)
        if axes.shape != (3,) or not (axes > 0).all() or not np.isfinite(axes[:2]).all():
            raise InputError(f"an ellipsoid needs three positive half axes, got {self.half_axes_mm} mm")
        if not np.isfinite([*self.centre_mm, self.rotation_deg, self.value]).all() or len(self.centre_mm) != 3:
            raise InputError("an ellipsoid's centre, rotation and value must be finite numbers")

    def to_sphere(self, vectors: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """R^T v / h: world vectors in the frame in which the ellipsoid is the unit sphere."""
        angle = np.deg2rad(self.rotation_deg)
        rotation = np.array(
            [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]]
        )
        matrix = rotation / np.asarray(self.half_axes_mm)
        return vectors @ torch.tensor(matrix, dtype=vectors.dtype, device=vectors.device)

    def relative(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n 3"]:
        """p(x), the position in units of the half axes."""
        centre = torch.tensor(self.centre_mm, dtype=x.dtype, device=x.device)
        return self.to_sphere(x[..., :3] - centre)


@dataclass(frozen=True)
class Phantom:
    """A sum of ellipsoids."""

    ellipsoids: Sequence[Ellipsoid]

    def values(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n"]:
        """Values at world points."""
        total = torch.zeros_like(x[..., 0])
        for ellipsoid in self.ellipsoids:
            total = total + ellipsoid.value * (ellipsoid.relative(x).square().sum(-1) <= 1)
        return total

    def line_integrals(self, rays: Rays) -> Float[Tensor, " m"]:
        """Exact integrals along rays, from their origin on, in float64 inside.

        Raises:
            InputError: a ray runs inside an infinite ellipsoid along its axis, where the integral is infinite.
        """
        total = torch.zeros(len(rays.origin), dtype=torch.float64, device=rays.origin.device)
        for ellipsoid in self.ellipsoids:
            p = ellipsoid.relative(rays.origin.double())
            q = ellipsoid.to_sphere(rays.direction.double())
            a = q.square().sum(-1)
            if bool((a == 0).any()):
                raise InputError("a ray runs along the axis of an infinite ellipsoid", fix="give it a finite height")
            middle = -(p * q).sum(-1) / a
            half = (a - torch.linalg.cross(p, q).square().sum(-1)).clamp(min=0).sqrt() / a
            total += ellipsoid.value * ((middle + half).clamp(min=0) - (middle - half).clamp(min=0))
        return total.to(rays.origin.dtype)


def disc(
    radius_mm: float,
    *,
    value: float = MU_WATER_PER_MM,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Phantom:
    """A disc, the same in every slice."""
    return Phantom((Ellipsoid(centre_mm, (radius_mm, radius_mm, np.inf), value=value),))


# value, half axes x y z, centre x y z, rotation in degrees, in units of the radius. In the plane: the modified contrast
# of Toft, "The Radon Transform", PhD thesis, DTU 1996, appendix B; heights: Schabel's volume version of it.
_SHEPP_LOGAN = (
    (1.0, 0.6900, 0.920, 0.810, 0.00, 0.0000, 0.00, 0.0),
    (-0.8, 0.6624, 0.874, 0.780, 0.00, -0.0184, 0.00, 0.0),
    (-0.2, 0.1100, 0.310, 0.220, 0.22, 0.0000, 0.00, -18.0),
    (-0.2, 0.1600, 0.410, 0.280, -0.22, 0.0000, 0.00, 18.0),
    (0.1, 0.2100, 0.250, 0.410, 0.00, 0.3500, -0.15, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.00, 0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.046, 0.050, 0.00, -0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.023, 0.050, -0.08, -0.6050, 0.00, 0.0),
    (0.1, 0.0230, 0.023, 0.020, 0.00, -0.6060, 0.00, 0.0),
    (0.1, 0.0230, 0.046, 0.020, 0.06, -0.6050, 0.00, 0.0),
)


def shepp_logan(radius_mm: float, *, brain: float = MU_WATER_PER_MM, volume: bool = False) -> Phantom:
    """The head phantom of Shepp and Logan with Toft's modified contrast.

    Args:
        radius_mm: of the circle that the table takes as 1; the head's half axes are 0.69 and 0.92 of it.
        brain: attenuation of the brain's matrix in 1/mm; the skull has five times as much.
        volume: ellipsoids; otherwise every slice is the same.
    """
    unit = brain / 0.2
    return Phantom(
        tuple(
            Ellipsoid(
                centre_mm=(x * radius_mm, y * radius_mm, z * radius_mm if volume else 0.0),
                half_axes_mm=(a * radius_mm, b * radius_mm, c * radius_mm if volume else np.inf),
                rotation_deg=rotation,
                value=value * unit,
            )
            for value, a, b, c, x, y, z, rotation in _SHEPP_LOGAN
        )
    )
