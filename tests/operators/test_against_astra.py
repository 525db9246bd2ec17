"""Projections of voxels against ASTRA's CPU projectors: 'line' sums the exact lengths inside every pixel (Siddon),
'linear' interpolates between pixel centres (Joseph).

ASTRA's slice is an array of rows (y downwards) and columns (x upwards); its vector geometries take the direction or
position of the source, the detector's centre and the step from pixel to pixel, all in the plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scanfield.operators.siddon import project_voxels
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

pytestmark = pytest.mark.verify
astra: Any = pytest.importorskip("astra", reason="needs the extra 'verify'")

GRID = Grid.centred((40, 32, 1), (1.5, 1.5, 3.0))
ANGLES_DEG = np.array([0.0, 17.0, 45.0, 90.0, 131.0, 180.0, 244.0])  # multiples of 45 included: rays along voxel edges
OFF_AXIS_MM = 0.31  # keeps rays off the edges themselves, where a length belongs to either voxel


def geometry(beam: str) -> ProjectionGeometry:
    detector = Detector("flat", (1, 61), (3.0, 1.3 if beam == "parallel" else 2.4), (0.0, OFF_AXIS_MM))
    distances = {} if beam == "parallel" else {"source_to_axis_mm": 120.0, "source_to_detector_mm": 220.0}
    return ProjectionGeometry(beam, ANGLES_DEG, detector, GRID, **distances)  # type: ignore[arg-type]


def astra_projection(image: np.ndarray, scan: ProjectionGeometry, model: str) -> np.ndarray:
    """(views, columns) line integrals of image (nx, ny)."""
    half_x, half_y = (n * s / 2 for n, s in zip(GRID.shape[:2], GRID.spacing_mm[:2], strict=True))
    volume = astra.create_vol_geom(GRID.shape[1], GRID.shape[0], -half_x, half_x, -half_y, half_y)
    v = scan.view_vectors()
    if scan.beam == "parallel":
        angle = np.deg2rad(scan.angles_deg)
        first, kind, projector = np.stack([-np.sin(angle), np.cos(angle)], axis=1), "parallel_vec", model
    else:
        first, kind, projector = v.source[:, :2], "fanflat_vec", f"{model}_fanflat"
    vectors = np.concatenate([first, v.centre[:, :2], v.u[:, :2]], axis=1)
    number = astra.create_projector(projector, astra.create_proj_geom(kind, scan.shape[2], vectors), volume)
    try:
        _, sinogram = astra.create_sino(np.ascontiguousarray(image.T[::-1]), number)
    finally:
        astra.projector.delete(number)
    return np.asarray(sinogram)


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_exact_projection_equals_astra(beam: str) -> None:
    image = np.random.default_rng(0).random(GRID.shape[:2]).astype(np.float32)
    scan = geometry(beam)
    ours = project_voxels(torch.from_numpy(image)[..., None], GRID, scan)[:, 0].numpy()
    theirs = astra_projection(image, scan, "line")
    assert theirs.max() > 20  # rays do meet the image
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_interpolating_projection_equals_astra() -> None:
    image = np.random.default_rng(1).random(GRID.shape[:2]).astype(np.float32)
    scan = geometry("parallel")
    ours = VoxelProjector(scan, GRID).apply(torch.from_numpy(image)[..., None])[:, 0].numpy()
    theirs = astra_projection(image, scan, "linear")
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
