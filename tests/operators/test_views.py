"""Dense views of a smooth blob, whose sinogram is known at every angle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError
from scanfield.operators.views import closing_deg, dense_geometry, interpolate_views
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((40, 40, 1), 1.0)


def scan(beam: str, angles_deg: np.ndarray, offset_mm: float = 0.0, **more) -> ProjectionGeometry:
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        angles_deg,
        Detector("flat", (1, 101), (1.0, 1.0), (0.0, offset_mm)),
        GRID,
        source_to_axis_mm=100.0,
        source_to_detector_mm=150.0,
        **more,
    )


def blob_sinogram(geometry: ProjectionGeometry) -> torch.Tensor:
    """Line integrals of exp(-|x - c|^2 / 2 w^2), c = (10, -6), w = 6 mm."""
    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    to_centre = torch.tensor([10.0, -6.0, 0.0], dtype=torch.float64) - rays.origin
    s = torch.linalg.cross(to_centre, rays.direction).norm(dim=1)
    return (6 * np.sqrt(2 * np.pi) * torch.exp(-(s**2) / 72)).reshape(geometry.shape).float()


UNEQUAL = np.cumsum(np.tile([3.0, 5.0, 4.0], 15)) - 3.0  # 45 views from 0 to 177
CASES = {
    "parallel, half turn": (scan("parallel", np.arange(45) * 4.0 + 11), 180.0),
    "parallel, offset": (scan("parallel", np.arange(45) * 4.0, 0.25), 180.0),
    "parallel, falling angles": (scan("parallel", -np.arange(45) * 4.0), 180.0),
    "parallel, unequal": (scan("parallel", UNEQUAL), 180.0),
    "parallel, full turn": (scan("parallel", np.arange(90) * 4.0), 360.0),
    "parallel, limited": (scan("parallel", np.arange(30) * 4.0), None),
    "fan, full turn": (scan("fan", np.arange(90) * 4.0, 0.7), 360.0),
    "fan, short": (scan("fan", np.arange(60) * 4.0), None),
}


@pytest.mark.parametrize("name", CASES)
def test_dense_views_contain_the_measured_ones_and_close(name):
    geometry, turn = CASES[name]
    assert closing_deg(geometry) == turn
    dense = dense_geometry(geometry, 4)
    assert np.array_equal(dense.angles_deg[::4], geometry.angles_deg)
    assert dense.views == (4 * geometry.views if turn else 4 * (geometry.views - 1) + 1)
    steps = np.diff(dense.angles_deg)
    assert np.allclose(np.diff(geometry.angles_deg) / 4, steps[: 4 * (geometry.views - 1) : 4])
    if turn:
        assert abs(abs(dense.angles_deg[-1] + steps[-1] - dense.angles_deg[0]) - turn) < 1.01 * abs(steps).max()


@pytest.mark.parametrize(("kind", "tolerance"), [("linear", 0.02), ("cubic", 0.001)])
@pytest.mark.parametrize("name", CASES)
def test_interpolated_views_follow_the_true_sinogram(name, kind, tolerance):
    geometry, turn = CASES[name]
    measured = Measurement(blob_sinogram(geometry), geometry, source="blob")
    filled = interpolate_views(measured, 4, kind=kind)
    assert torch.equal(filled.values[::4], measured.values)
    truth = blob_sinogram(filled.acquisition)
    worst = (filled.values - truth).abs().amax(dim=(1, 2)) / truth.max()
    if turn is None:
        worst = worst[12:-12]  # a spline is less sure at free ends
    elif "unequal" in name:
        tolerance = 2 * tolerance
    assert float(worst.max()) < tolerance


def test_one_dense_view_per_view_changes_nothing():
    geometry, _ = CASES["fan, short"]
    assert np.array_equal(dense_geometry(geometry, 1).angles_deg, geometry.angles_deg)


def test_what_cannot_be_made_dense_is_refused():
    good = scan("parallel", np.arange(8) * 20.0)
    with pytest.raises(InputError, match="order of their angles"):
        dense_geometry(scan("parallel", np.array([0.0, 50.0, 20.0])), 2)
    with pytest.raises(InputError, match="at least two views"):
        dense_geometry(scan("parallel", np.array([3.0])), 2)
    with pytest.raises(InputError, match="at least 1"):
        dense_geometry(good, 0)
    with pytest.raises(InputError, match="vectors"):
        dense_geometry(replace(good, vectors=good.view_vectors()), 2)
