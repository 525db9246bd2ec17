"""Volumes that need not fit in memory: NIfTI and OME-Zarr, opened without reading a voxel, read and written in boxes.

A volume has frames (time points, channels; one, if it has neither) on one grid, and voxels of a stored type.
`open_volume` is the one place that knows which format is which.
"""

from __future__ import annotations

import gzip
import math
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, get_args, runtime_checkable

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from scanfield.data.guard import existing_file, located
from scanfield.data.nifti import NiftiLayout, nifti_layout
from scanfield.data.stored import StoredType
from scanfield.data.write import write_atomically
from scanfield.data.zarr import Version, create_ome_zarr, open_ome_zarr
from scanfield.errors import InputError
from scanfield.space.box import Box
from scanfield.space.grid import Grid

NAMES = (".nii", ".nii.gz", ".zarr")
_LARGEST_NIFTI1 = 32767  # voxels along an axis
_PIECE = 2**24


@runtime_checkable
class Volume(Protocol):
    """What can be read in boxes.

    `frames` are the sizes of 't' and 'c', as far as there are such axes; a frame's number runs through them in C order.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def unit(self) -> str: ...
    @property
    def frames(self) -> dict[str, int]: ...
    @property
    def kind(self) -> StoredType: ...
    @property
    def source(self) -> str: ...

    def read(self, frame: int, box: Box) -> Shaped[np.ndarray, "n0 n1 n2"]:
        """The voxels of a box (first voxel and first voxel beyond, by axis) of a frame, of the type `kind`."""


@runtime_checkable
class Writable(Protocol):
    """What can be written in boxes."""

    def write(self, frame: int, box: Box, values: Shaped[np.ndarray, "n0 n1 n2"]) -> None:
        """Stores the voxels of a box of a frame."""


def open_volume(path: str | Path, *, expanded: Path | None = None) -> Volume:
    """A NIfTI file (up to four axes) or an OME-Zarr folder.

    Args:
        expanded: where a `.nii.gz` is expanded to, because nothing can be read from its middle; a file that is there
            already is taken for the expanded one.

    Raises:
        InputError: nothing readable is there (see `data.nifti` and `data.zarr`), or the voxels' type is none that is
            compressed.
    """
    path = Path(path)
    if path.is_dir() or path.name.endswith(".zarr"):
        return open_ome_zarr(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(
            "this format is not read in parts", where=str(path), fix="convert it to NIfTI or OME-Zarr, or crop it"
        )
    layout = nifti_layout(path)
    if layout.compressed:
        if expanded is None:
            raise InputError("a compressed NIfTI file cannot be read in parts", where=str(path), fix=f"gunzip {path}")
        if not expanded.exists():
            _expand(path, expanded, layout)
        path, layout, source = expanded, nifti_layout(expanded), str(path)
    else:
        source = str(path)
    volume = _NiftiVolume(path, layout, source)
    _ = volume.kind  # an unsupported type is refused here
    return volume


def stored_bits(path: str | Path) -> int:
    """Bits of a voxel of a volume that `open_volume` opens; a `.nii.gz` is not expanded."""
    path = Path(path)
    if path.name.endswith(".nii.gz"):
        return 8 * np.dtype(_NiftiVolume(path, nifti_layout(path), str(path)).kind).itemsize
    return 8 * np.dtype(open_volume(path).kind).itemsize


@contextmanager
def create_volume(
    path: str | Path,
    grid: Grid,
    kind: StoredType,
    *,
    frames: dict[str, int] | None = None,
    unit: str = "arbitrary",
    chunks: tuple[int, int, int] = (64, 64, 64),
    version: Version = "0.5",
) -> Iterator[Writable]:
    """A NIfTI file (`.nii`, `.nii.gz`) or an OME-Zarr folder (`.zarr`) to write into; it appears when it is complete.

    Args:
        chunks, version: of an OME-Zarr folder (see `data.zarr`).

    Raises:
        InputError: the name ends otherwise, nothing can be written there, or NIfTI cannot hold two kinds of frames.
    """
    frames = dict(frames or {})
    if str(path).endswith(".zarr"):
        with create_ome_zarr(path, grid, kind, frames=frames, unit=unit, chunks=chunks, version=version) as made:
            yield made
        return
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"the name of an image ends in {', '.join(NAMES)}", where=str(path))
    if len(frames) > 1:
        raise InputError(
            "NIfTI has no place for time points and channels together", where=str(path), fix="-o NAME.zarr"
        )
    with write_atomically(path) as temporary:
        if not str(path).endswith(".gz"):
            yield _NiftiFile(temporary, grid, kind, frames, unit)
            return
        plain = temporary.with_name(temporary.name.removesuffix(".gz"))
        try:
            yield _NiftiFile(plain, grid, kind, frames, unit)
            with plain.open("rb") as source, gzip.GzipFile(temporary, "wb", compresslevel=6, mtime=0) as target:
                shutil.copyfileobj(source, target, _PIECE)
        finally:
            plain.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _NiftiVolume:
    """A plain NIfTI file. Rows along the first axis are read whole: the file has them in one piece."""

    path: Path
    layout: NiftiLayout = field(repr=False)
    source: str = ""

    @property
    def grid(self) -> Grid:
        return self.layout.grid

    @property
    def unit(self) -> str:
        return self.layout.unit

    @property
    def frames(self) -> dict[str, int]:
        return {"t": self.layout.shape[3]} if len(self.layout.shape) > 3 else {}

    @property
    def kind(self) -> StoredType:
        name = "float32" if self.layout.scaled else self.layout.dtype.newbyteorder("=").name
        for kind in get_args(StoredType):
            if kind == ({"float64": "float32", "float16": "float32"}.get(name, name)):
                chosen: StoredType = kind
                return chosen
        raise InputError(f"voxels of type {name} are not supported", where=self.source)

    def read(self, frame: int, box: Box) -> Shaped[np.ndarray, "n0 n1 n2"]:
        n0, n1, n2 = self.grid.shape
        (a, b), (c, d), (e, f) = box
        out = np.empty((b - a, d - c, f - e), dtype=self.kind)
        with self.path.open("rb") as file, located(self.source):
            for k in range(e, f):
                first = ((frame * n2 + k) * n1 + c) * n0
                file.seek(self.layout.start + first * self.layout.dtype.itemsize)
                rows = np.fromfile(file, self.layout.dtype, (d - c) * n0)
                if rows.size != (d - c) * n0:
                    raise InputError("the file is truncated", fix="copy or export it again")
                out[:, :, k - e] = self.layout.values(rows.reshape(n0, d - c, order="F")[a:b])
        return out


class _NiftiFile:
    """A NIfTI file of zeros to write boxes into."""

    def __init__(self, path: Path, grid: Grid, kind: StoredType, frames: dict[str, int], unit: str) -> None:
        self.path, self.shape, self.dtype = path, grid.shape, np.dtype(kind).newbyteorder("<")
        shape = (*grid.shape, *frames.values())
        cls = nib.Nifti1Image if max(shape) <= _LARGEST_NIFTI1 else nib.Nifti2Image
        image = cls(np.zeros((1, 1, 1), dtype=self.dtype), grid.affine)
        image.header.set_data_shape(shape)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"scanfield unit={unit}".encode()[:79]
        image.set_sform(grid.affine, code=1)
        image.set_qform(grid.affine, code=1)
        self.start = image.header.sizeof_hdr + 4  # no extensions
        image.header["vox_offset"] = self.start
        with path.open("wb") as file:
            file.write(image.header.binaryblock + bytes(4))
            file.truncate(self.start + math.prod(shape) * self.dtype.itemsize)

    def write(self, frame: int, box: Box, values: Shaped[np.ndarray, "n0 n1 n2"]) -> None:
        n0, n1, n2 = self.shape
        (a, _), (c, d), (e, f) = box
        with self.path.open("r+b", buffering=0) as file:
            for k in range(e, f):
                rows = np.asfortranarray(values[:, :, k - e]).astype(self.dtype)
                if rows.shape[0] == n0:  # whole rows lie in one piece
                    file.seek(self.start + ((frame * n2 + k) * n1 + c) * n0 * self.dtype.itemsize)
                    file.write(rows.tobytes(order="F"))
                    continue
                for j in range(c, d):
                    file.seek(self.start + (((frame * n2 + k) * n1 + j) * n0 + a) * self.dtype.itemsize)
                    file.write(rows[:, j - c].tobytes())


def _expand(path: Path, target: Path, layout: NiftiLayout) -> None:
    """Unpacks a file, and no more of it than its header promises."""
    left = layout.start + math.prod(layout.shape) * layout.dtype.itemsize
    try:
        with (
            gzip.open(existing_file(path)) as source,
            write_atomically(target) as temporary,
            temporary.open("wb") as out,
        ):
            while left:
                piece = source.read(min(_PIECE, left))
                if not piece:
                    raise InputError("the file is truncated", where=str(path), fix="copy or export it again")
                out.write(piece)
                left -= len(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"the file is truncated or damaged: {error}", where=str(path)) from None
