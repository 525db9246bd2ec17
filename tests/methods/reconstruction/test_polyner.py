"""Polyner: the polychromatic model explains metal, the smoothness spares it, and the metal is known to all rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.methods.reconstruction import polyner
from scanfield.metrics.image import rmse
from scanfield.operators.simulate import CtScanOptions
from scanfield.operators.simulate_spectrum import Insert, inserted, simulate_spectral_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction

pytest.importorskip("xraydb")

GRID = Grid.centred((32, 32, 1), 5.0)
INSERTS = [Insert("titanium", (35.0, 5.0, 0.0), 9.0), Insert("titanium", (-35.0, 5.0, 0.0), 9.0)]
MASK = inserted(INSERTS, GRID)
SPECTRUM = Spectrum(np.arange(30.0, 120, 10), np.array([1, 4, 7, 8, 6, 5, 4, 3, 1.0]))
SMALL = replace(polyner.Config.tiny(), steps=1000, energies=4, tissue="water", samples_per_ray=48)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    x = GRID.points()
    return 0.01929 * ((x[:, 0] / 70) ** 2 + (x[:, 1] / 55) ** 2 < 1).float().reshape(GRID.shape)


@pytest.fixture(scope="module")
def scan(truth: torch.Tensor) -> Measurement[ProjectionGeometry]:
    options = CtScanOptions(views=60, bins=48, bin_mm=4.8)
    data = simulate_spectral_ct(Scan(truth, GRID, "1/mm"), options, SPECTRUM, INSERTS)
    return replace(data, metal=Scan(MASK, GRID))


@pytest.fixture(scope="module")
def result(scan: Measurement[ProjectionGeometry]) -> Reconstruction:
    return polyner.fit(SMALL, scan, Run(seed=1))


def test_it_beats_one_energy_outside_the_metal(
    scan: Measurement[ProjectionGeometry], result: Reconstruction, truth: torch.Tensor
) -> None:
    alone = polyner.fit(replace(SMALL, energies=1), scan, Run(seed=1))
    ours, mono = (rmse(polyner.render(r, GRID), truth, ~MASK) for r in (result, alone))
    assert ours < 0.9 * mono
    assert "energies" not in alone.logs[0].history[-1]["loss"]


def test_tissue_follows_water_and_metal_is_free(result: Reconstruction) -> None:
    points = torch.tensor([[35.0, 5.0, 0.0], [0.0, -30.0, 0.0]])
    energies, curves = polyner.energy_curves(result, points)
    assert curves.shape == (2, len(energies)) == (2, 4)
    water = torch.tensor(result.spec.facts["curve"]).float()
    metal, tissue = curves / water
    assert (tissue.max() - tissue.min()) / tissue.mean() < 0.1
    assert metal.max() > 2.5 * tissue.max()


def test_the_image_is_the_channel_at_the_reference_energy(result: Reconstruction) -> None:
    assert isinstance(result.field, polyner.SpectralField)
    energies, curves = polyner.energy_curves(result, GRID.points())
    expected = [np.interp(70.0, energies, row) for row in curves.numpy()]
    assert polyner.render(result, GRID).flatten().numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_a_result_keeps_spectrum_and_curve(
    result: Reconstruction, scan: Measurement[ProjectionGeometry], tmp_path: Path
) -> None:
    result.save(tmp_path / "field.safetensors")
    loaded = Reconstruction.load(tmp_path / "field.safetensors")
    assert torch.equal(polyner.predict(loaded, scan), polyner.predict(result, scan))
    assert torch.equal(polyner.render(loaded, GRID), polyner.render(result, GRID))
    residual = (polyner.predict(result, scan) - scan.values).abs().mean()
    assert residual < 0.1 * scan.values.mean()


def test_metal_is_segmented_where_no_mask_is_given(scan: Measurement[ProjectionGeometry]) -> None:
    run = Run()
    found = polyner.prepare(SMALL, replace(scan, metal=None), run).metal
    assert found is not None
    assert (found.values & MASK).sum() > 0.7 * MASK.sum()
    assert "No mask was given: metal is" in run.notes[0]
    assert polyner.prepare(SMALL, scan, run).metal is scan.metal
    none = polyner.prepare(replace(SMALL, metal_per_mm=9.0), replace(scan, metal=None), run)
    assert none.metal is None
    assert "nothing above 9" in run.notes[-1]


def test_saturated_metal_is_refused_and_a_few_starved_rays_are_told(scan: Measurement[ProjectionGeometry]) -> None:
    top = float(scan.values.max())
    run = Run()
    polyner.prepare(SMALL, replace(scan, noise=Noise("poisson", float(np.exp(top)))), run)
    assert "counted one photon or none" in run.warnings[0]
    with pytest.raises(InputError, match="saturated"):
        cut = replace(scan, values=scan.values.clamp(max=0.25 * top), noise=Noise("poisson", float(np.exp(0.25 * top))))
        polyner.prepare(SMALL, cut, run)


def test_without_a_spectrum_it_says_that_one_energy_was_fitted(scan: Measurement[ProjectionGeometry]) -> None:
    run = Run()
    result = polyner.fit(replace(SMALL, steps=2), replace(scan, spectrum=None), run)
    assert "states no spectrum" in run.warnings[0]
    assert len(result.spec.facts["spectrum"]) == 1


def test_the_cost_of_few_energies_is_told(scan: Measurement[ProjectionGeometry]) -> None:
    run = Run()
    polyner.fit(replace(SMALL, steps=2), scan, run)
    assert run.notes[-1].startswith("4 energies stand for 9: projections up to")
    all_of_them = Run()
    polyner.fit(replace(SMALL, steps=2, energies=101), scan, all_of_them)
    assert not all_of_them.notes


@pytest.mark.parametrize(
    ("change", "says"), [({"reference_kev": 200.0}, "covers 30 to 110 keV, not 200"), ({"energies": 0}, "at least one")]
)
def test_settings_that_do_not_fit_the_spectrum_are_refused(
    scan: Measurement[ProjectionGeometry], change: dict[str, float], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        polyner.fit(replace(SMALL, steps=1, **change), scan, Run())  # type: ignore[arg-type]
