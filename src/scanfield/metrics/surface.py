"""How far two surfaces are apart, by points drawn uniformly on both.

Notation: A, B point sets, d(a, B) distance from a to the nearest point of B, all in mm.

    mean distance A -> B   = mean over a of d(a, B)
    chamfer                = average of the two mean distances            (not squared)
    Hausdorff, 95 %        = the larger of the two 95th percentiles of d

The distance between two samples of the same surface is not zero: `floor_mm` estimates it, about half the distance
between neighbouring samples; differences below it say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from scanfield.space.mesh import Mesh


@dataclass(frozen=True)
class SurfaceDistance:
    """Agreement of a surface with a reference; every value in mm."""

    chamfer_mm: float
    hausdorff95_mm: float
    hausdorff_mm: float
    to_reference_mm: float
    from_reference_mm: float
    floor_mm: float


def surface_distance(
    surface: Mesh, reference: Mesh, generator: torch.Generator, *, samples: int = 50_000
) -> SurfaceDistance:
    """Distances between two meshes, from `samples` points on each."""
    a, b, again = (mesh.sample(samples, generator)[0].double().numpy() for mesh in (surface, reference, reference))
    tree = cKDTree(b)
    forward, backward = tree.query(a)[0], cKDTree(a).query(b)[0]
    return SurfaceDistance(
        chamfer_mm=float(forward.mean() + backward.mean()) / 2,
        hausdorff95_mm=float(max(np.percentile(forward, 95), np.percentile(backward, 95))),
        hausdorff_mm=float(max(forward.max(), backward.max())),
        to_reference_mm=float(forward.mean()),
        from_reference_mm=float(backward.mean()),
        floor_mm=float(tree.query(again)[0].mean()),
    )
