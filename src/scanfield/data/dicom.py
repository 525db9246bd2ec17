"""DICOM image series: one file per slice, or one file with many frames.

Notation (DICOM PS3.3 C.7.6.2): X, Y unit vectors along a row (growing column index) and along a column (growing row
index), S position of a slice's first pixel, n = X x Y, all in patient coordinates (LPS, mm). The pixel in column i and
row j of slice k lies at S_k + i dx X + j dy Y. Values index [i, j, k]; x and y change sign towards RAS+.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scanfield.data.guard import check_memory, located
from scanfield.data.scan import Scan
from scanfield.errors import InputError, MissingExtra
from scanfield.space.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

    _Files = list[tuple[Path, Dataset]]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_STEP_TOLERANCE = 0.2  # of a step: some scanners round positions to a tenth of a millimetre
_TILT_LIMIT_DEG = 0.1
_LISTED = 8


@dataclass(frozen=True, eq=False)
class _Slice:
    path: Path
    frame: int
    shape: tuple[int, int]  # rows, columns
    position: np.ndarray
    orientation: np.ndarray  # (2, 3): X, Y
    spacing: tuple[float, float]  # dy between rows, dx between columns
    thickness: float | None
    scale: tuple[float, float] | None  # slope, intercept
    modality: str


def read_dicom_series(folder: str | Path, *, series: str | int | None = None) -> Scan:
    """Reads one series of a folder (and its subfolders) as a volume in the world, CT in Hounsfield units.

    Stored values are rescaled by each slice's RescaleSlope and RescaleIntercept; where a CT series lacks them, it is
    returned as stored, in unit 'arbitrary'. Slices are ordered by position, never by name or number.

    Args:
        series: which one, as index or SeriesInstanceUID, if the folder holds several.

    Raises:
        InputError: no image or several series in the folder; slices that are missing, repeated, unevenly spaced, tilted
            or unequal; an attribute that is missing; pixel data that are truncated or compressed without a decoder.
        MissingExtra: pydicom is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("a DICOM series is read from its folder", where=str(folder), fix="give an existing folder")
    with located(folder):
        files = _chosen(_series_in(folder), series)
        slices = _ordered([s for path, header in files for s in _slices(header, path)])
        grid = Grid((slices[0].shape[1], slices[0].shape[0], len(slices)), _affine(slices))
        check_memory(12 * grid.size, folder)
        scaled = all(s.scale is not None for s in slices)
        values = _values(slices, grid.shape, scaled)
        unit = "HU" if scaled and slices[0].modality == "CT" else "arbitrary"
        return Scan(torch.from_numpy(values), grid, unit=unit, source=str(folder))


