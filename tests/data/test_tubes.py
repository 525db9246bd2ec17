"""Spectra of tubes: names, physics, and agreement with spekpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from scanfield.data.materials import attenuation_per_mm
from scanfield.data.spectra import Spectrum
from scanfield.data.tubes import spectrum_of, spekpy_spectrum, tube_spectrum
from scanfield.errors import InputError, MissingExtra

pytest.importorskip("xraydb")


def half_value_mm(spectrum: Spectrum) -> float:
    """Millimetres of aluminium that halve the energy fluence."""
    mu, energy = attenuation_per_mm("aluminium", spectrum.energies_kev), spectrum.shares * spectrum.energies_kev
    depths = np.linspace(0, 20, 2001)
    left = np.exp(-depths[:, None] * mu) @ energy / energy.sum()
    return float(np.interp(-0.5, -left, depths))


def test_a_name_is_a_voltage_or_a_file(tmp_path: Path) -> None:
    assert spectrum_of("120kVp").table() == pytest.approx(tube_spectrum(120).table())
    assert spectrum_of(" 80 kV").energies_kev[-1] < 80
    (tmp_path / "own.txt").write_text("50 1\n60 1\n")
    assert spectrum_of(str(tmp_path / "own.txt")).mean_kev == pytest.approx(55)


@pytest.mark.parametrize(
    ("name", "says"), [("900kVp", "between 40 and 150"), ("highkVp", "no tube voltage"), ("gone.txt", "no such file")]
)
def test_other_names_are_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        spectrum_of(name)


def test_filters_harden_and_the_voltage_bounds() -> None:
    soft, hard = tube_spectrum(120, filter_mm_al=2), tube_spectrum(120, filter_mm_al=12)
    assert hard.mean_kev > soft.mean_kev + 4
    assert tube_spectrum(100).energies_kev[-1] < 100
    line = int(np.argmin(np.abs(hard.energies_kev - 59.32)))
    assert hard.shares[line] > 1.5 * hard.shares[line + 3]  # tungsten's K line
    assert np.diff(tube_spectrum(60).shares)[-20:].max() < 0  # none below the K edge
    with pytest.raises(InputError, match="aluminium"):
        tube_spectrum(120, filter_mm_al=-1)


@pytest.mark.parametrize("kvp", [80, 100, 120, 140])
def test_the_model_agrees_with_spekpy(kvp: float) -> None:
    pytest.importorskip("spekpy")
    model, theirs = tube_spectrum(kvp), spekpy_spectrum(kvp)
    assert model.mean_kev == pytest.approx(theirs.mean_kev, abs=0.3)
    assert half_value_mm(model) == pytest.approx(half_value_mm(theirs), abs=0.1)
    assert spectrum_of(f"spekpy:{kvp}kVp").mean_kev == pytest.approx(theirs.mean_kev)


def test_without_spekpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spekpy", None)
    with pytest.raises(MissingExtra, match="spekpy"):
        spectrum_of("spekpy:120kVp")
