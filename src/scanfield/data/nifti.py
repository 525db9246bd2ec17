"""NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`).

Arrays index [i, j, k]; the affine carries voxel indices to world millimetres, RAS+. The unit of the values is kept in
the header's description as `unit=...`, because the format has no field for it.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Num, Shaped
from nibabel.spatialimages import HeaderDataError
from torch import Tensor

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.scan import Scan
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid

_UNIT = re.compile(r"\bunit=(\S+)")
_MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # the header's codes for unknown, metre, millimetre, micron
_S_PER_UNIT = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}  # unknown, second, millisecond, microsecond
_DEFLATE_LIMIT = 1032  # the largest compression ratio a gzip stream can have
_CHUNK = 2**24
_Bytes = BufferedReader | gzip.GzipFile


def read_nifti(path: str | Path, *, channels: bool = False) -> Scan:
    """Reads an image with its place in the world.

    The affine is the sform, else the qform, else the header's spacing (the standard's order); metres and microns are
    turned into millimetres, the header's scale is applied. The values are float32 of shape (n0, n1, n2), a 2-D image
    being one voxel thick, or (n0, n1, n2, channels).

    Args:
        channels: accept a fourth axis (vectors, time points, contrasts) as channels.

    Raises:
        InputError: the file is missing, truncated, damaged or no NIfTI; a spacing is not positive; a voxel is NaN or
            infinite; there is a fourth axis and `channels` is not set; the header promises more than the file holds.
    """
    path = existing_file(path)
    with located(path):
        compressed = _starts_with(path, b"\x1f\x8b")
        try:
            with gzip.open(path) if compressed else path.open("rb") as file:
                header = _header(file)
                shape, dtype, start, size = _extent(header, path, compressed=compressed, channels=channels)
                check_memory(size + size // dtype.itemsize * 4, path)
                file.seek(start)
                raw = _read(file, size)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"the file is truncated or damaged: {error}", fix="copy or export it again") from error
        values = np.frombuffer(raw, dtype).reshape(shape, order="F")
        return Scan(
            torch.from_numpy(_scaled(values, header)),
            Grid((shape[0], shape[1], shape[2]), _affine(header)),
            unit=_unit(header),
            source=str(path),
        )


def write_nifti(
    path: str | Path,
    values: Num[Tensor, "n0 n1 n2 *c"] | np.ndarray,
    grid: Grid,
    *,
    unit: str = "arbitrary",
    step_s: float | None = None,
) -> None:
    """Writes an image on `grid` atomically, with sform and qform (code 1, scanner) in millimetres.

    Integers and booleans keep their values, floating-point values become float32. The same input always gives the
    same bytes.

    Args:
        step_s: the fourth axis is time, with this step in seconds.

    Raises:
        InputError: the name does not end in .nii or .nii.gz, the shape does not fit the grid, a value is NaN or
            infinite, or the file cannot be written.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError("the name of a NIfTI file ends in .nii or .nii.gz", where=str(path))
    if array.ndim not in (3, 4) or array.shape[:3] != grid.shape:
        raise InputError(f"values of shape {array.shape} do not fit a grid of shape {grid.shape}", where=str(path))
    if array.dtype.kind not in "biuf":
        raise InputError(f"values of type {array.dtype} have no place in a NIfTI image", where=str(path))
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{int((~np.isfinite(array)).sum())} values are NaN or infinite", where=str(path))
    elif array.dtype.kind == "b":
        array = array.astype(np.uint8)
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    if step_s is not None and array.ndim == 4:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = step_s
    else:
        image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"scanfield unit={unit}".encode()[:79]
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    with write_atomically(path) as temporary:
        nib.save(image, temporary)


def nifti_bytes(values: Shaped[np.ndarray, "n0 n1 n2"], grid: Grid) -> bytes:
    """A gzipped NIfTI file in memory, in millimetres, values and type as they are; compressed fast rather than well."""
    image = nib.Nifti1Image(values, grid.affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1)


@dataclass(frozen=True, eq=False)
class NiftiLayout:
    """Where the voxels of a NIfTI file lie, and what they mean; nothing of them is read.

    Args:
        shape: three sizes, and the number of frames where there is a fourth axis.
        dtype: of the stored numbers, in the file's byte order; the first axis runs fastest.
        start: first byte of the voxels in the (expanded) file.
        scaled: whether the header asks for another intensity scale than the stored numbers'.
        compressed: whether the file must be expanded first.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    grid: Grid
    unit: str
    scaled: bool
    compressed: bool
    _header: nib.Nifti1Header

    @property
    def step_s(self) -> float | None:
        """Seconds from one frame to the next; None where the header states none. An unknown unit counts as seconds."""
        scale, step = _S_PER_UNIT.get(int(self._header["xyzt_units"]) & 56), float(self._header["pixdim"][4])
        return step * scale if scale is not None and np.isfinite(step) and step > 0 else None

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers on the header's scale; float32 if there is one."""
        return _scaled(stored, self._header) if self.scaled else stored