def _series_in(folder: Path) -> dict[str, _Files]:
    """SeriesInstanceUID -> files and headers of every series below the folder whose images have a place in space."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise MissingExtra("pydicom", "dicom", "reading a DICOM series") from error
    found: dict[str, _Files] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with _parsing(path):
            try:
                header = dcmread(path, stop_before_pixels=True)
            except InvalidDicomError:
                continue
            if "Rows" in header and "SeriesInstanceUID" in header:  # not a directory, report or structure set
                found.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    found = {uid: files for uid, files in found.items() if any(_is_placed(header) for _, header in files)}
    if not found:
        raise InputError(
            "no DICOM image with a position was found in this folder", fix="give the folder that holds the slices"
        )
    return found


def _is_placed(header: Dataset) -> bool:
    """Screenshots and dose sheets, which many exports add, have no position."""
    return "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header


def _chosen(found: dict[str, _Files], series: str | int | None) -> _Files:
    uids = sorted(found)
    listing = "\n".join(f"    {k}: {_described(found[uid])}, {uid}" for k, uid in enumerate(uids))
    if series is None:
        if len(uids) > 1:
            raise InputError(
                f"the folder holds {len(uids)} series:\n{listing}",
                fix="choose one by its index or SeriesInstanceUID: series=0",
            )
        return found[uids[0]]
    if str(series) in found:
        return found[str(series)]
    if str(series).isdecimal() and int(series) < len(uids):
        return found[uids[int(series)]]
    raise InputError(f"there is no series {series!r}; the folder holds\n{listing}", fix="choose one of these")


def _described(files: _Files) -> str:
    path, header = files[0]
    with _parsing(path):
        about = f"{header.get('Modality', '?')} {header.get('SeriesDescription', '')}".rstrip()
    return f"{len(files)} files, {_printable(about)}"


def _slices(header: Dataset, path: Path) -> list[_Slice]:
    """The slices of one file: itself, or its frames."""
    with _parsing(path):
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise InputError("colour images have no physical value; a greyscale series is needed")
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1 and frames != len(header.get("PerFrameFunctionalGroupsSequence") or []):
            raise InputError(
                f"the file has {frames} frames without a position for each",
                fix="export it as single slices",
            )
        return [_slice(header, path, frame) for frame in range(frames)]


def _slice(header: Dataset, path: Path, frame: int) -> _Slice:
    position = _macro(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _macro(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    measures = _macro(header, frame, "PixelMeasuresSequence", "PixelSpacing")
    rescale = _macro(header, frame, "PixelValueTransformationSequence", "RescaleSlope")
    thickness = measures.get("SliceThickness")
    scale = None
    if rescale.get("RescaleSlope") is not None and rescale.get("RescaleIntercept") is not None:
        slope, intercept = float(rescale.RescaleSlope), float(rescale.RescaleIntercept)
        if not np.isfinite([slope, intercept]).all() or slope == 0:
            raise InputError(f"the rescale slope and intercept are {slope} and {intercept}", where="RescaleSlope")
        scale = (slope, intercept)
    axes = _numbers(orientation, "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise InputError(f"row and column directions are no orthogonal unit vectors: {axes.tolist()}")
    dy, dx = _numbers(measures, "PixelSpacing", 2)
    if not (dy > 0 and dx > 0):
        raise InputError(f"the spacing must be positive, got {dy} and {dx} mm", where="PixelSpacing")
    return _Slice(
        path=path,
        frame=frame,
        shape=(int(header.Rows), int(header.get("Columns", 0))),
        position=_numbers(position, "ImagePositionPatient", 3),
        orientation=axes,
        spacing=(float(dy), float(dx)),
        thickness=None if thickness in (None, "") else float(thickness),
        scale=scale,
        modality=str(header.get("Modality", "")),
    )


def _macro(header: Dataset, frame: int, sequence: str, attribute: str) -> Dataset:
    """The dataset that holds `attribute` for a frame: its own group, the shared group, or the file itself."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        items = group.get(sequence)
        if items and attribute in items[0]:
            return items[0]
    return header


