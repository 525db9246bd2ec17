"""Reading whatever the user names: the one place that knows which format goes to which reader."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from scanfield.data.dicom import read_dicom_series
from scanfield.data.measurement import Measurement
from scanfield.data.nifti import read_nifti
from scanfield.data.projections import read_projections
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.projection import ProjectionGeometry

SUPPORTED = "NIfTI (.nii, .nii.gz), a folder with a DICOM series, CT projections (.npz)"


def load(path: str | Path, *, series: str | int | None = None) -> Scan | Measurement[ProjectionGeometry]:
    """Reads an image or a measurement; the format is recognised by the name's ending, else by the first bytes.

    Args:
        series: which series of a DICOM folder (index or SeriesInstanceUID), where there are several.

    Raises:
        InputError: nothing is there, or its format is not supported; otherwise see the format's reader.
    """
    path = Path(path)
    if path.is_dir():
        return read_dicom_series(path, series=series)
    if series is not None:
        raise InputError("only a DICOM folder has several series to choose from", where=str(path))
    if not path.exists():
        raise InputError("there is no such file or folder", where=str(path), fix="check the path")
    match _format(path):
        case "nifti":
            return read_nifti(path)
        case "npz":
            if _holds_kspace(path):
                raise InputError(
                    "the file holds raw MR data, not CT projections or an image",
                    where=str(path),
                    fix="choose a method that takes k-space, such as nik: `scanfield list` shows them",
                )
            return read_projections(path)
        case "dicom":
            raise InputError(
                "a single DICOM file is one part of a series", where=str(path), fix=f"give its folder: {path.parent}"
            )
    raise InputError(
        f"the format of '{path.name}' is not recognised", where=str(path), fix=f"convert it to one of: {SUPPORTED}"
    )


def checksum(path: str | Path) -> str:
    """SHA-256 of a file; of a folder, SHA-256 over the sorted relative names and checksums of its files."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise InputError("there is no such file or folder", where=str(path), fix="check the path")
    digest = hashlib.sha256()
    for file_path in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{checksum(file_path)}\n".encode())
    return digest.hexdigest()


def _holds_kspace(path: Path) -> bool:
    """Whether an .npz file has k-space and no projections; a damaged one is left to its reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return "kspace.npy" in names and "projections.npy" not in names


def _format(path: Path) -> str:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(".npz"):
        return "npz"
    if name.endswith(".dcm"):
        return "dicom"
    try:
        with path.open("rb") as file:
            head = file.read(348)
    except OSError as error:
        raise InputError(f"the file cannot be opened: {error.strerror}", where=str(path)) from error
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:2] == b"\x1f\x8b" or head[344:347] == b"n+1" or head[4:7] == b"n+2":
        return "nifti"
    if head[:4] == b"PK\x03\x04":
        return "npz"
    return "unknown"
