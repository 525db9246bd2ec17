"""Files the user names, as images and scans."""

from __future__ import annotations

from pathlib import Path

from scanfield.data.files import load
from scanfield.data.measurement import Measurement
from scanfield.data.samples import sample_path
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

SAMPLE = "sample:"


def input_path(name: str) -> Path:
    """The file behind a name: a path, or `sample:NAME` for a scan that ships with the package."""
    return sample_path(name.removeprefix(SAMPLE)) if name.startswith(SAMPLE) else Path(name)


def absolute(name: str) -> str:
    """The absolute path behind a name, so that it means the same from any folder."""
    return str(input_path(name).resolve())


def read_image(name: str, *, series: str | None = None) -> Scan:
    """An image; refuses measurements."""
    found = load(input_path(name), series=series)
    if not isinstance(found, Scan):
        raise InputError("an image is needed here, this file holds projections", where=name, fix="give NIfTI or DICOM")
    return found


def read_input(name: str) -> Scan | Measurement[ProjectionGeometry]:
    """An image or a measurement, whatever the file holds."""
    return load(input_path(name))


def output_grid(own: Grid, like: str | None, spacing_mm: float | None) -> Grid:
    """The grid to render on: that of the image `like`, or `own` with another voxel size.

    The spacing applies to the slice plane of a single slice, to all axes of a volume.
    """
    if like is not None:
        return read_image(like).grid
    return own if spacing_mm is None else own.resampled(spacing_mm)
