"""What `scanfield reconstruct` may be told about the X-rays of CT projections: their spectrum, and where metal is."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanfield.data.measurement import Measurement

OPTIONS = ("metal_mask", "spectrum")


def add_xray_options(parser: argparse._ActionsContainer) -> None:
    """Adds --metal-mask and --spectrum."""
    parser.add_argument(
        "--metal-mask",
        metavar="MASK",
        help="of CT projections: image on the scan's grid, not zero in metal; adds corrections of metal to the rivals, "
        "and numbers count outside of it",
    )
    parser.add_argument(
        "--spectrum",
        metavar="S",
        help="of CT projections: of the X-rays, where the scan does not state it: 120kVp, or a file of keV and photons",
    )


def asked_xray(args: argparse.Namespace) -> dict[str, Any]:
    """The options for a request, files by their absolute path."""
    from scanfield.cli.inputs import absolute

    spectrum = args.spectrum
    if spectrum is not None and Path(spectrum).is_file():
        spectrum = absolute(spectrum)
    return {"metal_mask": None if args.metal_mask is None else absolute(args.metal_mask), "spectrum": spectrum}


def files_of(asked: dict[str, Any]) -> list[str]:
    """Those of the options that are files."""
    return [name for name in asked.values() if name is not None and Path(name).is_file()]


def with_xrays(data: Measurement[Any], metal_mask: str | None, spectrum: str | None) -> Measurement[Any]:
    """The measurement with the metal and the spectrum that were given.

    Raises:
        InputError: a file cannot be read, or the spectrum is none.
    """
    if metal_mask is not None:
        from scanfield.cli.inputs import read_image

        data = replace(data, metal=read_image(metal_mask))
    if spectrum is not None:
        from scanfield.data.tubes import spectrum_of

        data = replace(data, spectrum=spectrum_of(spectrum))
    return data
