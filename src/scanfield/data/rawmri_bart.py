"""Raw MRI in BART's file pairs: NAME.hdr (dimensions as text) and NAME.cfl (complex64, little-endian, column-major).

Axes: 0 to 2 readout and phase encodings, 3 coils, 10 time; all others must be 1. Non-Cartesian data have axes
(1, samples, spokes, coils, ..., time) and a trajectory file of axes (3, samples, spokes, 1, ..., time), in cycles per
field of view. The files say nothing of the field of view: it is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.rawmri import KSpace, centred_volume
from scanfield.errors import InputError
from scanfield.space.kspace import KSpaceGeometry

COIL_AXIS, TIME_AXIS = 3, 10
AXES = 16
_LARGEST = 1e25  # beyond any signal of a receiver, whatever its unit; bytes in the wrong order reach 1e38


def read_bart(
    path: str | Path,
    *,
    field_of_view_mm: Sequence[float] | None,
    trajectory: str | Path | None = None,
    matrix: Sequence[int] | None = None,
    sensitivities: str | Path | None = None,
) -> KSpace:
    """Reads k-space from a BART file pair.

    Args:
        path: NAME.cfl, NAME.hdr or NAME.
        field_of_view_mm: extent of the image along its two or three axes.
        trajectory: file pair of a non-Cartesian scan, in cycles per field of view.
        matrix: voxels of a non-Cartesian scan's image (None: twice the trajectory's largest frequency).
        sensitivities: file pair of the coils' maps on the image's grid.

    Raises:
        InputError: a file is missing, truncated or of the wrong byte order, an axis has no meaning here, or the
            files contradict each other.
    """
    data = read_cfl(path)
    with located(_pair(path)[0]):
        if field_of_view_mm is None:
            raise InputError(
                "the k-space has no dimensions: a BART file does not say its field of view", fix="give field_of_view_mm"
            )
        if trajectory is None:
            values, geometry = _cartesian(data, field_of_view_mm)
        else:
            values, geometry = _along(data, read_cfl(trajectory), field_of_view_mm, matrix)
        maps = None
        if sensitivities is not None:
            maps = torch.from_numpy(np.ascontiguousarray(_series(read_cfl(sensitivities))[0]))
        return KSpace(torch.from_numpy(values), geometry, unit="arbitrary", source=str(path), sensitivities=maps)


def read_cfl(path: str | Path) -> np.ndarray:
    """The complex64 array of a BART file pair, with 16 axes.

    Raises:
        InputError: a file of the pair is missing, the header is damaged, or the data are truncated, too long or in the
            wrong byte order.
    """
    header, data = _pair(path)
    with located(header):
        shape = _dimensions(existing_file(header))
    with located(data):
        size = 8 * int(np.prod(shape, dtype=object))
        held = existing_file(data).stat().st_size
        if held != size:
            kind = "truncated" if held < size else "too long"
            raise InputError(
                f"the file is {kind}: {held} bytes, its header describes {size}", fix="copy both files again"
            )
        check_memory(2 * size, data)
        values = np.fromfile(data, dtype="<c8")
        if not _plausible(values):
            if _plausible(values.byteswap()):
                raise InputError(
                    "the numbers make sense only in the opposite byte order; cfl files are little-endian",
                    fix="values.byteswap() in NumPy, written again, corrects it",
                )
            raise InputError("the data are NaN, infinite or beyond any signal", fix="copy both files again")
        return values.reshape(shape, order="F")


def _pair(path: str | Path) -> tuple[Path, Path]:
    """(header, data) of a name with or without its ending."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    return stem.with_name(stem.name + ".hdr"), stem.with_name(stem.name + ".cfl")


def _dimensions(header: Path) -> tuple[int, ...]:
    lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    for k, line in enumerate(lines[:-1]):
        if line.strip() == "# Dimensions":
            try:
                sizes = [int(word) for word in lines[k + 1].split()]
            except ValueError:
                break
            if not sizes or min(sizes) < 0 or len(sizes) > AXES:
                break
            if 0 in sizes:
                what = "zero coils" if len(sizes) > COIL_AXIS and sizes[COIL_AXIS] == 0 else f"an empty axis: {sizes}"
                raise InputError(f"the header describes {what}", where="# Dimensions")
            return tuple(sizes + [1] * (AXES - len(sizes)))
    raise InputError("the header does not list its dimensions after '# Dimensions'", fix="write it with BART again")


