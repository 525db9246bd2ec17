"""What every rival promises, on exact projections of a disc in an oblique, left-handed slice, or a ball in a volume."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.baselines.ct import BASELINES
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

VALUE = 0.02
DISC = Phantom((Ellipsoid((5.0, -3.0, 0.0), (11.0, 11.0, math.inf), value=VALUE),))
BALL = Phantom((Ellipsoid((5.0, -3.0, 0.0), (11.0, 11.0, 11.0), value=VALUE),))
NON_NEGATIVE = ("SIRT", "SART", "TV")


def frame() -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    out = np.eye(4)
    out[:3, :3] = matrix * np.sign(np.linalg.det(matrix))
    out[:3, 3] = (-60.0, 20.0, 140.0)
    return out


def cone() -> Measurement[ProjectionGeometry]:
    lattice = np.diag([-2.0, 2.0, 2.5, 1.0])
    lattice[:3, 3] = -lattice[:3, :3] @ [11.5, 11.5, 6.5]
    gantry_volume = Grid((24, 24, 14), lattice)
    detector = Detector("flat", (18, 28), (4.6, 4.6))
    gantry = ProjectionGeometry(
        "cone", np.arange(30) * 12.0, detector, gantry_volume, source_to_axis_mm=120.0, source_to_detector_mm=200.0
    )
    values = BALL.line_integrals(gantry.rays(torch.arange(gantry.count), dtype=torch.float64)).float()
    volume = Grid(gantry_volume.shape, frame() @ lattice)
    return Measurement(values.reshape(gantry.shape), replace(gantry, frame=frame(), volume=volume), Noise("none"))


def measurement(beam: str) -> Measurement[ProjectionGeometry]:
    if beam == "cone":
        return cone()
    lattice = np.diag([-1.5, 1.5, 4.0, 1.0])
    lattice[:3, 3] = -lattice[:3, :3] @ [15.5, 15.5, 0.0]
    gantry_volume = Grid((32, 32, 1), lattice)
    views = 45 if beam == "parallel" else 60
    angles = np.arange(views) * (180.0 if beam == "parallel" else 360.0) / views
    sizes = {} if beam == "parallel" else {"source_to_axis_mm": 120.0, "source_to_detector_mm": 200.0}
    pitch = 1.4 if beam == "parallel" else 2.4
    gantry = ProjectionGeometry(beam, angles, Detector("flat", (1, 52), (4.0, pitch)), gantry_volume, **sizes)
    values = DISC.line_integrals(gantry.rays(torch.arange(gantry.count), dtype=torch.float64)).float()
    volume = Grid(gantry_volume.shape, frame() @ lattice)
    return Measurement(values.reshape(gantry.shape), replace(gantry, frame=frame(), volume=volume), Noise("none"))


def regions(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels well inside the disc, and well outside of it."""
    inverse = torch.tensor(np.linalg.inv(frame()))
    gantry = grid.points().double() @ inverse[:3, :3].T + inverse[:3, 3]
    axes = slice(3 if grid.shape[2] > 1 else 2)
    radius = (gantry[:, axes] - torch.tensor([5.0, -3.0, 0.0])[axes]).norm(dim=-1).reshape(grid.shape)
    return radius < 8, (radius > 14) & (radius < 18)


CASES = [(name, beam) for name, baseline in BASELINES.items() for beam in baseline.beams]


@pytest.mark.parametrize(("name", "beam"), CASES)
def test_values_in_per_mm_at_the_right_place(name, beam):
    scan = measurement(beam)
    image = BASELINES[name].reconstruct(scan, scan.acquisition.volume)
    assert tuple(image.shape) == scan.acquisition.volume.shape
    assert torch.isfinite(image).all() and not image.requires_grad
    inside, outside = regions(scan.acquisition.volume)
    assert image[inside].mean().item() == pytest.approx(VALUE, rel=0.1)
    assert image[outside].abs().mean().item() < 0.1 * VALUE
    if BASELINES[name].label in NON_NEGATIVE:
        assert image.min() >= 0


@pytest.mark.parametrize(("name", "beam"), CASES)
def test_another_grid_shows_the_same_object(name, beam):
    scan = measurement(beam)
    grid = scan.acquisition.volume.resampled(1.1 if beam != "cone" else 1.7)
    image = BASELINES[name].reconstruct(scan, grid)
    assert tuple(image.shape) == grid.shape
    inside, outside = regions(grid)
    assert image[inside].mean().item() == pytest.approx(VALUE, rel=0.1)
    assert image[outside].abs().mean().item() < 0.12 * VALUE


@pytest.mark.parametrize(("name", "beam"), CASES)
def test_the_same_twice(name, beam):
    scan = measurement(beam)
    once, twice = (BASELINES[name].reconstruct(scan, scan.acquisition.volume) for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("name", BASELINES)
def test_few_views_and_foreign_beams_are_answered(name):
    """Three views give a poor but finite image, or one clear error; a beam that is not taken always gives the error."""
    scan = measurement("parallel").subset(np.array([0, 15, 30]))
    try:
        assert torch.isfinite(BASELINES[name].reconstruct(scan, scan.acquisition.volume)).all()
    except InputError as error:
        assert error.what
    if "cone" not in BASELINES[name].beams:
        fan = measurement("fan")
        cone = Measurement(fan.values, replace(fan.acquisition, beam="cone"))
        with pytest.raises(InputError):
            BASELINES[name].reconstruct(cone, cone.acquisition.volume)


def test_labels_are_distinct():
    assert len({b.label for b in BASELINES.values()}) == len(BASELINES)
    assert all(b.note.endswith(".") for b in BASELINES.values())
