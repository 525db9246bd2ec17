"""Classical corrections of metal: better than the plain image, exact where they should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.baselines import fbp, metal
from scanfield.baselines.ct import for_metal
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.metrics.image import rmse
from scanfield.operators.simulate import CtScanOptions
from scanfield.operators.simulate_spectrum import Insert, inserted, simulate_spectral_ct
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

pytest.importorskip("xraydb")

GRID = Grid.centred((64, 64, 1), 3.0)
INSERTS = [Insert("titanium", (35.0, 10.0, 0.0), 7.0), Insert("titanium", (-35.0, 5.0, 0.0), 7.0)]
MASK = inserted(INSERTS, GRID)
WATER = 0.01929


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    x = GRID.points()
    body = ((x[:, 0] / 80) ** 2 + (x[:, 1] / 60) ** 2 < 1).float()
    bone = ((x[:, 0] ** 2 + (x[:, 1] + 30) ** 2) < 12**2).float()
    return (WATER * body + 0.8 * WATER * bone).reshape(GRID.shape)


@pytest.fixture(scope="module")
def scan(truth: torch.Tensor) -> Measurement[ProjectionGeometry]:
    spectrum = Spectrum(np.arange(30.0, 120, 10), np.array([1, 4, 7, 8, 6, 5, 4, 3, 1.0]))
    options = CtScanOptions(views=180, bins=100, bin_mm=2.8)
    data = simulate_spectral_ct(Scan(truth, GRID, "1/mm"), options, spectrum, INSERTS)
    return replace(data, metal=Scan(MASK, GRID))


def test_each_correction_helps_outside_the_metal(scan: Measurement[ProjectionGeometry], truth: torch.Tensor) -> None:
    errors = {
        name: rmse(reconstruct(scan, GRID), truth, ~MASK)
        for name, reconstruct in {
            "fbp": fbp.reconstruct,
            "li": metal.linear_interpolation,
            "nmar": metal.nmar,
        }.items()
    }
    assert errors["li"] < 0.8 * errors["fbp"]
    assert errors["nmar"] < 0.8 * errors["fbp"]


def test_metal_stays_as_the_uncorrected_image_shows_it(scan: Measurement[ProjectionGeometry]) -> None:
    plain = metal.water_corrected_fbp(scan, GRID)
    for reconstruct in (metal.linear_interpolation, metal.nmar):
        assert torch.allclose(reconstruct(scan, GRID)[MASK], plain[MASK])
    finer = GRID.resampled((2.0, 2.0, 3.0))
    image = metal.linear_interpolation(scan, finer)
    assert image.shape == finer.shape
    assert image.max() > 0.08


def test_the_correction_for_water_needs_a_spectrum_and_flattens_water(
    scan: Measurement[ProjectionGeometry], truth: torch.Tensor
) -> None:
    known = replace(scan, spectrum=None)
    assert metal.corrected(known) is known
    assert metal.corrected(scan).spectrum is None
    assert scan.spectrum is not None
    options = CtScanOptions(views=180, bins=100, bin_mm=2.8)
    body = Scan(truth.clamp(max=WATER), GRID, "1/mm")
    clean = simulate_spectral_ct(body, options, scan.spectrum)
    middle, rim = metal.water_corrected_fbp(clean, GRID)[[32, 52], [32, 32], 0].tolist()
    assert middle == pytest.approx(WATER, rel=0.01)
    assert rim == pytest.approx(WATER, rel=0.01)
    raw_middle, raw_rim = fbp.reconstruct(clean, GRID)[[32, 52], [32, 32], 0].tolist()
    assert raw_rim - raw_middle > 0.01 * WATER  # cupping


def test_interpolation_is_linear_across_the_trace_and_flat_at_the_ends() -> None:
    values = torch.tensor([[[0.0, 9.0, 9.0, 3.0, 9.0]], [[1.0, 2.0, 3.0, 4.0, 5.0]]])
    trace = torch.tensor([[[False, True, True, False, True]], [[True] * 5]])
    found = metal.interpolate_across(values, trace)
    assert found[0, 0].tolist() == pytest.approx([0, 1, 2, 3, 3])
    assert torch.equal(found[1], values[1])  # nothing to interpolate from


def test_the_prior_has_three_classes() -> None:
    image = torch.zeros(9, 30, 1)
    image[:, 10:20], image[:, 20:] = 0.9 * WATER, 2 * WATER
    found = metal.tissue_classes(image, torch.zeros_like(image).bool(), WATER)
    assert found[:, :8].max() == 0
    assert found[:, 12:18].unique().tolist() == pytest.approx([WATER])
    assert torch.equal(found[:, 22:], image[:, 22:])
    all_metal = metal.tissue_classes(image, torch.ones_like(image).bool(), WATER)
    assert all_metal.unique().tolist() == pytest.approx([WATER])


def test_rivals_appear_with_what_they_need(scan: Measurement[ProjectionGeometry]) -> None:
    assert list(for_metal(scan)) == ["water-fbp", "li", "nmar"]
    assert list(for_metal(replace(scan, spectrum=None))) == ["li", "nmar"]
    assert for_metal(replace(scan, spectrum=None, metal=None)) == {}
    with pytest.raises(InputError, match="where it is"):
        metal.nmar(replace(scan, metal=None), GRID)
