"""A file of bricks back to a volume: whole, a frame, a box, or on another grid; one brick in memory at a time.

On another grid every point asks the field of the brick it lies in, points beyond the volume are zero, and a residual
does not count, as in `tasks.compression.decompress`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from scanfield.codec.bricks import BrickFile, Bricks, open_bricks
from scanfield.codec.container import read_section, unpack
from scanfield.codec.field_file import RateReport, check_key, field_of
from scanfield.data.guard import check_memory
from scanfield.data.volumes import create_volume
from scanfield.data.zarr import Version
from scanfield.errors import InputError
from scanfield.run import Run
from scanfield.space.box import Box
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.tasks.brick_fits import values_of
from scanfield.tasks.compression import Decoded, part_of, restored
from scanfield.tasks.model import Model

_SLAB_POINTS = 2**20  # of another grid, rendered at once
_FIELDS = 64  # kept while another grid is rendered


def decompress_bricks(
    path: str | Path,
    output: str | Path,
    run: Run,
    *,
    frame: int | None = None,
    box: Box | None = None,
    grid: Grid | None = None,
    version: Version = "0.5",
    model: Model | None = None,
) -> dict[str, Any]:
    """Writes the volume in a file of bricks as NIfTI or OME-Zarr, brick by brick.

    Args:
        output: `.nii`, `.nii.gz` or `.zarr`.
        frame: only this one (they are counted in C order over time points and channels).
        box: only this part of the own grid: first voxel and first voxel beyond, by axis.
        grid: another grid to render on.
        version: of OME-Zarr.
        model: the one the file was written with, if it was written with one.

    Returns:
        type, unit, shape, frames and spacing of what was written.

    Raises:
        InputError: the file is missing or damaged, the frame or the box does not exist, the output cannot be written,
            or (with a residual) this machine's arithmetic does not reproduce a field.
    """
    if grid is not None and box is not None:
        raise ValueError("either a grid or a box of the own grid can be rendered")
    file = open_bricks(path)
    check_key(file.shared, model, str(path))
    bricks = file.bricks
    chosen = _frames(bricks, frame)
    target = _box_grid(bricks.grid, box) if grid is None else grid
    frames = bricks.frames if frame is None else {}
    chunks = bricks.edge
    with create_volume(output, target, file.kind, frames=frames, unit=file.unit, chunks=chunks, version=version) as out:
        start = time.perf_counter()
        for at, number in enumerate(chosen):
            for done, of, place, values in _pieces(file, number, box, grid, run, model):
                if values.any():  # a new image is zero
                    out.write(at, place, values)
                seconds = time.perf_counter() - start
                step = {"step": at * of + done, "of": len(chosen) * of}
                run.tell({"stage": "decoded", **step, "seconds": seconds, "loss": {}})
    return {
        "type": file.kind,
        "unit": file.unit,
        "shape": list(target.shape),
        "frames": frames,
        "spacing_mm": list(target.spacing_mm),
    }


def read_bricks(
    path: str | Path,
    *,
    frame: int = 0,
    box: Box | None = None,
    grid: Grid | None = None,
    device: torch.device | str = "cpu",
    model: Model | None = None,
) -> Decoded:
    """A frame of a file of bricks, a box of it, or the frame on another grid, in memory. Only the bricks that are
    touched are read.

    Raises:
        InputError: as for `decompress_bricks`; or the part does not fit in memory.
    """
    if grid is not None and box is not None:
        raise ValueError("either a grid or a box of the own grid can be rendered")
    file, run = open_bricks(path), Run(device=torch.device(device))
    check_key(file.shared, model, str(path))
    (number,) = _frames(file.bricks, frame)
    target = _box_grid(file.bricks.grid, box) if grid is None else grid
    check_memory(8 * target.size, path)
    out = np.empty(target.shape, dtype=file.kind)
    for _, _, place, values in _pieces(file, number, box, grid, run, model):
        out[_slices(place)] = values
    return Decoded(out, target, file.unit)


def brick_rates(path: str | Path) -> RateReport:
    """Where the bytes of a file of bricks are: its head, the bricks' headers, weights, residuals. Reads all of it.

    Raises:
        InputError: the file is damaged.
    """
    file = open_bricks(path)
    parts: dict[str, int] = {"header": file.head.size, "headers of bricks": 0}
    for number, entry in enumerate(file.head.entries):
        content = unpack(read_section(path, entry).payload, where=f"{path}: brick {number}")
        for section in content.sections:
            parts[section.name] = parts.get(section.name, 0) + len(section.payload)
        parts["headers of bricks"] += entry.size - sum(len(section.payload) for section in content.sections)
    return RateReport(tuple(parts.items()), file.bricks.voxels)


Piece = tuple[int, int, Box, Shaped[np.ndarray, "n0 n1 n2"]]  # the how-manieth of how many, its place, its voxels


def _pieces(
    file: BrickFile, frame: int, box: Box | None, grid: Grid | None, run: Run, model: Model | None
) -> Iterator[Piece]:
    if grid is None:
        return _own_pieces(file, frame, box, run, model)
    return _other_pieces(file, frame, grid, run, model)


def _own_pieces(file: BrickFile, frame: int, box: Box | None, run: Run, model: Model | None) -> Iterator[Piece]:
    """The bricks that a box of the own grid touches, cut to it."""
    bricks = file.bricks
    n0, n1, n2 = bricks.grid.shape
    wanted: Box = ((0, n0), (0, n1), (0, n2)) if box is None else box
    numbers = bricks.touching(wanted, frame)
    facts = file.shared["facts"]
    for done, number in enumerate(numbers, start=1):
        own, where = bricks.box(number), f"{file.path}: brick {number}"
        values = values_of(file.brick(number), bricks.part(number), facts, run.device, where=where, model=model)
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(own, wanted, strict=True)]
        inner = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(both, own, strict=True))
        i, j, k = ((a - start, b - start) for (a, b), (start, _) in zip(both, wanted, strict=True))
        yield done, len(numbers), (i, j, k), values[inner]


def _other_pieces(file: BrickFile, frame: int, grid: Grid, run: Run, model: Model | None) -> Iterator[Piece]:
    """Slabs of another grid."""
    bricks, facts = file.bricks, file.shared["facts"]
    domain, (n0, n1, n2) = Domain.of_grid(bricks.grid), grid.shape
    thick = max(1, _SLAB_POINTS // (n1 * n2))
    edge, last = torch.tensor(bricks.edge), torch.tensor(bricks.grid.shape) - 1
    _, c1, c2 = bricks.counts

    @functools.lru_cache(maxsize=_FIELDS)
    def field(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        content = file.brick(number)
        if "constant" in content.header:
            value = float(content.header["constant"])
            return lambda x: torch.full((len(x),), value)
        own = field_of(content, run.device, where=f"{file.path}: brick {number}", model=model).field
        return lambda x: own(x.to(run.device))[:, 0].cpu()

    for start in range(0, n0, thick):
        stop = min(start + thick, n0)
        x = grid.points(start * n1 * n2, stop * n1 * n2)
        at = torch.minimum(bricks.grid.to_voxel(x.double()).round().long().clamp(min=0), last) // edge
        number = frame * bricks.per_frame + (at[:, 0] * c1 + at[:, 1]) * c2 + at[:, 2]
        out = torch.zeros(len(x))
        inside = domain.inside(x)
        with torch.no_grad():
            for one in number[inside].unique().tolist():
                chosen = (inside & (number == one)).nonzero()[:, 0]
                out[chosen] = field(one)(x[chosen])
        values = restored(out.reshape(stop - start, n1, n2).numpy(), facts, where=str(file.path))
        yield -(-stop // thick), -(-n0 // thick), ((start, stop), (0, n1), (0, n2)), values


def _frames(bricks: Bricks, frame: int | None) -> list[int]:
    if frame is None:
        return list(range(bricks.frame_count))
    if not 0 <= frame < bricks.frame_count:
        raise InputError(f"the file has frames 0..{bricks.frame_count - 1}, not {frame}", where="--frame")
    return [frame]


def _box_grid(grid: Grid, box: Box | None) -> Grid:
    return grid if box is None else part_of(grid, box)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)
