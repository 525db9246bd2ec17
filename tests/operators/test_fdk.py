"""FDK of ellipsoids with exact line integrals, in absolute units: every detector, full and short scans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.errors import InputError
from scanfield.operators import fdk
from scanfield.operators.fdk import feldkamp
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors

MU = 0.02
PHANTOM = Phantom(
    (Ellipsoid((0, 0, 0), (60, 60, 60), value=MU), Ellipsoid((20.0, 10.0, 5.0), (15, 12, 10), value=0.01))
)
GRID = Grid.centred((40, 40, 20), (4.0, 4.0, 5.0))
TURN = np.arange(0, 360, 4.0)
SHORT = np.arange(10, 10 + 180 + 28, 4.0)
TILT = np.eye(4)
TILT[:3, :3] = Rotation.from_euler("xyz", [25, -40, 65], degrees=True).as_matrix()
TILT[:3, 3] = [40.0, -70.0, 110.0]


def cone(angles: np.ndarray, detector: Detector, grid: Grid = GRID, **more: Any) -> ProjectionGeometry:
    return ProjectionGeometry(
        "cone", angles, detector, grid, source_to_axis_mm=400.0, source_to_detector_mm=650.0, **more
    )


def flat(columns: int = 70, offset: tuple[float, float] = (0.0, 0.0), rows: int = 56) -> Detector:
    return Detector("flat", (rows, columns), (4.2, 4.2), offset)


def arc(offset: tuple[float, float] = (0.0, 0.0)) -> Detector:
    return Detector("arc", (56, 70), (4.2, 0.4), offset)


def wobbling() -> ProjectionGeometry:
    """A C-arm: the detector is shifted by up to 5 mm and tilted by up to 0.03 rad from view to view."""
    ideal = cone(TURN, flat(76, rows=62))
    v, draw = ideal.view_vectors(), np.random.default_rng(0)
    u, w = v.u / 4.2, v.v / 4.2
    shift = draw.uniform(-5, 5, (len(u), 1)) * u + draw.uniform(-5, 5, (len(u), 1)) * w
    turn = Rotation.from_rotvec(draw.uniform(-0.03, 0.03, (len(u), 1)) * u)
    return replace(ideal, vectors=ViewVectors(v.source, v.centre + shift, v.u, turn.apply(v.v)))


SCANS = {
    "flat": cone(TURN, flat()),
    "flat, shifted along rows": cone(TURN, flat(70, (25.0, 0.0), rows=70)),
    "flat, displaced": cone(TURN, flat(50, (0.0, 50.0))),
    "flat, short scan": cone(SHORT, flat()),
    "flat, falling angles": cone(-TURN, flat(70, (0.0, 1.05))),
    "flat, wobbling": wobbling(),
    "arc": cone(TURN, arc()),
    "arc, short scan, shifted": cone(SHORT, arc((5.0, 0.2))),
}


def scan(geometry: ProjectionGeometry) -> torch.Tensor:
    """Exact line integrals of the phantom in the gantry's frame."""
    back = np.linalg.inv(geometry.frame)
    gantry = replace(geometry, frame=np.eye(4), volume=geometry.volume.moved(back))
    rays = gantry.rays(torch.arange(gantry.count), dtype=torch.float64)
    return PHANTOM.line_integrals(rays).reshape(gantry.shape).float()


def regions(grid: Grid, frame: np.ndarray) -> dict[str, tuple[float, torch.Tensor]]:
    """(true value, voxels): the sphere's centre, its middle plane, parts far off that plane, the small ellipsoid."""
    back = torch.tensor(np.linalg.inv(frame)).float()
    x = grid.points() @ back[:3, :3].T + back[:3, 3]
    r, height = x.norm(dim=1).reshape(grid.shape), x[:, 2].abs().reshape(grid.shape)
    small = ((x - torch.tensor([20.0, 10, 5])) / torch.tensor([15.0, 12, 10])).norm(dim=1).reshape(grid.shape)
    return {
        "centre": (MU, (r < 25) & (small > 1.6)),
        "plane": (MU, (r < 48) & (height < 4) & (small > 1.6)),
        "far": (MU, (r < 48) & (height > 25) & (small > 1.6)),
        "small": (MU + 0.01, small < 0.5),
    }


