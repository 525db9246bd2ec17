"""Spectra of X-ray tubes by their voltage: a model of our own, or spekpy (extra `tubes`).

The model, for a tungsten anode and a photon-counting detector, with E0 the tube voltage and E the photon energy:

    bremsstrahlung   N(E) ~ (E0 / E - 1) exp(-mu_W(E) t(E))       Kramers 1923, absorbed in the anode
    K lines          in proportion to (E0 / 69.5 keV - 1)^1.63    at 57.98, 59.32, 67.24 and 69.07 keV
    filter           exp(-mu_Al(E) d)                             d mm of aluminium

t(E) = depth (1 - (E / E0)^2) / sin(anode angle): electrons slow down as they go deeper, so that soft photons come from
deeper layers. Depth (2 um) and strength of the lines are chosen so that from 80 to 140 kV the mean energy agrees with
spekpy's within 0.3 keV and the half-value layer within 0.1 mm of aluminium (12 degrees, 6 mm of aluminium).
"""

from __future__ import annotations

import re

import numpy as np

from scanfield.data.materials import attenuation_per_mm
from scanfield.data.spectra import Spectrum, read_spectrum
from scanfield.errors import InputError, MissingExtra

ANODE_DEG, FILTER_MM_AL, DEPTH_MM = 12.0, 6.0, 0.002
K_EDGE_KEV = 69.5
K_LINES = ((57.98, 0.58), (59.32, 1.0), (67.24, 0.33), (69.07, 0.08))  # keV, relative to the strongest
K_STRENGTH = 5.0  # of the strongest line, in the units of E0 / E - 1 per keV
KVP_RANGE = (40.0, 150.0)
_NAME = re.compile(r"(spekpy:)?(\d+(?:\.\d+)?)\s*kVp?", re.IGNORECASE)


def spectrum_of(name: str) -> Spectrum:
    """A spectrum by name: '120kVp' (the model), 'spekpy:120kVp', or a text file of energies (keV) and photons.

    Raises:
        InputError: neither a tube nor a file, or a voltage outside 40 to 150 kV.
        MissingExtra: xraydb or spekpy is needed and not installed.
    """
    found = _NAME.fullmatch(name.strip())
    if found is None:
        if "kv" in name.lower() and "." not in name:
            raise InputError(
                f"'{name}' is no tube voltage", where="spectrum", fix="120kVp, spekpy:120kVp, or a file of keV, photons"
            )
        return read_spectrum(name)
    kvp = float(found[2])
    return spekpy_spectrum(kvp) if found[1] else tube_spectrum(kvp)


def tube_spectrum(kvp: float, *, filter_mm_al: float = FILTER_MM_AL, anode_deg: float = ANODE_DEG) -> Spectrum:
    """The module's model in steps of 1 keV, from 10 keV.

    Args:
        kvp: tube voltage.
        filter_mm_al: aluminium in front of the object, the tube's own included.
        anode_deg: angle of the anode's surface.

    Raises:
        InputError: a voltage outside 40 to 150 kV, or a filter or angle out of range.
        MissingExtra: xraydb is not installed.
    """
    _check(kvp, filter_mm_al, anode_deg)
    energies = np.arange(10.5, kvp, 1.0)
    depth = DEPTH_MM * (1 - (energies / kvp) ** 2) / np.sin(np.deg2rad(anode_deg))
    escaping = np.exp(-attenuation_per_mm("tungsten", energies) * depth)
    photons = (kvp / energies - 1) * escaping
    if kvp > K_EDGE_KEV:
        strongest = K_STRENGTH * (kvp / K_EDGE_KEV - 1) ** 1.63
        for line, relative in K_LINES:
            at = int(np.argmin(np.abs(energies - line)))
            photons[at] += strongest * relative * escaping[at]
    return Spectrum(energies, photons * np.exp(-attenuation_per_mm("aluminium", energies) * filter_mm_al))


def spekpy_spectrum(kvp: float, *, filter_mm_al: float = FILTER_MM_AL, anode_deg: float = ANODE_DEG) -> Spectrum:
    """The photon fluence that spekpy computes for the same tube, in steps of 1 keV.

    Raises:
        InputError, MissingExtra: as `tube_spectrum`; spekpy is not installed.
    """
    _check(kvp, filter_mm_al, anode_deg)
    try:
        import spekpy
    except ImportError:
        raise MissingExtra("spekpy", "tubes", "a spectrum of spekpy") from None
    tube = spekpy.Spek(kvp=kvp, th=anode_deg, dk=1.0)
    tube.filter("Al", filter_mm_al)
    energies, fluence = tube.get_spectrum()
    kept = energies >= 10
    return Spectrum(energies[kept], fluence[kept])


def _check(kvp: float, filter_mm_al: float, anode_deg: float) -> None:
    low, high = KVP_RANGE
    if not low <= kvp <= high:
        raise InputError(
            f"a tube voltage lies between {low:g} and {high:g} kV, got {kvp:g}",
            where="spectrum",
            fix="give a file of energies (keV) and photons for other sources",
        )
    if not 0 <= filter_mm_al <= 50 or not 1 <= anode_deg <= 90:
        raise InputError(
            f"a tube has 0 to 50 mm of aluminium and an anode of 1 to 90 degrees, got {filter_mm_al:g}, {anode_deg:g}",
            where="spectrum",
        )
