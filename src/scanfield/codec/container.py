"""The `.sfz` file: a header of JSON facts and named sections of bytes, each under a checksum. Integers little-endian.

    bytes   what
    3 + 1   'SFZ' and the number of the schema, 1
    4       length H of the head
    H       head: length of the coded facts (LEB128), the facts (JSON, see `codec.text`), the number of sections, and
            for each: kind (1 byte), length of its name, name (UTF-8), length of its payload, CRC-32 of the payload
    4       CRC-32 of everything before
            the payloads, in order, to the end of the file

A section can be read without the others. Nothing is allocated that the file's own size does not cover.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
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
    if not str(path).endswith(SUFFIX):
        raise InputError("the name of a compressed file ends in .sfz", where=str(path), fix=f"{path}{SUFFIX}")
    content = pack(header, sections)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def pack(header: dict[str, Any], sections: Sequence[Section]) -> bytes:
    """The bytes of a file."""
    names = [section.name for section in sections]
    if len(set(names)) != len(names):
        raise ValueError(f"sections need distinct names, got {names}")
    facts = compress_text(json.dumps(header, separators=(",", ":"), allow_nan=False))
    out = Writer()
    out.unsigned(len(facts))
    out.block(facts)
    out.unsigned(len(sections))
    for section in sections:
        name = section.name.encode()
        out.block(bytes([section.kind, len(name)]))
        out.block(name)
        out.unsigned(len(section.payload))
        out.block(_checksum(section.payload))
    head = MAGIC + bytes([SCHEMA]) + len(out.content).to_bytes(4, "little") + out.content
    return head + _checksum(head) + b"".join(section.payload for section in sections)


def read_head(path: str | Path) -> Head:
    """The header and the table of sections; reads no payload.

    Raises:
        InputError: the file is missing, no .sfz, truncated, altered, or of a newer schema.
    """
    path = existing_file(path)
    where, size = str(path), path.stat().st_size
    with path.open("rb") as file:
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
        file.seek(entry.start)
        payload = file.read(entry.size)
    if len(payload) != entry.size or _checksum(payload) != entry.checksum.to_bytes(4, "little"):
        raise InputError(f"the file was altered: the checksum of its part '{entry.name}' does not fit", where=str(path))
    return Section(entry.name, entry.kind, payload)


def read_container(path: str | Path) -> Container:
    """The whole file. Errors: as for `read_head` and `read_section`."""
    head = read_head(path)
    return Container(head.header, tuple(read_section(path, entry) for entry in head.entries))


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
