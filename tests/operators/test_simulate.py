"""Simulated scans against geometry worked out by hand."""

import math

import numpy as np
import pytest
import torch

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.pixels import detector_pixels
from scanfield.operators.simulate import (
    CtScanOptions,
    field_radius_mm,
    gantry_frame,
    height_on_detector_mm,
    measured_radius_mm,
    scanner,
    simulate_ct,
    subsamples,
)
from scanfield.space.grid import Grid

MU = 0.02


def block(shape=(20, 16, 3), spacing=(2.0, 2.0, 3.0)):
    """A uniform block of 20 x 12 mm in every slice, the same in all three."""
    values = torch.zeros(shape)
    values[5:15, 5:11] = MU
    return Scan(values, Grid.centred(shape, spacing), unit="1/mm")


def test_parallel_views_integrate_along_the_block():
    scan = simulate_ct(block(), CtScanOptions(views=2, bin_mm=1.0, bins=51))
    assert scan.values.shape == (2, 3, 51)
    middle = scan.values[:, :, 25]
    assert torch.allclose(middle[0], torch.full((3,), MU * 12), rtol=1e-5)  # view 0 looks along y
    assert torch.allclose(middle[1], torch.full((3,), MU * 20), rtol=1e-5)  # view 90 looks along x


def test_every_parallel_view_holds_the_whole_attenuation():
    scan = simulate_ct(block(), CtScanOptions(views=7, bin_mm=0.5))
    mass = scan.values.sum(dim=2) * 0.5
    assert torch.allclose(mass, torch.full((7, 3), MU * 20 * 12), rtol=5e-3)


@pytest.mark.parametrize("detector", ["flat", "arc"])
def test_a_fan_measures_the_chord_of_each_ray(detector):
    options = CtScanOptions(beam="fan", detector=detector, views=1, bins=3, bin_mm=1e-3, subrays=1)
    scan = simulate_ct(block(), options, slice_index=1)
    assert scan.values.shape == (1, 1, 3)
    assert float(scan.values[0, 0, 1]) == pytest.approx(MU * 12, rel=1e-4)
    assert scan.acquisition.source_to_axis_mm == 541.0


@pytest.mark.parametrize(("beam", "detector"), [("parallel", "flat"), ("fan", "flat"), ("fan", "arc")])
def test_the_default_detector_covers_the_diagonal_with_bins_of_a_voxel(beam, detector):
    grid = Grid.centred((200, 200, 1), 2.5)
    geometry = scanner(grid, CtScanOptions(beam=beam, detector=detector))
    assert field_radius_mm(grid) == pytest.approx(250 * math.sqrt(2))
    assert measured_radius_mm(geometry) >= field_radius_mm(grid) * (1 - 1e-9)
    assert measured_radius_mm(geometry) < field_radius_mm(grid) + 2.5
    if beam == "fan":  # 541 mm would leave a fan wider than 60 degrees
        assert geometry.source_to_axis_mm == pytest.approx(2 * field_radius_mm(grid))
        assert geometry.source_to_detector_mm / geometry.source_to_axis_mm == pytest.approx(949 / 541)


def test_bins_alone_are_spread_over_the_diagonal():
    geometry = scanner(Grid.centred((30, 40, 1), 1.0), CtScanOptions(bins=100))
    assert geometry.detector.spacing[1] == pytest.approx(0.5)


def test_the_arc_leaves_out_its_end():
    assert scanner(block().grid, CtScanOptions(views=4)).angles_deg.tolist() == [0, 45, 90, 135]
    fan = scanner(block().grid, CtScanOptions(beam="fan", views=4, start_deg=10))
    assert fan.angles_deg.tolist() == [10, 100, 190, 280]


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_rays_follow_an_oblique_volume(flip):
    """The middle ray of each row runs inside its own slice, through the volume's axis, whatever the affine."""
    turn, _ = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.3, 1.0, 0.5], [0.1, -0.6, 1.0]]))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, flip * 2.0, 3.0])
    affine[:3, 3] = [40.0, -70.0, 12.0]
    grid = Grid((20, 16, 3), affine)
    frame = gantry_frame(grid)
    assert np.linalg.det(frame[:3, :3]) == pytest.approx(1.0)
    geometry = scanner(grid, CtScanOptions(views=5, bins=11))
    index = torch.arange(5)[:, None] * 33 + torch.arange(3) * 11 + 5
    rays = geometry.rays(index.reshape(-1), dtype=torch.float64)
    third = torch.tensor(grid.directions[:, 2])
    assert float((rays.direction @ third).abs().max()) < 1e-9
    to_axis = -((rays.origin - torch.tensor(grid.centre_mm)) * rays.direction).sum(-1)
    nearest = grid.to_voxel(rays.origin + to_axis[:, None] * rays.direction).reshape(5, 3, 3)
    expected = torch.tensor([[9.5, 7.5, r] for r in range(3)], dtype=torch.float64)
    assert torch.allclose(nearest, expected.expand(5, 3, 3), atol=1e-5)


