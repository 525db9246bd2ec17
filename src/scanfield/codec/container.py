"""The `.sfz` file: a header of JSON facts and named sections of bytes, each under a checksum. Integers little-endian.

    bytes   what
    3 + 1   'SFZ' and the number of the schema, 1
    4       length H of the head
    H       head: length of the coded facts (LEB128), the facts (JSON, see `codec.text`), the number of sections, and
            for each: kind (1 byte), length of its name, name (UTF-8), length of its payload, CRC-32 of the payload
    4       CRC-32 of everything before
            the payloads, in order, to the end of the file

A section can be read without the others, and may itself be such a file. Nothing is allocated that the file's own size
does not cover.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfield.codec.text import compress_text, expand_text
from scanfield.codec.varint import Reader, Writer
from scanfield.data.guard import existing_file
from scanfield.data.write import write_atomically
from scanfield.errors import InputError

MAGIC, SCHEMA = b"SFZ", 1
SUFFIX = ".sfz"


@dataclass(frozen=True)
class Section:
    """Named bytes. `kind` says how they are coded (0..255, see who writes them); the name has at most 255 bytes."""

    name: str
    kind: int
    payload: bytes


@dataclass(frozen=True)
class Part:
    """A section whose bytes are fetched when they are written: files may be larger than memory.

    Args:
        size, checksum: bytes of the payload and their CRC-32.
        payload: fetches them.
    """

    name: str
    kind: int
    size: int
    checksum: int
    payload: Callable[[], bytes]

    @staticmethod
    def of(section: Section) -> Part:
        """A section that is in memory."""
        crc = zlib.crc32(section.payload)
        return Part(section.name, section.kind, len(section.payload), crc, lambda: section.payload)


@dataclass(frozen=True)
class Container:
    """What a file holds."""

    header: dict[str, Any]
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section:
        """The section of this name.

        Raises:
            InputError: there is none.
        """
        for found in self.sections:
            if found.name == name:
                return found
        raise InputError(f"the file has no part '{name}'")


@dataclass(frozen=True)
class Entry:
    """Where a section lies in the file: its first byte, its length, and the CRC-32 of its payload."""

    name: str
    kind: int
    start: int
    size: int
    checksum: int


@dataclass(frozen=True)
class Head:
    """A file's header without its payloads. `size` is what stands before the first payload, in bytes."""

    header: dict[str, Any]
    entries: tuple[Entry, ...]
    size: int


def write_container(path: str | Path, header: dict[str, Any], sections: Sequence[Section]) -> int:
    """Writes a file atomically and returns its size in bytes. The same input always gives the same bytes.

    Raises:
        InputError: the file cannot be written, or its name does not end in .sfz.
    """
    return write_parts(path, header, [Part.of(section) for section in sections])


def write_parts(path: str | Path, header: dict[str, Any], parts: Sequence[Part]) -> int:
    """`write_container` with one payload in memory at a time.

    Raises:
        InputError: as for `write_container`; or a payload is not the one that its part announced.
    """
    if not str(path).endswith(SUFFIX):
        raise InputError("the name of a compressed file ends in .sfz", where=str(path), fix=f"{path}{SUFFIX}")
    head = _head(header, parts)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        for part in parts:
            payload = part.payload()
            if len(payload) != part.size or zlib.crc32(payload) != part.checksum:
                raise InputError(f"the part '{part.name}' changed while the file was written", where=str(path))
            file.write(payload)
    return len(head) + sum(part.size for part in parts)


def pack(header: dict[str, Any], sections: Sequence[Section]) -> bytes:
    """The bytes of a file."""
    head = _head(header, [Part.of(section) for section in sections])
    return head + b"".join(section.payload for section in sections)


def _head(header: dict[str, Any], parts: Sequence[Part]) -> bytes:
    """Everything before the payloads."""
    if len({part.name for part in parts}) != len(parts):
        raise ValueError(f"sections need distinct names, got {[part.name for part in parts]}")
    facts = compress_text(json.dumps(header, separators=(",", ":"), allow_nan=False))
    out = Writer()
    out.unsigned(len(facts))
    out.block(facts)
    out.unsigned(len(parts))
    for part in parts:
        name = part.name.encode()
        out.block(bytes([part.kind, len(name)]))
        out.block(name)
        out.unsigned(part.size)
        out.block(part.checksum.to_bytes(4, "little"))
    head = MAGIC + bytes([SCHEMA]) + len(out.content).to_bytes(4, "little") + out.content
    return head + _checksum(head)


def read_head(path: str | Path) -> Head:
    """The header and the table of sections; reads no payload.

    Raises:
        InputError: the file is missing, no .sfz, truncated, altered, or of a newer schema.
    """
    path = existing_file(path)
    with path.open("rb") as file:
        return _read_head(file, path.stat().st_size, str(path))


def _read_head(file: io.BufferedReader | io.BytesIO, size: int, where: str) -> Head:
    start = file.read(8)
    if start[:3] != MAGIC or len(start) < 8:
        raise InputError("this is not an .sfz file", where=where, fix="give a file that `scanfield compress` wrote")
    if start[3] > SCHEMA:
        raise InputError(
            f"the file has schema {start[3]}; this version reads up to {SCHEMA}",
            where=where,
            fix="pip install --upgrade scanfield",
        )
    length = int.from_bytes(start[4:], "little")
    if length + 12 > size:
        raise InputError(
            f"the file is truncated or damaged: its header promises {length} bytes, the file has {size}",
            where=where,
        )
    head = file.read(length)
    if _checksum(start + head) != file.read(4):
        raise InputError("the file was altered: its header's checksum does not fit", where=where)
    source = Reader(head, where)
    header = _facts(source.block(source.unsigned()), where)
    entries, at = [], length + 12
    for _ in range(source.unsigned()):
        kind, length_of_name = source.block(2)
        name = source.block(length_of_name).decode(errors="replace")
        entries.append(Entry(name, kind, at, source.unsigned(), int.from_bytes(source.block(4), "little")))
        at += entries[-1].size
    if at != size:
        raise InputError(f"the file is truncated or damaged: {at} bytes are expected, it has {size}", where=where)
    return Head(header, tuple(entries), length + 12)


def read_section(path: str | Path, entry: Entry) -> Section:
    """One section of the file that `entry` is from.

    Raises:
        InputError: the payload is truncated or was altered.
    """
    with Path(path).open("rb") as file:
        return _read_section(file, entry, str(path))


def _read_section(file: io.BufferedReader | io.BytesIO, entry: Entry, where: str) -> Section:
    file.seek(entry.start)
    payload = file.read(entry.size)
    if len(payload) != entry.size or zlib.crc32(payload) != entry.checksum:
        raise InputError(f"the file was altered: the checksum of its part '{entry.name}' does not fit", where=where)
    return Section(entry.name, entry.kind, payload)


def read_container(path: str | Path) -> Container:
    """The whole file. Errors: as for `read_head` and `read_section`."""
    head = read_head(path)
    return Container(head.header, tuple(read_section(path, entry) for entry in head.entries))


def unpack(content: bytes, *, where: str = "") -> Container:
    """The content of `pack`. Errors: as for `read_container`."""
    file = io.BytesIO(content)
    head = _read_head(file, len(content), where)
    return Container(head.header, tuple(_read_section(file, entry, where) for entry in head.entries))


def _facts(content: bytes, where: str) -> dict[str, Any]:
    try:
        facts = json.loads(expand_text(content, where=where))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise InputError("the file is damaged: its header holds no facts", where=where)
    return facts


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")
