"""Where on the detector the ray through a point arrives: the inverse of `ProjectionGeometry.rays_at`.

Notation (gantry frame): S source, C detector centre, u and v pixel steps, h the part of C - S along v, a = C - S - h.
For a parallel beam x - C = alpha u + beta v + gamma d; for a source x - S = alpha u + beta v + gamma a, so gamma is
the depth of x as a fraction of the detector's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.space.projection import ProjectionGeometry


@dataclass(frozen=True, eq=False)
class DetectorPixels:
    """Fractional pixel positions of points in every view.

    Args:
        row, column: detector position in pixels, unbounded; pixel centres at integers.
        distance_mm: from the source, along the central ray (flat detector) or within the fan's plane (arc detector);
            infinite for a parallel beam.
    """

    row: Float[Tensor, "views n"]
    column: Float[Tensor, "views n"]
    distance_mm: Float[Tensor, "views n"]

    def inside(self, geometry: ProjectionGeometry) -> Bool[Tensor, "views n"]:
        """Whether the points are in front of the source and project onto the detector (pixel edges included)."""
        _, rows, columns = geometry.shape
        across = (self.column >= -0.5) & (self.column <= columns - 0.5)
        return across & (self.row >= -0.5) & (self.row <= rows - 0.5) & (self.distance_mm > 0)


def detector_pixels(geometry: ProjectionGeometry, x: Float[Tensor, "n 3"]) -> DetectorPixels:
    """Where the ray through each world point (mm) meets the detector, in every view of `geometry`."""
    vectors = geometry.view_vectors()
    _, rows, columns = geometry.shape
    u, v = np.asarray(vectors.u, dtype=np.float64), np.asarray(vectors.v, dtype=np.float64)
    arc = geometry.detector.kind == "arc"
    if geometry.beam == "parallel":
        start, depth, height = vectors.centre, np.cross(v, u), np.zeros(geometry.views)
    else:
        start, to_centre = vectors.source, vectors.centre - vectors.source
        height = (to_centre * v).sum(axis=1) / (v * v).sum(axis=1)
        depth = to_centre - height[:, None] * v
    reach_mm = np.linalg.norm(depth, axis=1)
    if arc:
        u = u * (reach_mm / np.linalg.norm(u, axis=1))[:, None]
    to_gantry = np.linalg.inv(geometry.frame)
    solve = np.linalg.inv(np.stack([u, v, depth], axis=2))
    matrix = torch.tensor(solve @ to_gantry[:3, :3]).to(x)
    shift = torch.tensor(np.einsum("vij,vj->vi", solve, to_gantry[:3, 3] - start)).to(x)
    alpha, beta, gamma = (matrix @ x.T + shift[:, :, None]).unbind(dim=1)
    if geometry.beam == "parallel":
        return DetectorPixels(beta + (rows - 1) / 2, alpha + (columns - 1) / 2, torch.full_like(gamma, torch.inf))
    scale = torch.hypot(alpha, gamma) if arc else gamma
    row = (beta if geometry.beam == "fan" else beta / scale) - torch.tensor(height).to(x)[:, None]
    if arc:
        angle = torch.rad2deg(torch.atan2(alpha, gamma))
        across = (angle - geometry.detector.offset[1]) / geometry.detector.spacing[1]
    else:
        across = alpha / gamma
        normal = np.cross(v, u)
        reach_mm = np.abs((depth * normal).sum(axis=1)) / np.linalg.norm(normal, axis=1)
    distance = scale * torch.tensor(reach_mm).to(x)[:, None]
    return DetectorPixels(row + (rows - 1) / 2, across + (columns - 1) / 2, distance)
