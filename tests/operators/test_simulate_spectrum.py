"""Polychromatic simulation: exact chords, physical hardening, what one energy gives, and bad inserts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.operators.simulate_spectrum import Insert, fill_share, inserted, simulate_spectral_ct
from scanfield.space.grid import Grid

pytest.importorskip("xraydb")
from scanfield.data.materials import attenuation_per_mm

ENERGIES = np.array([40.0, 55.0, 70.0, 90.0, 110.0])
SPECTRUM = Spectrum(ENERGIES, np.array([1.0, 2.0, 2.0, 1.5, 0.5]))
GRID = Grid.centred((40, 40, 1), (3.0, 3.0, 3.0))
ONE_RAY = CtScanOptions(views=2, arc_deg=180, bins=1, bin_mm=1.0, subrays=1)


def water(per_mm: float = 0.01929) -> Scan:
    return Scan(torch.full(GRID.shape, per_mm), GRID, "1/mm")


def expected(*paths: tuple[str, float]) -> float:
    a = sum(length * attenuation_per_mm(name, ENERGIES) for name, length in paths)
    return float(-np.log(SPECTRUM.shares @ np.exp(-a)))


def test_a_ray_through_water_is_beer_and_lambert_at_every_energy() -> None:
    p = simulate_spectral_ct(water(), ONE_RAY, SPECTRUM).values
    assert p.flatten().tolist() == pytest.approx([expected(("water", 120.0))] * 2, rel=1e-3)


def test_a_ray_through_an_insert_sees_its_chord_and_less_water() -> None:
    insert = Insert("titanium", (0.0, 4.0, 0.0), 10.0)
    p = simulate_spectral_ct(water(), ONE_RAY, SPECTRUM, [insert]).values.flatten()
    along = expected(("water", 100.0), ("titanium", 20.0))
    chord = 2 * math.sqrt(10**2 - 4**2)
    across = expected(("water", 120.0 - chord), ("titanium", chord))
    assert sorted(p.tolist()) == pytest.approx(sorted([along, across]), rel=5e-3)


def test_dense_tissue_counts_as_bone() -> None:
    dense = 0.01929 * 2.6  # 1600 HU
    p = simulate_spectral_ct(water(dense), ONE_RAY, SPECTRUM).values
    at_70 = attenuation_per_mm("bone", np.array([70.0]))[0]
    assert p[0].item() == pytest.approx(expected(("bone", 120.0 * dense / at_70)), rel=1e-3)


def test_one_energy_is_the_monochromatic_scan() -> None:
    options = CtScanOptions(views=6, subrays=1)
    one = simulate_spectral_ct(water(), options, Spectrum(np.array([70.0]), np.ones(1)))
    assert torch.allclose(one.values, simulate_ct(water(), options).values, atol=1e-4)


def test_overlapping_inserts_count_once_and_the_first_wins() -> None:
    both = [Insert("iron", (0.0, 0.0, 0.0), 6.0), Insert("titanium", (0.0, 0.0, 0.0), 9.0)]
    p = simulate_spectral_ct(water(), ONE_RAY, SPECTRUM, both).values[0].item()
    assert p == pytest.approx(expected(("water", 102.0), ("iron", 12.0), ("titanium", 6.0)), rel=5e-3)


def test_a_detector_averages_what_arrives() -> None:
    insert = [Insert("gold", (0.0, 0.0, 0.0), 5.0)]
    options = CtScanOptions(views=1, bins=1, bin_mm=20.0, subrays=10)
    p = simulate_spectral_ct(water(), options, SPECTRUM, insert).values.item()
    assert p < expected(("water", 120.0)) + math.log(2) + 0.05  # half of the pixel is behind gold: at most log 2 more


def test_poisson_noise_has_the_variance_of_counts_and_the_spectrum_is_kept() -> None:
    options = CtScanOptions(views=200, photons=1e5, seed=3)
    clean = simulate_spectral_ct(water(), CtScanOptions(views=200), SPECTRUM)
    noisy = simulate_spectral_ct(water(), options, SPECTRUM)
    scaled = (noisy.values - clean.values) * torch.sqrt(1e5 * torch.exp(-clean.values))
    assert scaled.std().item() == pytest.approx(1.0, abs=0.03)
    assert noisy.noise.kind == "poisson"
    assert noisy.spectrum is not None
    assert noisy.spectrum.table() == pytest.approx(SPECTRUM.table())


def test_shares_of_voxels_add_up_to_the_insert() -> None:
    insert = Insert("titanium", (4.0, -7.0, 0.0), 11.0)
    area = float(fill_share(insert, GRID).sum()) * 9.0
    assert area == pytest.approx(math.pi * 11**2, rel=0.01)
    volume = Grid.centred((20, 20, 20), 2.0)
    ball = Insert("titanium", (1.0, 2.0, -3.0), 9.0)
    assert float(fill_share(ball, volume).sum()) * 8.0 == pytest.approx(4 / 3 * math.pi * 9**3, rel=0.01)
    inside = inserted([insert, ball], GRID)
    assert inside.dtype == torch.bool
    assert not fill_share(Insert("iron", (500.0, 0.0, 0.0), 5.0), GRID).any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("titanium,1,2,3", "is no insert"),
        ("titanium,1,2,x,4", "is no insert"),
        ("unobtainium,1,2,3,4", "unknown material"),
        ("iron,1,2,3,0", "positive radius"),
        ("iron,1,nan,3,2", "positive radius"),
    ],
)
def test_bad_inserts_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Insert.parse(text)


def test_what_cannot_be_scanned_is_refused() -> None:
    with pytest.raises(InputError, match="misses the image"):
        simulate_spectral_ct(water(), ONE_RAY, SPECTRUM, [Insert.parse("iron,0,0,90,4")])
    with pytest.raises(InputError, match="covers 40 to 110 keV, not 20 keV"):
        simulate_spectral_ct(water(), ONE_RAY, SPECTRUM, reference_kev=20.0)
    with pytest.raises(InputError, match="image is empty"):
        simulate_spectral_ct(water(0.0), ONE_RAY, SPECTRUM)