@pytest.mark.parametrize("name", SCANS)
def test_recovers_attenuation_in_absolute_units(name):
    """Within 1 % where FDK is exact, within 2 % at a cone angle of 5 degrees; air stays empty."""
    geometry = SCANS[name]
    image = feldkamp(scan(geometry), geometry, GRID)
    for where, (mu, mask) in regions(GRID, np.eye(4)).items():
        tolerance = 0.02 if where == "far" else 0.01
        assert float(image[mask].mean()) == pytest.approx(mu, rel=tolerance), where
        assert float(image[mask].std()) < 0.03 * MU, where
    radius = GRID.points()[:, :2].norm(dim=1).reshape(GRID.shape)
    assert abs(float(image[(radius > 68) & (radius < 85)].mean())) < 0.02 * MU


@pytest.mark.parametrize("kind", ["flat", "arc"])
def test_a_short_scan_equals_a_full_one(kind):
    detector = flat() if kind == "flat" else arc()
    full, short = (feldkamp(scan(g), g, GRID) for g in (cone(TURN, detector), cone(SHORT, detector)))
    inside = GRID.points().norm(dim=1).reshape(GRID.shape) < 50
    assert float((full - short)[inside].square().mean().sqrt()) < 0.01 * MU


def test_an_oblique_mirrored_grid_in_its_gantry_and_chunks_of_voxels(monkeypatch):
    monkeypatch.setattr(fdk, "SAMPLES_PER_CHUNK", 5000)
    mirrored = GRID.affine @ np.array([[-1.0, 0, 0, 39], [0, 1, 0, 0.4], [0, 0, 1, 0.2], [0, 0, 0, 1]])
    grid = Grid(GRID.shape, TILT @ mirrored)
    geometry = cone(TURN, flat(), grid, frame=TILT)
    image = feldkamp(scan(geometry), geometry, grid)
    for mu, mask in regions(grid, TILT).values():
        assert float(image[mask].mean()) == pytest.approx(mu, rel=0.02)


def test_windows_damp_noise_and_keep_values():
    geometry = SCANS["flat"]
    values = scan(geometry)
    noisy = values + 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    mu, mask = regions(GRID, np.eye(4))["plane"]
    spread = []
    for window in ("ram-lak", "shepp-logan", "cosine", "hann"):
        image = feldkamp(noisy, geometry, GRID, window=window)
        assert float(image[mask].mean()) == pytest.approx(mu, rel=0.01)
        spread.append(float(image[mask].std()))
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.7 * spread[0]


def test_one_row_is_the_fan_beam_reconstruction_of_its_plane():
    from scanfield.operators.fbp import filtered_backprojection

    grid = Grid.centred((60, 60, 1), (2.5, 2.5, 2.0))
    one = cone(TURN, Detector("flat", (1, 100), (2.0, 2.6)), grid)
    values = scan(one)
    fan = replace(one, beam="fan")
    torch.testing.assert_close(
        feldkamp(values, one, grid), filtered_backprojection(values, fan, grid), atol=1e-6, rtol=1e-4
    )


def test_what_cannot_be_reconstructed_is_refused():
    good = SCANS["flat"]
    v, zeros = good.view_vectors(), torch.zeros(good.shape)
    climbing = np.linspace(0, 60, good.views)[:, None] * v.v / 4.2
    for change, words in (
        ({"centre": v.centre + climbing, "source": v.source + climbing}, "moves along the axis"),
        ({"v": v.v + 0.3 * v.u}, "tilted"),
        ({"source": v.source * np.linspace(0.8, 1.2, good.views)[:, None]}, "distances"),
        ({"source": v.source + 10 * v.u}, "does not face"),
    ):
        with pytest.raises(InputError, match=words):
            feldkamp(zeros, replace(good, vectors=replace(v, **change)), GRID)
    with pytest.raises(InputError, match="FDK reconstructs cone beams"):
        feldkamp(zeros, replace(good, beam="fan"), GRID)
    with pytest.raises(InputError, match="their geometry"):
        feldkamp(zeros[:3], good, GRID)
    with pytest.raises(InputError, match="no voxel of the grid"):
        feldkamp(zeros, good, GRID.moved(np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 400], [0, 0, 0, 1]])))
