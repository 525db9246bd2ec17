"""Filtered backprojection of a circular cone-beam scan, in absolute units.

L. A. Feldkamp, L. C. Davis, J. W. Kress, J. Opt. Soc. Am. A 1:612-619, 1984 (FDK). It extends the fan-beam equations of
`fbp` to rays that leave the plane of the source's circle: with p the line integrals, h the band-limited ramp along the
detector's columns, R the distance from source to axis, k the angle between a ray and the central ray,

    flat   mu(x) = sum_theta w (R / l)^2 (h * p cos k)(s, v)         s on the detector scaled to the axis, v its row
    arc    mu(x) = sum_theta w (1 / l)^2 (h_arc * p R cos k)(g, v)   a cylinder about the source; h_arc as in `fbp`

read where the ray through x meets the detector, l being the distance of x from the source along the central ray (in the
plane of the circle, to x itself, for the arc). In that plane it is exact; above and below it, values fall off with the
cone angle. The weight w is that of a fan in this plane (`fbp.ray_weights`): it does what D. L. Parker's does for a
short scan (Med. Phys. 9:254-257, 1982), also for longer ones and for displaced detectors.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from scanfield.errors import InputError
from scanfield.operators.fbp import (
    SAMPLES_PER_CHUNK,
    Window,
    circular_scan,
    columns_beyond,
    ramp_filtered,
    ray_weights,
    read_bilinear,
)
from scanfield.operators.pixels import detector_pixels
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry


def feldkamp(
    projections: Float[Tensor, "views rows columns"],
    geometry: ProjectionGeometry,
    grid: Grid,
    *,
    window: Window = "ram-lak",
) -> Float[Tensor, "n0 n1 n2"]:
    """Reconstructs attenuation (1/mm) from the line integrals of a cone beam; see the module for the equations.

    One view is filtered at a time, and voxels are read in chunks: beside the two volumes, memory does not grow.

    Args:
        projections: line integrals, dimensionless, in the geometry's shape.
        geometry: a circular cone-beam scan, flat or arc detector, of full, short (half a turn and the fan) or longer
            turn; calibrated vectors that are nearly circular are followed in the backprojection.
        grid: where to reconstruct, with any affine. A view adds nothing to voxels beyond its rows.
        window: what damps the ramp towards the Nyquist frequency; 'ram-lak' does not.

    Raises:
        InputError: another beam, a trajectory that is not circular, or a grid that no view sees.
    """
    if geometry.beam != "cone":
        raise InputError(
            f"FDK reconstructs cone beams, this is a {geometry.beam} beam",
            where="geometry.type",
            fix="use 'fbp', which takes parallel and fan beams",
        )
    if tuple(projections.shape) != geometry.shape:
        raise InputError(f"the projections have shape {tuple(projections.shape)}, their geometry {geometry.shape}")
    scan = circular_scan(geometry)
    weights = ray_weights(scan, parallel=False)
    arc = geometry.detector.kind == "arc"
    if arc:
        weights = weights * scan.source_to_axis_mm[:, None]
    below, above = columns_beyond(geometry, grid)
    rows = geometry.detector.shape[0]
    total = projections.new_zeros(grid.size)
    corners = detector_pixels(geometry, torch.tensor(grid.corners_mm()))
    if bool((corners.row.amin(1) > rows - 0.5).all() or (corners.row.amax(1) < -0.5).all()):
        raise InputError("no voxel of the grid lies within the detector's rows", where="geometry.detector")
    for view in range(geometry.views):
        one = geometry.subset(np.array([view]))
        scale = torch.tensor(weights[view]).to(projections) * _cosines(one).to(projections)
        filtered = ramp_filtered(pad(projections[view] * scale, (below, above)), scan.step, window, arc=arc)
        reference_mm = 1.0 if arc else float(scan.source_to_axis_mm[view])
        for start in range(0, grid.size, SAMPLES_PER_CHUNK):
            part = slice(start, min(start + SAMPLES_PER_CHUNK, grid.size))
            pixels = detector_pixels(one, grid.points(part.start, part.stop, device=total.device).to(projections))
            values = read_bilinear(filtered[None, None], pixels.row, pixels.column + below)[0, 0]
            seen = (pixels.row[0] >= -0.5) & (pixels.row[0] <= rows - 0.5) & (pixels.distance_mm[0] > 0)
            total[part] += torch.where(seen, values * (reference_mm / pixels.distance_mm[0]) ** 2, 0.0)
    return total.reshape(grid.shape)


def _cosines(one: ProjectionGeometry) -> Float[Tensor, "rows columns"]:
    """Of the angle between every ray of a single view and its central ray, which meets the detector at right angles."""
    vectors = one.view_vectors()
    normal = np.cross(vectors.v[0], vectors.u[0])
    if one.detector.kind == "arc":  # `centre` is the detector's nearest point in the plane of the circle
        normal = vectors.centre[0] - vectors.source[0]
        normal = normal - vectors.v[0] * (normal @ vectors.v[0]) / (vectors.v[0] @ vectors.v[0])
    central = one.frame[:3, :3] @ (normal / np.linalg.norm(normal))
    rays = one.rays(torch.arange(one.count), dtype=torch.float64)
    return (rays.direction @ torch.tensor(central)).abs().reshape(one.detector.shape)
