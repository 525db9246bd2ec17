"""OME-Zarr 0.4 and 0.5 (NGFF): images that are read and written in parts and need not fit in memory.

The stored array has axes ([t], [c], [z], y, x) in this order; values here index [i, j, k] = [x, y, z], and t and c
count frames (t outermost). A voxel's centre lies at translation + scale * index along its axis, which is taken as the
world position of (x, y, z), in millimetres. The format has no oblique axes and no unit of values: `create_ome_zarr`
keeps the whole affine and the unit under the attribute `scanfield`, and `open_ome_zarr` believes it as long as its
spacings are those of the format's own scale. A length without a unit is one in millimetres.
"""

from __future__ import annotations

import importlib
import math
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Shaped

from scanfield.data.guard import check_memory, located
from scanfield.data.stored import StoredType
from scanfield.errors import InputError, MissingExtra
from scanfield.space.box import Box
from scanfield.space.grid import Grid

Version = Literal["0.4", "0.5"]
_MM = {
    "angstrom": 1e-7, "nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "decimeter": 100.0,
    "meter": 1e3, "picometer": 1e-9, "inch": 25.4,
}  # fmt: skip
_SPACE = ("x", "y", "z")
_FORMAT = {"0.4": 2, "0.5": 3}  # of zarr itself


@dataclass(frozen=True, eq=False)
class OmeZarr:
    """One resolution of an image; its voxels are fetched when `read` asks for them.

    Args:
        grid: of one frame.
        unit: of the values.
        frames: sizes of 't' and 'c', as far as the image has them, outermost first.
        kind: type of the voxels.
        source: name of the folder.
    """

    grid: Grid
    unit: str
    frames: dict[str, int]
    kind: StoredType
    source: str
    _array: Any = field(repr=False)
    _names: tuple[str, ...] = ()

    def read(self, frame: int, box: Box) -> Shaped[np.ndarray, "n0 n1 n2"]:
        """The voxels of a box of a frame, in the type `kind`.

        Raises:
            InputError: a chunk is damaged.
        """
        at = self._index(frame, box)
        try:
            part = np.asarray(self._array[at])
        except (ValueError, RuntimeError, OSError, TypeError, KeyError) as error:
            raise InputError(f"a chunk cannot be read: {error}", where=self.source) from None
        space = [name for name in self._names if name in _SPACE]
        part = part.transpose([space.index(name) for name in _SPACE if name in space])
        return part.reshape([stop - start for start, stop in box]).astype(self.kind)

    def write(self, frame: int, box: Box, values: Shaped[np.ndarray, "n0 n1 n2"]) -> None:
        """Stores the voxels of a box of a frame (of an image that `create_ome_zarr` made)."""
        space = [name for name in self._names if name in _SPACE]
        part = values.transpose([_SPACE.index(name) for name in space])
        self._array[self._index(frame, box)] = part

    def _index(self, frame: int, box: Box) -> tuple[Any, ...]:
        where = {name: slice(*part) for name, part in zip(_SPACE, box, strict=True)}
        places = np.unravel_index(frame, tuple(self.frames.values())) if self.frames else ()
        frames = dict(zip(self.frames, map(int, places), strict=True))
        return tuple(where[name] if name in _SPACE else frames[name] for name in self._names)