def nifti_layout(path: str | Path) -> NiftiLayout:
    """The layout of a file, for reading it in parts.

    Raises:
        InputError: as for `read_nifti`, as far as the header tells.
    """
    path = existing_file(path)
    with located(path):
        compressed = _starts_with(path, b"\x1f\x8b")
        try:
            with gzip.open(path) if compressed else path.open("rb") as file:
                header = _header(file)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"the file is truncated or damaged: {error}", fix="copy or export it again") from error
        shape, dtype, start, _ = _extent(header, path, compressed=compressed, channels=True)
        slope, intercept = header.get_slope_inter()
        scaled = slope is not None and (slope, intercept) != (1.0, 0.0)
        grid = Grid((shape[0], shape[1], shape[2]), _affine(header))
        return NiftiLayout(shape, dtype, start, grid, _unit(header), scaled, compressed, header)


def _extent(
    header: nib.Nifti1Header, path: Path, *, compressed: bool, channels: bool
) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape and type of the stored voxels, and their first byte and number of bytes; the file can hold them."""
    shape, dtype, start = _shape(header, channels), _dtype(header), _offset(header)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    available = path.stat().st_size * (_DEFLATE_LIMIT if compressed else 1)
    if start + size > available:
        raise _truncated(size, max(available - start, 0))
    return shape, dtype, start, size


def _header(file: _Bytes) -> nib.Nifti1Header:
    """The header alone: nibabel's own loader would also read extensions of any promised length."""
    block = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if block[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and len(block) >= size:
            header = kind(block[:size], check=False)
            if bytes(header["magic"].item())[:2] != b"n+":
                raise InputError("this is half of a header/image pair", fix="save it as one .nii or .nii.gz file")
            return header
    raise InputError("this is not a NIfTI file, or it is cut off inside its header", fix="copy or export it again")


def _shape(header: nib.Nifti1Header, channels: bool) -> tuple[int, ...]:
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(count, 0)]]
    if not 2 <= count <= 7 or min(sizes) < 1:
        raise InputError(f"the header's sizes are {sizes}: an image needs two or more axes of at least one voxel")
    spatial, rest = (*sizes, 1)[:3], [n for n in sizes[3:] if n > 1]
    if not rest:
        return spatial
    if not channels or len(rest) > 1:
        raise InputError(
            f"the image has {count} axes, {tuple(sizes)}; one volume is expected here",
            fix="extract one volume (time point, channel) into its own file",
        )
    return (*spatial, rest[0])


def _offset(header: nib.Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset < 2**62:
        raise InputError(f"the header says that the voxels start at byte {offset}", where="vox_offset")
    return int(offset)


def _dtype(header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise InputError(f"the header's data type has the unknown code {int(header['datatype'])}") from error
    if dtype.kind not in "iuf":
        raise InputError(
            f"voxels of type {dtype} are not supported: real numbers are needed",
            fix="save magnitude and phase, or the colour channels, as images of their own",
        )
    return dtype


def _read(file: _Bytes, size: int) -> bytearray:
    """Exactly `size` bytes, in pieces: memory grows with what the file really holds, not with what it promises."""
    raw = bytearray()
    while len(raw) < size:
        piece = file.read(min(_CHUNK, size - len(raw)))
        if not piece:
            raise _truncated(size, len(raw))
        raw += piece
    file.read(1)  # reaching the end makes gzip compare its checksum
    return raw


def _truncated(size: int, available: int) -> InputError:
    return InputError(
        f"the file is truncated: its header promises {size} bytes of voxels, it can hold {available}",
        fix="copy or export it again",
    )


def _scaled(values: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise InputError(f"the header's intensity scale is invalid: {error}") from error
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        values = values * np.float64(slope) + np.float64(intercept)
    with np.errstate(over="ignore"):  # becomes infinite, which the scan refuses
        return np.ascontiguousarray(values, dtype=np.float32)


def _affine(header: nib.Nifti1Header) -> np.ndarray:
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64).copy()
    flat = int(header["dim"][0]) == 2
    if int(header["sform_code"]) > 0:
        affine = header.get_sform()
    else:
        if flat and spacing[2] == 0:
            spacing[2] = header["pixdim"][3] = 1.0
        if not (np.isfinite(spacing).all() and (spacing > 0).all()):
            raise InputError(
                f"the spacing must be positive, the header says {spacing.tolist()} mm", where="pixdim", fix=_SPACING_FIX
            )
        try:
            affine = header.get_best_affine()
        except (HeaderDataError, ValueError) as error:
            raise InputError(f"the header's qform is invalid: {error}", fix=_SPACING_FIX) from error
    affine = np.array(affine, dtype=np.float64)
    if flat and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-30)
    if not affine[:3, :3].any(axis=0).all():
        raise InputError("a spacing is zero in the header's sform", where="srow_x, srow_y, srow_z", fix=_SPACING_FIX)
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise InputError(f"the header's unit of length has the unknown code {unit}", where="xyzt_units")
    affine[:3] *= _MM_PER_UNIT[unit]
    return affine


_SPACING_FIX = "write the true voxel size into the header, or export the image again"


def _unit(header: nib.Nifti1Header) -> str:
    found = _UNIT.search(bytes(header["descrip"].item()).decode("latin-1"))
    return found.group(1) if found else "arbitrary"


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