def test_an_oblique_volume_gives_the_same_numbers_as_an_upright_one():
    upright = simulate_ct(block(), CtScanOptions(views=3, bins=31, bin_mm=1.0))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    turn, _ = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.3, 1.0, 0.5], [0.1, -0.6, 1.0]]))
    affine[:3, :3] = turn * np.sign(np.linalg.det(turn))
    affine[:3, 3] = [5.0, 6.0, 7.0]
    moved = Scan(block().values, block().grid.moved(affine), unit="1/mm")
    assert torch.allclose(
        simulate_ct(moved, CtScanOptions(views=3, bins=31, bin_mm=1.0)).values, upright.values, atol=1e-5
    )


def test_hounsfield_units_become_attenuation_and_air_nothing():
    values = torch.full((8, 8, 1), -1000.0)
    values[2:6, 2:6] = 0.0
    scan = simulate_ct(
        Scan(values, Grid.centred((8, 8, 1), 1.0), unit="HU"), CtScanOptions(views=1, bins=3, bin_mm=0.1)
    )
    assert float(scan.values[0, 0, 1]) == pytest.approx(4 * MU_WATER_PER_MM, rel=1e-5)


def test_poisson_noise_has_the_variance_of_its_photons_and_follows_its_seed():
    options = CtScanOptions(views=400, bins=5, bin_mm=0.1, photons=1e4, arc_deg=1e-6)
    noisy = simulate_ct(block(), options)
    exact = float(simulate_ct(block(), CtScanOptions(views=1, bins=5, bin_mm=0.1)).values[0, 0, 2])
    assert noisy.noise.kind == "poisson" and noisy.noise.level == 1e4
    assert float(noisy.values.std()) == pytest.approx(math.sqrt(math.exp(exact) / 1e4), rel=0.05)
    assert torch.equal(noisy.values, simulate_ct(block(), options).values)
    other = CtScanOptions(views=400, bins=5, bin_mm=0.1, photons=1e4, arc_deg=1e-6, seed=1)
    assert not torch.equal(noisy.values, simulate_ct(block(), other).values)


def test_noise_in_percent_is_relative_to_the_largest_line_integral():
    clean = simulate_ct(block(), CtScanOptions(views=50))
    noisy = simulate_ct(block(), CtScanOptions(views=50, noise_percent=2.0))
    sigma = 0.02 * float(clean.values.max())
    assert noisy.noise.level == pytest.approx(sigma)
    assert float((noisy.values - clean.values).std()) == pytest.approx(sigma, rel=0.05)
    assert clean.noise.kind == "none"


def ball(spacing: float = 2.0) -> Scan:
    """A ball of 30 mm radius about (5, -4, 3), its border voxels weighted by 4 x 4 x 4 points."""
    phantom = Phantom((Ellipsoid((5.0, -4.0, 3.0), (30.0, 30.0, 30.0), value=MU),))
    n = round(90 / spacing)
    grid = Grid.centred((n, n, n), spacing)
    parts = (torch.arange(4) + 0.5) / 4 - 0.5
    offsets = torch.cartesian_prod(parts, parts, parts) * spacing
    values = sum(phantom.values(grid.points() + offset) for offset in offsets) / len(offsets)
    return Scan(values.reshape(grid.shape), grid, unit="1/mm")


