"""Many small files in one: a large volume as bricks, each a field (or a constant) of its own.

The outer `.sfz` holds what all bricks share and where they are, and every section is one brick, itself an `.sfz` file
that leaves out what the outer header says:

    header      method, config, facts: what all bricks share
                volume: shape, affine, unit, frames, edges of a brick
    sections    '0', '1', ...: brick b of frame f has the number f * bricks + b; along k first, then j, then i

A brick is read without the others. Its header either holds `constant`, the value of all its voxels, or what differs
from the shared header. Bricks of one volume do not overlap; along an axis of n voxels there are ceil(n / edge) of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from scanfield.codec.container import Container, Entry, Head, read_head, read_section, unpack
from scanfield.data.guard import check_memory
from scanfield.data.stored import StoredType
from scanfield.errors import InputError
from scanfield.space.box import Box
from scanfield.space.grid import Grid

BRICK = 7  # kind of section
_MOST_BRICK_VOXELS = 2**30


@dataclass(frozen=True, eq=False)
class Bricks:
    """How a volume is cut.

    Args:
        grid: of a frame.
        frames: sizes of 't' and 'c', as far as the volume has them.
        edge: voxels of a brick along i, j, k; the last one along an axis may be smaller.
    """

    grid: Grid
    frames: dict[str, int]
    edge: tuple[int, int, int]

    @staticmethod
    def of(grid: Grid, frames: dict[str, int], most: int) -> Bricks:
        """Bricks as equal as they can be, of at most `most` voxels along an axis."""
        a, b, c = (-(-n // -(-n // most)) for n in grid.shape)
        return Bricks(grid, dict(frames), (a, b, c))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Bricks along i, j, k."""
        a, b, c = (-(-n // edge) for n, edge in zip(self.grid.shape, self.edge, strict=True))
        return a, b, c

    @property
    def per_frame(self) -> int:
        return math.prod(self.counts)

    @property
    def frame_count(self) -> int:
        return math.prod(self.frames.values())

    @property
    def total(self) -> int:
        return self.per_frame * self.frame_count

    @property
    def voxels(self) -> int:
        """Of all frames."""
        return self.grid.size * self.frame_count

    def frame(self, number: int) -> int:
        """The frame of a brick."""
        return number // self.per_frame

    def box(self, number: int) -> Box:
        """The voxels of a brick: first voxel and first voxel beyond, by axis."""
        places = np.unravel_index(number % self.per_frame, self.counts)
        a, b, c = (
            (int(at) * edge, min((int(at) + 1) * edge, n))
            for at, edge, n in zip(places, self.edge, self.grid.shape, strict=True)
        )
        return a, b, c

    def part(self, number: int) -> Grid:
        """The grid of a brick."""
        box = self.box(number)
        return self.grid.part([start for start, _ in box], [stop - start for start, stop in box])

    def touching(self, box: Box, frame: int) -> list[int]:
        """The bricks of a frame that share voxels with a box."""
        along = [range(start // edge, -(-stop // edge)) for (start, stop), edge in zip(box, self.edge, strict=True)]
        _, n1, n2 = self.counts
        first = frame * self.per_frame
        return [first + (i * n1 + j) * n2 + k for i in along[0] for j in along[1] for k in along[2]]


@dataclass(frozen=True, eq=False)
class BrickFile:
    """An open file of bricks; bricks are fetched when `brick` asks for them.

    Args:
        bricks: how the volume is cut.
        unit, kind: of the values.
        shared: what the bricks' headers leave out.
        head: of the outer file.
    """

    path: Path
    bricks: Bricks
    unit: str
    kind: StoredType
    shared: dict[str, Any]
    head: Head = field(repr=False)

    def brick(self, number: int) -> Container:
        """A brick with its whole header; that of a constant brick has the entry `constant` alone.

        Raises:
            InputError: the brick is damaged.
        """
        entry: Entry = self.head.entries[number]
        where = f"{self.path}: brick {number}"
        content = unpack(read_section(self.path, entry).payload, where=where)
        return completed(content, self.shared, self.bricks.part(number), self.unit, where=where)


def packed_header(header: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What a brick's own header says: without the shared entries, and without what follows from its place."""
    spec = {name: part for name, part in header["spec"].items() if name not in ("grid", "unit")}
    config = {name: part for name, part in header["config"].items() if name != "budget_bytes"}
    return without({**header, "spec": spec, "config": config}, shared)


def completed(content: Container, shared: Mapping[str, Any], grid: Grid, unit: str, *, where: str = "") -> Container:
    """A brick with its whole header again.

    Raises:
        InputError: the header describes no field.
    """
    if "constant" in content.header:
        return content
    header = merged(shared, content.header)
    if not isinstance(header.get("spec"), dict):
        raise InputError("the file is damaged: a brick describes no field", where=where)
    header["spec"] = header["spec"] | {"grid": grid.to_json(), "unit": unit}
    return Container(header, content.sections)


def outer_header(bricks: Bricks, shared: Mapping[str, Any], *, unit: str) -> dict[str, Any]:
    """The header of a file of bricks.

    Args:
        shared: what the bricks' headers leave out; its `facts` are type and range of the volume.
    """
    volume = bricks.grid.to_json() | {"unit": unit, "frames": bricks.frames, "edge": list(bricks.edge)}
    return {"volume": volume, **shared}


def is_brick_file(path: str | Path) -> bool:
    """Whether an .sfz file holds bricks. Errors: as for `codec.container.read_head`."""
    return "volume" in read_head(path).header


def open_bricks(path: str | Path) -> BrickFile:
    """A file of bricks; reads its head only.

    Raises:
        InputError: the file is missing, damaged, or holds no bricks; or its header promises other bricks than it has.
    """
    head, where = read_head(path), str(path)
    try:
        volume = head.header["volume"]
        grid = Grid.from_json(volume)
        frames = {str(name): int(size) for name, size in volume["frames"].items()}
        a, b, c = (int(n) for n in volume["edge"])
        facts = head.header["facts"]
        unit, kind, low, high = str(volume["unit"]), facts["type"], float(facts["low"]), float(facts["high"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError("the file does not describe a volume of bricks", where=where) from None
    bricks = Bricks(grid, frames, (a, b, c))
    known = kind in get_args(StoredType) and set(frames) <= {"t", "c"} and low <= high
    if not known or min(a, b, c, *frames.values()) < 1 or a * b * c > _MOST_BRICK_VOXELS:
        raise InputError("the file is damaged: its header describes an impossible volume", where=where)
    check_memory(8 * a * b * c, path)
    if [entry.name for entry in head.entries] != [str(n) for n in range(len(head.entries))]:
        raise InputError("the file is damaged: its bricks are not in order", where=where)
    if bricks.total != len(head.entries):
        what = f"the file is damaged: its header promises {bricks.total} bricks, it has {len(head.entries)}"
        raise InputError(what, where=where)
    shared = {name: part for name, part in head.header.items() if name != "volume"}
    return BrickFile(Path(path), bricks, unit, kind, shared, head)


# What all headers share -----------------------------------------------------------------------------------------------


def without(header: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What a header says beyond `shared`: `merged(shared, without(header, shared))` is the header again.

    Raises:
        ValueError: the header lacks an entry of `shared`.
    """
    if not set(shared) <= set(header):
        raise ValueError(f"the header lacks {sorted(set(shared) - set(header))}")
    out = {}
    for name, value in header.items():
        if name not in shared:
            out[name] = value
        elif isinstance(value, dict) and isinstance(shared[name], dict):
            rest = without(value, shared[name])
            if rest:
                out[name] = rest
        elif not _same(value, shared[name]):
            out[name] = value
    return out


def merged(shared: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where they differ, the header holds."""
    out = {name: merged(value, {}) if isinstance(value, dict) else value for name, value in shared.items()}
    for name, value in header.items():
        nested = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if nested else value
    return out


def _same(a: Any, b: Any) -> bool:
    """Equal, and of the same type: JSON writes 1 and 1.0, true and 1 differently."""
    return type(a) is type(b) and a == b
