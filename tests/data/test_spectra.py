"""Spectra: what they refuse, and that few energies stand for many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scanfield.data.spectra import (
    BASIS,
    REFERENCE_KEV,
    Spectrum,
    compton,
    photoelectric,
    read_spectrum,
    rebinned,
    rebinning_error,
)
from scanfield.errors import InputError


def triangle(count: int = 100) -> Spectrum:
    energies = np.linspace(20.0, 120.0, count)
    return Spectrum(energies, np.minimum(energies - 19, 121 - energies))


def test_shares_sum_to_one_and_the_mean_is_theirs() -> None:
    spectrum = Spectrum(np.array([40.0, 80.0]), np.array([3.0, 1.0]))
    assert spectrum.shares == pytest.approx([0.75, 0.25])
    assert spectrum.mean_kev == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("energies", "shares", "says"),
    [
        ([60.0, 50.0], [1.0, 1.0], "must rise: 60 keV is followed by 50"),
        ([60.0, 60.0], [1.0, 1.0], "must rise"),
        ([60.0, 70.0], [1.0, -0.1], "negative"),
        ([60.0, 70.0], [1.0, np.nan], "infinite"),
        ([60.0, 70.0], [0.0, 0.0], "without any photon"),
        ([0.06, 0.07], [1.0, 1.0], "between 1 and 1000 keV"),
        ([60.0, 70.0], [1.0], "one share per energy"),
        ([], [], "one share per energy"),
    ],
)
def test_bad_spectra_are_refused(energies: list[float], shares: list[float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Spectrum(np.array(energies), np.array(shares))


def test_a_spectrum_that_does_not_cover_an_energy_says_so() -> None:
    triangle().check_covers(20, 120)
    with pytest.raises(InputError, match="covers 20 to 120 keV, not 140 keV"):
        triangle().check_covers(140, 140)


def test_a_table_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tube.csv"
    path.write_text("# keV, photons\n40, 3\n80, 1  # soft\n\n")
    assert read_spectrum(path).table() == pytest.approx(np.array([[40, 0.75], [80, 0.25]]))


@pytest.mark.parametrize("text", ["40 3\n80\n", "forty 3\n", "", "1 2 3\n"])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tube.txt"
    path.write_text(text)
    with pytest.raises(InputError) as found:
        read_spectrum(path)
    assert "tube.txt" in found.value.where


def test_rebinning_keeps_the_signal_and_its_mean_energy() -> None:
    few = rebinned(triangle(), 8)
    assert len(few.energies_kev) == 8
    assert few.mean_kev == pytest.approx(triangle().mean_kev)
    assert rebinned(triangle(), 500).table() == pytest.approx(triangle().table())
    one = rebinned(triangle(), 1)
    assert one.energies_kev == pytest.approx([triangle().mean_kev])


def test_empty_bins_are_dropped() -> None:
    gap = Spectrum(np.array([20.0, 21.0, 22.0, 119.0, 120.0]), np.ones(5))
    assert rebinned(gap, 4).shares == pytest.approx([0.6, 0.4])


def test_the_stated_error_bounds_a_mixture_and_falls_with_the_number_of_energies() -> None:
    full = triangle()
    errors = [rebinning_error(full, rebinned(full, count), 8.0) for count in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < errors[0] / 10
    assert rebinning_error(full, full, 8.0) == 0.0
    few = rebinned(full, 4)

    def p(spectrum: Spectrum, amounts: tuple[float, float]) -> float:
        mu = sum(a * curve(spectrum.energies_kev) for a, curve in zip(amounts, BASIS, strict=True))
        return float(-np.log(spectrum.shares @ np.exp(-mu)))

    for amounts in ((0.5, 3.0), (2.0, 1.0), (0.0, 6.0)):
        assert p(full, amounts) < 8
        assert abs(p(few, amounts) - p(full, amounts)) <= errors[1] * 1.02


def test_the_basis_is_that_of_alvarez_and_macovski() -> None:
    assert photoelectric(np.array([REFERENCE_KEV, 2 * REFERENCE_KEV])) == pytest.approx([1, 1 / 8])
    # In units of Thomson's cross-section, that of Klein and Nishina is 1 - 2 a for small a, and 0.431 at a = 1.
    at_1, at_511 = compton(np.array([1.0, 510.999]))
    assert at_511 / at_1 == pytest.approx(0.431 / (1 - 2 / 511), rel=2e-3)


def test_trimming_drops_only_the_ends() -> None:
    spectrum = Spectrum(np.array([10.0, 20.0, 30.0, 40.0]), np.array([1e-6, 1.0, 0.0, 1.0]))
    assert spectrum.trimmed().energies_kev == pytest.approx([20, 30, 40])
