"""Hounsfield units and linear attenuation.

HU = 1000 (mu - mu_water) / mu_water,   mu in 1/mm, the attenuation of air taken as zero.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError

MU_WATER_PER_MM = 0.01929
"""Water at 70 keV, about the mean energy of a 120 kV beam: 0.1929 cm^2/g (NIST XCOM) times 1 g/cm^3."""


def to_attenuation(hu: Float[Tensor, "*n"], mu_water_per_mm: float = MU_WATER_PER_MM) -> Float[Tensor, "*n"]:
    """Hounsfield units -> linear attenuation in 1/mm; below -1000 HU (noise, padding) it is zero."""
    return (_positive(mu_water_per_mm) * (1 + hu / 1000)).clamp(min=0)


def to_hounsfield(mu: Float[Tensor, "*n"], mu_water_per_mm: float = MU_WATER_PER_MM) -> Float[Tensor, "*n"]:
    """Linear attenuation in 1/mm -> Hounsfield units."""
    return 1000 * (mu / _positive(mu_water_per_mm) - 1)


def _positive(mu_water_per_mm: float) -> float:
    if not 0 < mu_water_per_mm < float("inf"):
        raise InputError(
            f"the attenuation of water must be positive, got {mu_water_per_mm} 1/mm",
            fix=f"{MU_WATER_PER_MM} 1/mm is water at 70 keV",
        )
    return mu_water_per_mm