def is_zarr(path: str | Path) -> bool:
    """Whether a folder is a zarr group or array, of any version."""
    return any((Path(path) / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def open_ome_zarr(path: str | Path, *, level: int = 0) -> OmeZarr:
    """An image of an OME-Zarr folder; no voxel is read.

    Args:
        level: of the pyramid, 0 is the finest.

    Raises:
        InputError: no OME-Zarr image is there, its metadata contradict themselves or the array, a type is not
            supported, or one chunk alone does not fit in memory; the package zarr is missing (extra `zarr`).
    """
    path = Path(path)
    with located(path):
        if not is_zarr(path):
            raise InputError("this folder is no OME-Zarr image: it has no zarr.json and no .zgroup")
        group = _group(path)
        attributes = dict(group.attrs)
        ome = attributes.get("ome", attributes)
        scales = ome.get("multiscales") if isinstance(ome, dict) else None
        if not (isinstance(scales, list) and scales and isinstance(scales[0], dict)):
            raise InputError("the folder holds no OME-Zarr image: it has no 'multiscales'", fix=_IMAGE_FIX)
        image = scales[0]
        names, millimetres = _axes(image.get("axes"))
        datasets = image.get("datasets")
        if not (isinstance(datasets, list) and datasets and all(isinstance(one, dict) for one in datasets)):
            raise InputError("the image's metadata name no arrays", where="datasets")
        if not 0 <= level < len(datasets):
            raise InputError(f"the image has levels 0..{len(datasets) - 1}, not {level}", where="datasets")
        array = _array(group, path, datasets[level].get("path"))
        if len(array.shape) != len(names) or min(array.shape) < 1:
            raise InputError(f"the array has shape {tuple(array.shape)}, its metadata name the axes {names}")
        kind = _kind(array.dtype)
        check_memory(2 * math.prod(array.chunks) * array.dtype.itemsize, path)
        scale, translation = np.ones(len(names)), np.zeros(len(names))
        for steps in (datasets[level].get("coordinateTransformations"), image.get("coordinateTransformations")):
            more, shift = _transform(steps, len(names))
            scale, translation = scale * more, translation * more + shift
        sizes = dict(zip(names, map(int, array.shape), strict=True))
        affine = np.eye(4)
        for axis, name in enumerate(_SPACE):
            if name in names:
                at = names.index(name)
                affine[axis, axis], affine[axis, 3] = scale[at] * millimetres[name], translation[at] * millimetres[name]
        ours = attributes.get("scanfield")
        grid = Grid((sizes["x"], sizes["y"], sizes.get("z", 1)), _our_affine(ours, affine, level))
        unit = str(ours.get("unit", "arbitrary")) if isinstance(ours, dict) else "arbitrary"
        frames = {name: sizes[name] for name in names if name not in _SPACE}
        return OmeZarr(grid, unit, frames, kind, str(path), array, tuple(names))


@contextmanager
def create_ome_zarr(
    path: str | Path,
    grid: Grid,
    kind: StoredType,
    *,
    frames: dict[str, int] | None = None,
    unit: str = "arbitrary",
    chunks: Sequence[int] = (64, 64, 64),
    version: Version = "0.5",
) -> Iterator[OmeZarr]:
    """An image of one resolution to `write` into; the folder appears when the block ends without an error.

    Args:
        frames: sizes of 't' and 'c', in this order, where there are such axes.
        chunks: voxels of a chunk along i, j, k.

    Raises:
        InputError: the name is taken, the folder cannot be written; the package zarr is missing (extra `zarr`).
    """
    path, frames = Path(path), dict(frames or {})
    if list(frames) != [name for name in ("t", "c") if name in frames]:
        raise ValueError(f"frames are counted by 't' and 'c', in this order, got {list(frames)}")
    if path.exists():
        raise InputError("this folder exists already", where=str(path), fix="remove it, or choose another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder '{path.absolute().parent}' does not exist", where=str(path))
    zarr = _package()
    names = (*frames, "z", "y", "x")
    spacing = dict(zip(_SPACE, grid.spacing_mm, strict=True))
    origin = dict(zip(_SPACE, map(float, grid.affine[:3, 3]), strict=True))
    axes = [_axis(name) for name in names]
    steps = [
        {"type": "scale", "scale": [spacing.get(name, 1.0) for name in names]},
        {"type": "translation", "translation": [origin.get(name, 0.0) for name in names]},
    ]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    described = {"multiscales": [image | ({"version": version} if version == "0.4" else {})]}
    own = {"affine_mm": grid.affine.tolist(), "unit": unit}
    attributes = described if version == "0.4" else {"ome": {"version": version} | described}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        group = zarr.open_group(str(temporary), mode="w-", zarr_format=_FORMAT[version])
        group.attrs.update(attributes | {"scanfield": own})
        whole = (*frames.values(), *reversed(grid.shape))
        pieces = (*(1 for _ in frames), *reversed([min(c, n) for c, n in zip(chunks, grid.shape, strict=True)]))
        array = group.create_array("0", shape=whole, chunks=pieces, dtype=kind, fill_value=0)
        yield OmeZarr(grid, unit, frames, kind, str(path), array, names)
        temporary.rename(path)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", where=str(path), fix="choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# The metadata, with suspicion -----------------------------------------------------------------------------------------

_IMAGE_FIX = "give the folder of one image (a plate or a collection of images holds them deeper)"


def _package() -> Any:
    try:
        return importlib.import_module("zarr")
    except ImportError:
        raise MissingExtra("zarr", "zarr", "OME-Zarr") from None


def _group(path: Path) -> Any:
    try:
        return _package().open_group(str(path), mode="r")
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise InputError(f"the zarr metadata cannot be read: {error}", fix="copy or export it again") from None


def _array(group: Any, path: Path, name: Any) -> Any:
    if not isinstance(name, str) or not (path / name).resolve().is_relative_to(path.resolve()):
        raise InputError("the image's metadata name an array outside of its folder", where="datasets")
    try:
        found = group[name]
        _ = found.shape, found.chunks, found.dtype.itemsize  # a group has no shape
    except (ValueError, TypeError, KeyError, OSError, AttributeError, NotImplementedError, RecursionError) as error:
        raise InputError(f"the array '{name}' cannot be opened: {error}", where="datasets") from None
    return found


def _axes(axes: Any) -> tuple[list[str], dict[str, float]]:
    """Names of the axes, and millimetres of a unit of those of space."""
    try:
        names = [str(axis["name"]) for axis in axes]
        units = {str(axis["name"]): axis.get("unit", "millimeter") for axis in axes}
    except (KeyError, TypeError, AttributeError):
        raise InputError("the image's metadata do not name its axes", where="axes") from None
    wanted = [name for name in ("t", "c", "z", "y", "x") if name in names]
    if names != wanted or not {"y", "x"} <= set(names):
        raise InputError(f"the axes are {names}; ([t], [c], [z], y, x) is expected", where="axes")
    for name in set(names) & set(_SPACE):
        if units[name] not in _MM:
            raise InputError(f"the axis '{name}' has the unknown unit '{units[name]}'", where="axes")
    return names, {name: _MM[units[name]] for name in names if name in _SPACE}


def _transform(steps: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of a list of coordinate transformations."""
    scale, translation = np.ones(count), np.zeros(count)
    if steps is None:
        return scale, translation
    damaged = InputError("a scale or a translation of the image cannot be right", where="coordinateTransformations")
    listed: list[Any] = steps if isinstance(steps, list) else [None]
    for step in listed:
        try:
            kind = step["type"]
            numbers = np.asarray(step[kind], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise damaged from None
        if kind not in ("scale", "translation") or numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise damaged
        if kind == "scale":
            if not (numbers > 0).all():
                raise damaged
            scale, translation = scale * numbers, translation * numbers
        else:
            translation = translation + numbers
    return scale, translation


def _our_affine(ours: Any, affine: np.ndarray, level: int) -> np.ndarray:
    """The affine that we kept, if it belongs to this image; else the one of the format."""
    if not isinstance(ours, dict) or "affine_mm" not in ours or level > 0:
        return affine
    try:
        kept = Grid((1, 1, 1), np.asarray(ours["affine_mm"], dtype=np.float64))
    except (TypeError, ValueError):
        raise InputError("the affine is no 4x4 matrix", where="scanfield.affine_mm") from None
    if not np.allclose(kept.spacing_mm, np.diag(affine)[:3], rtol=1e-4):
        raise InputError(
            "the image's scale and its attribute 'scanfield' give different voxel sizes",
            where="scanfield.affine_mm",
            fix="remove the attribute 'scanfield' if another program changed the image",
        )
    return kept.affine


def _kind(dtype: Any) -> StoredType:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype("O")
    name = {"bool": "uint8", "float16": "float32", "float64": "float32"}.get(found.name, found.name)
    for kind in get_args(StoredType):
        if kind == name:
            chosen: StoredType = kind
            return chosen
    raise InputError(f"voxels of type {found} are not supported", fix="convert them to integers of 32 bits or float32")


def _axis(name: str) -> dict[str, str]:
    if name in _SPACE:
        return {"name": name, "type": "space", "unit": "millimeter"}
    return {"name": name, "type": "time" if name == "t" else "channel"}
