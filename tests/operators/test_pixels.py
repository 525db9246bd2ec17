"""Projecting points onto the detector undoes tracing rays from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.operators.fov import field_of_view
from scanfield.operators.pixels import detector_pixels
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors

VOLUME = Grid.centred((20, 20, 6), (2.0, 2.0, 3.0))
TILT = np.eye(4)
TILT[:3, :3] = Rotation.from_euler("xyz", [25, -40, 65], degrees=True).as_matrix()
TILT[:3, 3] = [4.0, -7.0, 11.0]
SYSTEMS = [("parallel", "flat"), ("fan", "flat"), ("fan", "arc"), ("cone", "flat"), ("cone", "arc")]


def scan(beam: str, kind: str, vectors: bool = False) -> ProjectionGeometry:
    angles = np.array([0.0, 30.0, 90.0, 200.0])
    detector = Detector(kind, (5, 33), (2.7, 1.3 if kind == "arc" else 2.1), (1.4, -0.7))  # type: ignore[arg-type]
    common = {"source_to_axis_mm": 80.0, "source_to_detector_mm": 130.0, "frame": TILT}
    circular = ProjectionGeometry(beam, angles, detector, VOLUME, **common)  # type: ignore[arg-type]
    if not vectors:
        return circular
    v, jitter = circular.view_vectors(), np.random.default_rng(0).normal(0, 1, (4, 4, 3))
    moved = ViewVectors(v.source + jitter[0], v.centre + jitter[1], v.u + 0.05 * jitter[2], v.v + 0.05 * jitter[3])
    return ProjectionGeometry(beam, angles, detector, VOLUME, vectors=moved, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectors", [False, True], ids=["circular", "vectors"])
@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
def test_the_ray_through_a_points_pixel_meets_the_point(beam, kind, vectors):
    geometry = scan(beam, kind, vectors and kind == "flat")
    inside = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30 - 15
    x = inside @ torch.tensor(TILT[:3, :3]).T + torch.tensor(TILT[:3, 3])
    pixels = detector_pixels(geometry, x)
    view = torch.arange(geometry.views)[:, None].expand(-1, len(x)).reshape(-1)
    rays = geometry.rays_at(view, pixels.row.reshape(-1), pixels.column.reshape(-1), dtype=torch.float64)
    to_point = x.repeat(geometry.views, 1) - rays.origin
    assert float(torch.linalg.cross(to_point, rays.direction).norm(dim=1).max()) < 1e-6
    if kind == "arc" and beam == "fan":
        assert torch.allclose(pixels.distance_mm.reshape(-1), to_point.norm(dim=1))


def test_the_axis_projects_to_the_middle_at_the_given_distance():
    geometry = ProjectionGeometry(
        "fan", np.array([0.0, 77.0]), Detector("flat", (1, 9), (1.0, 2.0)), VOLUME, 300.0, 500.0
    )
    pixels = detector_pixels(geometry, torch.zeros(1, 3))
    assert torch.allclose(pixels.column, torch.tensor(4.0), atol=1e-5)
    assert torch.allclose(pixels.row, torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(pixels.distance_mm, torch.tensor(300.0))


def test_field_of_view_is_the_inscribed_disc_of_a_parallel_scan():
    """21 bins of 2 mm reach 21 mm to either side; the rows of 3 mm cover the middle two of six slices."""
    grid = Grid.centred((60, 60, 6), (1.0, 1.0, 3.0))
    geometry = ProjectionGeometry("parallel", np.arange(0, 180, 1.0), Detector("flat", (2, 21), (3.0, 2.0)), grid)
    x = grid.points()
    expected = (torch.hypot(x[:, 0], x[:, 1]) <= 21.0) & (x[:, 2].abs() < 3.0)
    seen = field_of_view(geometry, grid).reshape(-1)
    on_the_edge = (torch.hypot(x[:, 0], x[:, 1]) - 21.0).abs() < 0.01
    assert torch.equal(seen[~on_the_edge], expected[~on_the_edge])
    assert not bool(seen.reshape(grid.shape)[:, :, [0, 1, 4, 5]].any())


def test_field_of_view_of_a_fan_is_the_disc_its_outermost_rays_touch():
    """The ray at fan angle g passes the axis at a distance R sin g."""
    grid = Grid.centred((80, 80, 1), 1.0)
    geometry = ProjectionGeometry(
        "fan", np.arange(0, 360, 1.0), Detector("arc", (1, 40), (1.0, 0.25)), grid, 300.0, 500.0
    )
    radius = 300 * np.sin(np.deg2rad(5.0))
    reach = torch.hypot(*grid.points()[:, :2].T)
    seen = field_of_view(geometry, grid).reshape(-1)
    assert bool(seen[reach < radius - 0.05].all())
    assert not bool(seen[reach > radius + 0.05].any())