@pytest.mark.parametrize("detector", ["flat", "arc"])
def test_a_cone_beam_measures_the_chords_of_a_ball(detector):
    """Against exact integrals along the same rays; a displaced detector sees another part of it."""
    phantom = Phantom((Ellipsoid((5.0, -4.0, 3.0), (30.0, 30.0, 30.0), value=MU),))
    options = CtScanOptions(
        beam="cone",
        detector=detector,
        views=5,
        arc_deg=200.0,
        offset_mm=(3.0, -8.0),
        source_to_axis_mm=200.0,
        source_to_detector_mm=330.0,
        subrays=1,
    )
    scan = simulate_ct(ball(), options)
    of = scan.acquisition
    assert of.kind == "projections:cone" and of.detector.kind == detector
    assert of.detector.offset[0] == 3.0
    assert of.angles_deg.tolist() == pytest.approx([0, 40, 80, 120, 160])
    exact = phantom.line_integrals(of.rays(torch.arange(of.count), dtype=torch.float64)).reshape(of.shape)
    assert float(scan.values.max()) == pytest.approx(2 * 30 * MU, rel=0.02)
    well_inside = exact > 0.6 * exact.max()  # the edge of the ball is one of voxels
    assert float((scan.values - exact)[well_inside].abs().max()) < 0.04 * float(exact.max())
    assert float(scan.values.sum()) == pytest.approx(float(exact.sum()), rel=2e-3)


def test_the_rows_of_a_cone_beam_cover_the_volume_from_every_side():
    grid = ball().grid
    geometry = scanner(grid, CtScanOptions(beam="cone", views=60, source_to_axis_mm=200.0, source_to_detector_mm=330.0))
    seen = detector_pixels(geometry, torch.tensor(grid.corners_mm()))
    assert bool(seen.inside(geometry).all())
    rows, row_mm = geometry.detector.shape[0], geometry.detector.spacing[0]
    assert row_mm == pytest.approx(2 * 330 / 200)
    assert (rows - 1) * row_mm < height_on_detector_mm(grid, 200.0, 330.0) <= rows * row_mm
    assert subsamples(CtScanOptions(beam="cone")) == (2, 2) and subsamples(CtScanOptions(beam="fan")) == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CtScanOptions(views=0), "views must be at least 1"),
        (CtScanOptions(bin_mm=0.0), "bin_mm must be positive"),
        (CtScanOptions(bin_mm=float("nan")), "bin_mm must be positive"),
        (CtScanOptions(arc_deg=400.0), "an arc is above 0"),
        (CtScanOptions(photons=0.0), "at least 1"),
        (CtScanOptions(noise_percent=-1.0), "not negative"),
        (CtScanOptions(photons=1e4, noise_percent=1.0), "not both"),
        (CtScanOptions(source_to_axis_mm=500.0), "no source distances"),
        (CtScanOptions(detector="arc"), "no arc detector"),
        (CtScanOptions(beam="fan", source_to_axis_mm=10.0), "do not clear the volume"),
        (CtScanOptions(beam="fan", source_to_axis_mm=500.0, source_to_detector_mm=501.0), "do not clear the volume"),
        (CtScanOptions(beam="fan", rows=5), "every slice is one detector row"),
        (CtScanOptions(row_mm=2.0), "every slice is one detector row"),
        (CtScanOptions(offset_mm=(1.0, 0.0)), "every slice is one detector row"),
        (CtScanOptions(beam="cone", offset_mm=(0.0, float("inf"))), "two finite numbers"),
        (CtScanOptions(beam="cone", rows=0), "rows must be at least 1"),
        (CtScanOptions(beam="cone", row_mm=-1.0), "row_mm must be positive"),
        (CtScanOptions(beam="cone", source_to_axis_mm=10.0), "do not clear the volume"),
    ],
)
def test_impossible_scans_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        simulate_ct(block(), options)


def test_an_empty_image_and_a_missing_slice_are_refused():
    empty = Scan(torch.zeros(4, 4, 2), Grid.centred((4, 4, 2), 1.0), unit="1/mm")
    with pytest.raises(InputError, match="the image is empty"):
        simulate_ct(empty, CtScanOptions())
    with pytest.raises(InputError, match="slice 3 does not exist"):
        simulate_ct(block(), CtScanOptions(), slice_index=3)