def _numbers(data: Dataset, name: str, count: int) -> np.ndarray:
    value: Any = data.get(name)
    try:
        numbers = np.asarray([float(v) for v in value], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(
            f"the attribute {name} must hold {count} finite numbers, got {value!r}",
            where=name,
            fix="give a primary series of slices (no localiser, report or derived picture)",
        )
    return numbers


def _ordered(slices: list[_Slice]) -> list[_Slice]:
    """The slices in the order of their positions, after all checks that they form one regular volume."""
    first = slices[0]
    for other in slices:
        for name, agrees in (
            ("size", other.shape == first.shape),
            ("pixel spacing", np.allclose(other.spacing, first.spacing, rtol=1e-3)),
            ("orientation", np.allclose(other.orientation, first.orientation, atol=1e-3)),
            ("modality", other.modality == first.modality),
            ("rescale (present or missing)", (other.scale is None) == (first.scale is None)),
        ):
            if not agrees:
                raise InputError(
                    f"the slices differ in {name}: '{first.path.name}' and '{other.path.name}'",
                    fix="keep the slices of one acquisition in the folder (move localisers elsewhere)",
                )
    normal = np.cross(first.orientation[0], first.orientation[1])
    ordered = sorted(slices, key=lambda s: float(s.position @ normal))
    height = np.array([s.position @ normal for s in ordered])
    steps = np.diff(height)
    if len(steps) == 0:
        return ordered
    repeated = steps < 0.01
    if repeated.any():
        k = int(np.flatnonzero(repeated)[0])
        raise InputError(
            f"slices share their position ({int(repeated.sum())} repeated), the first at {height[k]:.2f} mm: "
            f"'{ordered[k].path.name}' and '{ordered[k + 1].path.name}'",
            fix="keep one phase (or one copy) of the series in the folder",
        )
    usual = float(np.quantile(steps, 0.25, method="lower"))  # not the median: half of the slices may be missing
    uneven = np.flatnonzero(np.abs(steps - usual) > _STEP_TOLERANCE * usual)
    if len(uneven):
        raise InputError(_gaps(height, steps, usual, uneven), fix="export the complete series again")
    step = (ordered[-1].position - ordered[0].position) / len(steps)
    tilt = float(np.rad2deg(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    if tilt > _TILT_LIMIT_DEG:
        raise InputError(
            f"the gantry was tilted: slices are displaced at {tilt:.2f} degrees to their normal",
            fix="resample the series to an upright grid first (dcm2niix corrects the tilt and writes NIfTI)",
        )
    return ordered


def _gaps(height: np.ndarray, steps: np.ndarray, usual: float, uneven: np.ndarray) -> str:
    lines = []
    missing = 0
    for k in uneven:
        count = round(float(steps[k]) / usual) - 1
        whole = count >= 1 and abs(steps[k] / usual - count - 1) <= _STEP_TOLERANCE * (count + 1)
        missing += count if whole else 0
        what = f"{count} missing" if whole else "uneven"
        lines.append(f"    {height[k]:.2f} to {height[k + 1]:.2f} mm: {what}")
    head = f"slices are missing ({missing})" if missing else "the slices are unevenly spaced"
    more = [f"    and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join([f"{head}; the usual step is {usual:.4g} mm:", *lines[:_LISTED], *more])


def _affine(slices: list[_Slice]) -> np.ndarray:
    first, last = slices[0], slices[-1]
    (dy, dx), (x, y) = first.spacing, first.orientation
    normal = np.cross(x, y)
    if len(slices) > 1:
        step = float((last.position - first.position) @ normal) / (len(slices) - 1)
    else:
        step = first.thickness if first.thickness else 1.0
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([dx * x, dy * y, step * normal], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ first.position
    return affine


def _values(slices: list[_Slice], shape: tuple[int, int, int], scaled: bool) -> np.ndarray:
    values = np.empty(shape, dtype=np.float32)
    held: tuple[Path | None, np.ndarray] = (None, np.empty(0))
    for k in sorted(range(len(slices)), key=lambda k: (str(slices[k].path), slices[k].frame)):
        current = slices[k]
        if held[0] != current.path:
            held = (current.path, _pixels(current.path))
        stored = held[1][current.frame] if held[1].ndim == 3 else held[1]
        if stored.shape != current.shape:
            raise InputError(f"the pixel data have shape {stored.shape}, not {current.shape}", where=current.path.name)
        slope, intercept = current.scale if scaled and current.scale else (1.0, 0.0)
        values[:, :, k] = (stored * np.float64(slope) + intercept).T
    return values


def _pixels(path: Path) -> np.ndarray:
    from pydicom import dcmread

    with _parsing(path):
        data = dcmread(path)
        if "PixelData" not in data:
            raise InputError("the file holds no pixel data", fix="copy or export the series again")
        syntax = data.file_meta.TransferSyntaxUID
        try:
            return np.asarray(data.pixel_array)
        except Exception as error:
            if not syntax.is_compressed:
                raise
            raise InputError(
                f"the pixel data, compressed as '{syntax.name}', cannot be decoded: {_printable(error)}",
                fix="pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress the files with "
                "'gdcmconv --raw' or 'dcmdjpeg'",
            ) from error


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Names the file in every error; pydicom converts values lazily and raises almost anything on damaged ones."""
    with located(path.name):
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the file is truncated or damaged: {_printable(error)}", fix="copy or export the series again"
            ) from error


def _printable(text: object) -> str:
    """At most 160 characters without control codes, which damaged files bring along."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:160]
