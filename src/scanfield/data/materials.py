"""Attenuation of elements and mixtures against photon energy, from the tables of xraydb (extra `spectra`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scanfield.errors import InputError, MissingExtra, nearest

TABULATED_KEV = (1.0, 500.0)


@dataclass(frozen=True)
class Material:
    """A homogeneous material: shares of mass by element, and density in g/cm^3."""

    composition: dict[str, float]
    density_g_cm3: float


MATERIALS = {
    "water": Material({"H": 0.1119, "O": 0.8881}, 1.0),
    "air": Material({"C": 0.0001, "N": 0.7553, "O": 0.2318, "Ar": 0.0128}, 1.205e-3),
    # Cortical bone of ICRU Report 44 (1989).
    "bone": Material(
        {"H": 0.034, "C": 0.155, "N": 0.042, "O": 0.435, "Na": 0.001, "Mg": 0.002, "P": 0.103, "S": 0.003, "Ca": 0.225},
        1.92,
    ),
    "aluminium": Material({"Al": 1.0}, 2.699),
    "titanium": Material({"Ti": 1.0}, 4.506),
    "iron": Material({"Fe": 1.0}, 7.874),
    "steel": Material({"Fe": 0.655, "Cr": 0.17, "Ni": 0.12, "Mo": 0.025, "Mn": 0.02, "Si": 0.01}, 8.0),  # 316L
    "cobalt-chromium": Material({"Co": 0.64, "Cr": 0.28, "Mo": 0.06, "Mn": 0.01, "Si": 0.01}, 8.3),  # ASTM F75
    "copper": Material({"Cu": 1.0}, 8.96),
    "tungsten": Material({"W": 1.0}, 19.3),
    "gold": Material({"Au": 1.0}, 19.32),
    "amalgam": Material({"Hg": 0.5, "Ag": 0.35, "Sn": 0.09, "Cu": 0.06}, 11.6),
}


def material(name: str) -> Material:
    """The material called `name`.

    Raises:
        InputError: unknown; names the nearest.
    """
    if name not in MATERIALS:
        raise InputError(f"unknown material '{name}'{nearest(name, MATERIALS)}", fix=f"one of {', '.join(MATERIALS)}")
    return MATERIALS[name]


def attenuation_per_mm(name: str, energies_kev: Float[np.ndarray, " e"]) -> Float[np.ndarray, " e"]:
    """Linear attenuation in 1/mm with coherent scattering, as CT numbers are defined (tables of Elam et al. 2002).

    Raises:
        MissingExtra: xraydb is not installed.
        InputError: unknown material, or an energy outside 1 to 500 keV.
    """
    found = material(name)
    energies = np.asarray(energies_kev, dtype=np.float64)
    low, high = TABULATED_KEV
    if energies.size and not (low <= energies.min() and energies.max() <= high):
        raise InputError(
            f"attenuation is tabulated from {low:g} to {high:g} keV, not at {energies.min():g} to {energies.max():g}",
            where="spectrum",
        )
    try:
        import xraydb
    except ImportError:
        raise MissingExtra("xraydb", "spectra", "the attenuation of materials against energy") from None
    per_g = sum(share * xraydb.mu_elam(element, 1e3 * energies) for element, share in found.composition.items())
    return np.asarray(per_g * found.density_g_cm3 / 10)
