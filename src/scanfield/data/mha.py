"""MetaImage files (`.mha`, or `.mhd` with its data beside it): numbers with spacing and origin, as ITK writes them.

A header of text lines `Key = value`, the last of which, `ElementDataFile`, is LOCAL or names a file in the same folder.
Values are plain or one zlib stream. Sizes are compared with what the file holds before memory is taken for them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.errors import InputError

_HEADER_BYTES = 2**16
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_TRUE = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True, eq=False)
class MetaImage:
    """Values with the first file axis last (C order), and where they lie.

    Args:
        values: (..., n1, n0), in the file's type.
        spacing, origin: along file axes 0, 1, ..., in mm.
        direction: (d, d), columns are the directions of the file axes.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray


def read_mha(path: str | Path) -> MetaImage:
    """Reads a MetaImage of one channel.

    Raises:
        InputError: the file is missing, truncated or damaged, its header contradicts itself or promises more than the
            file holds, or it has a form that is not supported (several channels, ASCII values, a list of files).
    """
    path = existing_file(path)
    with located(path):
        with path.open("rb") as file:
            facts, start = _header(file.read(_HEADER_BYTES))
        shape = tuple(_numbers(facts, "DimSize", int, least=1))
        dims = len(shape)
        if facts.get("NDims", str(dims)) != str(dims) or not 1 <= dims <= 4:
            raise InputError(f"NDims = {facts.get('NDims')} and DimSize = {facts['DimSize']} disagree", where="header")
        kind = facts.get("ElementType", "")
        if kind not in _TYPES:
            raise InputError(f"ElementType = {kind or '(missing)'} is not supported", where="header")
        if facts.get("ElementNumberOfChannels", "1") != "1":
            raise InputError("images of several channels are not supported", where="header")
        if not _flag(facts, ("BinaryData",), default=True):
            raise InputError("values written as text are not supported", where="header", fix="write binary data")
        order = ">" if _flag(facts, ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), default=False) else "<"
        values = _values(path, facts, start, shape[::-1], np.dtype(order + _TYPES[kind]))
        spacing = _numbers(facts, "ElementSpacing", float, default=[1.0] * dims)
        origin = _numbers(facts, next((k for k in ("Offset", "Position", "Origin") if k in facts), "Offset"), float,
                          default=[0.0] * dims)  # fmt: skip
        matrix = _numbers(facts, next((k for k in ("TransformMatrix", "Rotation", "Orientation") if k in facts), ""),
                          float, default=np.eye(dims).ravel().tolist())  # fmt: skip
        if len(spacing) != dims or len(origin) != dims or len(matrix) != dims**2 or min(spacing) <= 0:
            raise InputError(f"spacing, offset and matrix must suit {dims} axes, spacing above 0", where="header")
        return MetaImage(values, tuple(spacing), tuple(origin), np.asarray(matrix).reshape(dims, dims).T)


def _header(block: bytes) -> tuple[dict[str, str], int]:
    """The header's entries, and where a LOCAL file's values start."""
    facts: dict[str, str] = {}
    place = 0
    while True:
        end = block.find(b"\n", place)
        line = block[place : end if end >= 0 else len(block)]
        key, found, value = line.partition(b"=")
        try:
            name, text = key.decode("ascii").strip(), value.decode("utf-8").strip()
        except UnicodeDecodeError:
            found, name, text = b"", "", ""
        if not found or not name:
            raise InputError("this is no MetaImage header: a line without 'Key = value'", where="header")
        facts[name] = text
        if name == "ElementDataFile":
            return facts, end + 1 if end >= 0 else len(block)
        if end < 0:
            raise InputError("the header names no ElementDataFile", where="header", fix="copy the file again")
        place = end + 1


def _values(path: Path, facts: dict[str, str], start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    name = facts["ElementDataFile"]
    if name != "LOCAL":
        if name.upper().startswith("LIST") or "%" in name or Path(name).name != name:
            raise InputError(f"ElementDataFile = {name}: only LOCAL or one file beside the header", where="header")
        path, start = existing_file(path.parent / name), 0
        skip = _numbers(facts, "HeaderSize", int, default=[0], least=-1)[0]
        start = path.stat().st_size - size if skip == -1 else skip
    stored = path.stat().st_size - start
    compressed = _flag(facts, ("CompressedData",), default=False)
    if start < 0 or (not compressed and stored < size):
        raise InputError(
            f"the header promises {size} bytes of values, the file holds {max(stored, 0)}",
            where=path.name,
            fix="copy the file again",
        )
    check_memory(2 * size, path.name)
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read() if compressed else file.read(size)
    if compressed:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(raw, size + 1)
        except zlib.error as error:
            raise InputError(f"the compressed values are damaged: {error}", where=path.name) from None
        if len(raw) != size:
            more = "more" if len(raw) > size else len(raw)
            raise InputError(f"the header promises {size} bytes of values, the file holds {more}", where=path.name)
    return np.frombuffer(raw, dtype).reshape(shape)


def _flag(facts: dict[str, str], names: tuple[str, ...], *, default: bool) -> bool:
    for name in names:
        if name in facts:
            if facts[name].lower() not in _TRUE:
                raise InputError(f"{name} = {facts[name]} is neither True nor False", where="header")
            return _TRUE[facts[name].lower()]
    return default


def _numbers(
    facts: dict[str, str], name: str, kind: type, *, default: list[float] | None = None, least: float = -np.inf
) -> list:
    if name not in facts:
        if default is None:
            raise InputError(f"the header lacks {name}", where="header")
        return default
    try:
        values = [kind(part) for part in facts[name].split()]
    except ValueError:
        values = []
    if not values or not np.isfinite(values).all() or min(values) < least:
        raise InputError(f"{name} = {facts[name]} is not a list of fitting numbers", where="header")
    return values