def _plausible(values: np.ndarray) -> bool:
    """Whether all numbers are finite and of a size that a signal can have, most of them not denormal."""
    parts = np.abs(values.view(np.float32))
    with np.errstate(invalid="ignore"):
        tiny = (parts > 0) & (parts < 1e-30)
        return bool((parts < _LARGEST).all()) and int(tiny.sum()) <= len(parts) // 4


def _series(data: np.ndarray) -> np.ndarray:
    """(time, coils, n0, n1, n2) of an array with BART's axes."""
    for axis, n in enumerate(data.shape):
        if n > 1 and axis not in (0, 1, 2, COIL_AXIS, TIME_AXIS):
            raise InputError(f"axis {axis} has {n} entries, one is expected", where="# Dimensions")
    return np.moveaxis(data, (TIME_AXIS, COIL_AXIS), (0, 1)).reshape(
        data.shape[TIME_AXIS], data.shape[COIL_AXIS], *data.shape[:3]
    )


def _cartesian(data: np.ndarray, field_of_view_mm: Sequence[float]) -> tuple[np.ndarray, KSpaceGeometry]:
    """Lines along axis 0 on the full lattice; lines that are zero in all coils were not sampled."""
    series = _series(data)
    frames, coils, n0, n1, n2 = series.shape
    extent = [*field_of_view_mm, 1.0] if len(field_of_view_mm) == 2 else list(field_of_view_mm)
    volume = centred_volume((n0, n1, n2), extent)
    lines = series.transpose(0, 3, 4, 1, 2).reshape(frames * n1 * n2, coils, n0)
    taken = np.flatnonzero((lines != 0).any(axis=(1, 2)))
    if not len(taken):
        raise InputError("every line of k-space is zero")
    frame, j1, j2 = np.unravel_index(taken, (frames, n1, n2))
    trajectory = np.zeros((len(taken), n0, 3))
    steps = [1 / (n * s) for n, s in zip(volume.shape, volume.spacing_mm, strict=True)]
    trajectory[..., 0] = (np.arange(n0) - n0 // 2) * steps[0]
    trajectory[..., 1] = ((j1 - n1 // 2) * steps[1])[:, None]
    trajectory[..., 2] = ((j2 - n2 // 2) * steps[2])[:, None]
    geometry = KSpaceGeometry(trajectory, coils, volume, frame=frame, frames=frames)
    return np.ascontiguousarray(lines[taken]), geometry


def _along(
    data: np.ndarray, trajectory: np.ndarray, field_of_view_mm: Sequence[float], matrix: Sequence[int] | None
) -> tuple[np.ndarray, KSpaceGeometry]:
    """Views along the trajectory of its own file; one trajectory may serve all frames."""
    series = _series(data)
    frames, coils, one, samples, spokes = series.shape
    points = _series(trajectory).real
    if one != 1 or points.shape[2] != 3:
        raise InputError(f"non-Cartesian axes are (1, samples, spokes) and (3, samples, spokes), got {data.shape[:3]}")
    if points.shape[3:] != (samples, spokes) or points.shape[1] != 1 or points.shape[0] not in (1, frames):
        raise InputError(
            f"the trajectory has {points.shape[4]} spokes of {points.shape[3]} samples in {points.shape[0]} frames, "
            f"k-space has {spokes} of {samples} in {frames}",
            where="trajectory",
            fix="give one point for every sample of a coil",
        )
    points = np.broadcast_to(points, (frames, 1, 3, samples, spokes))[:, 0].transpose(0, 3, 2, 1)
    points = points.reshape(frames * spokes, samples, 3).astype(np.float64)
    axes = len(field_of_view_mm)
    if matrix is None:
        widest = np.abs(points[..., :axes]).max(axis=(0, 1))
        matrix = [max(2, 2 * int(np.ceil(x - 1e-3))) for x in widest]
    volume = centred_volume(matrix, field_of_view_mm)
    extent = np.asarray(volume.shape) * np.asarray(volume.spacing_mm)
    values = series.transpose(0, 4, 1, 3, 2).reshape(frames * spokes, coils, samples)
    geometry = KSpaceGeometry(points / extent, coils, volume, frame=np.repeat(np.arange(frames), spokes), frames=frames)
    return np.ascontiguousarray(values), geometry
