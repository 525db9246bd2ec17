"""The options by which commands take raw MR data, and the scan they describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import count, number
from scanfield.errors import InputError

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from scanfield.data.rawmri import KSpace
    from scanfield.space.grid import Grid

FORMATS = ".npz, ISMRMRD or fastMRI-style HDF5 (.h5, .hdf5), BART (.cfl)"
FILES = ("ecg", "respiration", "trajectory", "sensitivities")
"""Options that name files."""


def add_kspace_options(parser: argparse._ActionsContainer) -> None:
    """Adds everything that says what the frames of a scan are, and what formats leave unsaid."""
    parser.add_argument(
        "--frames", type=count(), metavar="N", help="equal parts of the scan (default: as the file says)"
    )
    parser.add_argument("--phases", type=count(), metavar="P", help="of the heart beat, instead of frames in time")
    parser.add_argument("--beats", type=count(), metavar="H", help="with --phases: only the first H whole beats")
    parser.add_argument(
        "--ecg", metavar="FILE", help="with --phases: times of the R-peaks in s, one a line (default: the scan's own)"
    )
    parser.add_argument(
        "--settle-s", type=number(least=0), metavar="S", help="with --phases: R-peaks before this time do not count"
    )
    parser.add_argument("--respiration", metavar="FILE", help="a breathing signal: time in s and value, two in a line")
    parser.add_argument(
        "--expiration-share",
        type=number(above=0),
        metavar="F",
        help="with --respiration: the share of views nearest to end expiration to keep (default: 0.5)",
    )
    parser.add_argument(
        "--holdout-frames",
        type=count(),
        metavar="N",
        help="whole frames kept from the fit and from the rivals, instead of --holdout-views",
    )
    parser.add_argument(
        "--sensitivities", metavar="FILE", help="of the coils, .npz or .cfl (default: the scan's, or estimated)"
    )
    parser.add_argument("--slice-index", type=count(least=0), metavar="I", help="of HDF5 with several slices")
    parser.add_argument("--trajectory", metavar="FILE", help="of BART data that are not Cartesian")
    parser.add_argument("--matrix", type=count(), nargs="+", metavar="N", help="of such data, voxels along the axes")
    parser.add_argument(
        "--field-of-view-mm", type=number(above=0), nargs="+", metavar="L", help="of BART data, two or three lengths"
    )


def read_scan(name: str, options: dict[str, Any]) -> KSpace:
    """The scan in a file, gated or cut into frames as the options of `add_kspace_options` say.

    Raises:
        InputError: the format is not supported, an option does not fit it or another option, or see the readers.
    """
    kspace = _with_sensitivities(_read(name, options), options)
    _check(options)
    if options["respiration"] is not None:
        from scanfield.data.cardiac import end_expiration, read_numbers

        signal = read_numbers(options["respiration"], 2)
        kspace = end_expiration(kspace, signal[:, 0], signal[:, 1], options["expiration_share"] or 0.5)
    if options["phases"] is not None:
        from scanfield.data.cardiac import cardiac_gated, read_numbers

        peaks = None if options["ecg"] is None else read_numbers(options["ecg"], 1)[:, 0]
        return cardiac_gated(
            kspace, options["phases"], peaks, beats=options["beats"], settle_s=options["settle_s"] or 0.0
        )
    if options["frames"] is not None:
        from dataclasses import replace

        return replace(kspace, acquisition=kspace.acquisition.cut(options["frames"]))
    return kspace


def read_cine(name: str, grid: Grid, options: dict[str, Any]) -> Tensor:
    """The true series (frames, n0, n1, n2): a cine as NIfTI, or what a simulated scan (.npz) carries.

    Raises:
        InputError: it lies on another grid, or the file has none.
    """
    if name.endswith(".npz"):
        from scanfield.data.rawmri import read_truth

        truth = read_truth(name)
        if truth is None:
            raise InputError(
                "the scan does not carry a true series", where=name, fix="give a cine: --reference FILE.nii.gz"
            )
        if options["phases"] is not None:
            raise InputError(
                "the true series of a scan lies on its own frames, not on phases",
                where=name,
                fix="scanfield simulate kspace ... --phases P --truth cine.nii.gz",
            )
        return truth
    from scanfield.data.nifti import read_nifti

    cine = read_nifti(name, channels=True)
    cine.grid.check_same(grid, mine="reference", theirs="reconstruction", fix="give the true series on the scan's grid")
    values = cine.values if cine.values.ndim == 4 else cine.values[..., None]
    return values.movedim(-1, 0)


def _read(name: str, options: dict[str, Any]) -> KSpace:
    path, ending = Path(name), Path(name).suffix.lower()
    bart = ("trajectory", "matrix", "field_of_view_mm")
    if ending in (".cfl", ".hdr"):
        from scanfield.data.rawmri_bart import read_bart

        return read_bart(
            path,
            field_of_view_mm=options["field_of_view_mm"],
            trajectory=options["trajectory"],
            matrix=options["matrix"],
        )
    for option in bart:
        if options[option] is not None:
            raise InputError(f"--{option.replace('_', '-')} is for BART data; this file says so itself", where=name)
    if ending in (".h5", ".hdf5", ".mrd"):
        from scanfield.data.rawmri_hdf5 import read_hdf5

        return read_hdf5(path, slice_index=options["slice_index"])
    if options["slice_index"] is not None:
        raise InputError("--slice-index is for HDF5 with several slices", where=name)
    if ending == ".npz":
        from scanfield.data.rawmri import read_kspace

        return read_kspace(path)
    raise InputError(f"'{path.name}' is no raw MR data that can be read", where=name, fix=f"give {FORMATS}")


def _with_sensitivities(kspace: KSpace, options: dict[str, Any]) -> KSpace:
    from dataclasses import replace

    import numpy as np
    import torch

    name = options["sensitivities"]
    if name is None:
        return kspace
    if name.endswith((".cfl", ".hdr")):
        from scanfield.data.rawmri_bart import COIL_AXIS, read_cfl

        array = np.moveaxis(read_cfl(name), COIL_AXIS, 0)
        array = array.reshape(array.shape[:4])
    else:
        from scanfield.data.rawmri import read_array

        array = read_array(name, "sensitivities")
        array = array[..., None] if array.ndim == 3 else array
    return replace(kspace, sensitivities=torch.from_numpy(np.ascontiguousarray(array)).to(torch.complex64))


def _check(options: dict[str, Any]) -> None:
    """Options that need another one, or exclude it, are refused, not ignored."""
    if options["phases"] is not None and options["frames"] is not None:
        raise InputError("a series has frames in time or phases of the beat, not both", fix="--frames N or --phases P")
    for option in ("beats", "ecg", "settle_s"):
        if options[option] is not None and options["phases"] is None:
            raise InputError(f"--{option.replace('_', '-')} is for phases of the heart beat", fix="add --phases P")
    if options["expiration_share"] is not None and options["respiration"] is None:
        raise InputError("--expiration-share needs a breathing signal", fix="add --respiration FILE")
