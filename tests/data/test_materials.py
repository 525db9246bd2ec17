"""Attenuation of materials against the tables of NIST (XCOM, mass attenuation with coherent scattering)."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.materials import MATERIALS, attenuation_per_mm, material
from scanfield.errors import InputError, MissingExtra


@pytest.mark.parametrize(
    ("name", "density", "per_cm2_g"),
    [
        ("water", 1.0, (0.8096, 0.2059, 0.1707)),
        ("titanium", 4.506, (15.85, 0.7661, 0.2721)),
        ("iron", 7.874, (25.68, 1.205, 0.3717)),
        ("bone", 1.92, (4.001, 0.3148, 0.1855)),
        ("tungsten", 19.3, (65.73, 3.713, 4.438)),
    ],
)
def test_attenuation_agrees_with_nist(name: str, density: float, per_cm2_g: tuple[float, ...]) -> None:
    pytest.importorskip("xraydb")
    found = attenuation_per_mm(name, np.array([20.0, 60.0, 100.0])) * 10 / density
    assert found == pytest.approx(per_cm2_g, rel=0.03)


def test_water_at_70_kev_is_what_hounsfield_units_refer_to() -> None:
    pytest.importorskip("xraydb")
    assert attenuation_per_mm("water", np.array([70.0]))[0] == pytest.approx(MU_WATER_PER_MM, rel=1e-3)


def test_compositions_are_shares_of_mass() -> None:
    for name, found in MATERIALS.items():
        assert sum(found.composition.values()) == pytest.approx(1.0, abs=0.02), name


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown material 'titan' \(did you mean 'titanium'"):
        material("titan")
    with pytest.raises(InputError, match="tabulated from 1 to 500 keV"):
        attenuation_per_mm("water", np.array([600.0]))


def test_without_xraydb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xraydb", None)
    with pytest.raises(MissingExtra, match="xraydb") as found:
        attenuation_per_mm("water", np.array([70.0]))
    assert "scanfield[spectra]" in found.value.fix
