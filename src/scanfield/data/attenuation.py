"""Images of linear attenuation from CT images in whatever unit they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from scanfield.data.hounsfield import MU_WATER_PER_MM, to_attenuation
from scanfield.data.scan import Scan
from scanfield.errors import InputError

CtUnit = Literal["auto", "HU", "1/mm"]

_AIR_BELOW_HU = -200.0
_LARGEST_PER_MM = 2.0  # steel at diagnostic energies stays below 1/mm


def attenuation(scan: Scan, unit: CtUnit = "auto", mu_water_per_mm: float = MU_WATER_PER_MM) -> Scan:
    """The same image in 1/mm.

    Args:
        scan: one channel.
        unit: what the values are. 'auto' believes the image if it states 'HU' or '1/mm'; otherwise values below
            -200 are taken for air in HU, and values all within 0 to 2 for 1/mm.
        mu_water_per_mm: attenuation of water, for values in HU.

    Raises:
        InputError: several channels, or 'auto' cannot tell.
    """
    if scan.values.ndim != 3:
        raise InputError(
            f"a CT image has one channel, this one has shape {tuple(scan.values.shape)}",
            where=scan.source,
            fix="extract one volume from it",
        )
    values = scan.values.float()
    if ct_unit(scan, unit) == "HU":
        values = to_attenuation(values, mu_water_per_mm)
    return replace(scan, values=values, unit="1/mm")


def ct_unit(scan: Scan, unit: CtUnit = "auto") -> Literal["HU", "1/mm"]:
    """The unit `attenuation` reads the values in.

    Raises:
        InputError: 'auto' cannot tell.
    """
    stated = scan.unit if unit == "auto" else unit
    if stated == "HU" or stated == "1/mm":
        return stated  # type: ignore[return-value]
    low, high = float(scan.values.min()), float(scan.values.max())
    if low < _AIR_BELOW_HU:
        return "HU"
    if low >= 0 and high <= _LARGEST_PER_MM:
        return "1/mm"
    raise InputError(
        f"cannot tell the unit of values between {low:.4g} and {high:.4g}: Hounsfield units or attenuation in 1/mm",
        where=scan.source,
        fix="say which, with HU or 1/mm as the unit; other images (MR, normalised CT) have no attenuation",
    )
