"""Fields that are rendered where one looks: of a fit, of a registration, in a compressed file."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as member
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scanfield.codec.bricks import is_brick_file, open_bricks
from scanfield.codec.field_file import read_field
from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.fields import calculus
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.tasks.brick_decoding import read_bricks
from scanfield.tasks.compression import restored
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.warp import CHUNK, mapping, warped_image
from scanfield.view.items import COMPRESSED, DETERMINANT, DISPLACEMENT, IMAGE, UNREGISTERED, WARPED, Item

KEPT = 2  # fields in memory
PROBE = 20  # voxels along every side of the small rendering that tells how fast a field is

Render = Callable[[Grid], Tensor | np.ndarray]


@dataclass(frozen=True, eq=False)
class Source:
    """A field: where it is, and what can be rendered of it, by name, (n0, n1, n2) or with channels behind."""

    grid: Grid
    quantities: dict[str, Render]
    _second: dict[str, int] = member(default_factory=dict)

    def per_second(self, name: str) -> int:
        """Voxels that are rendered in a second, by a small rendering the first time it is asked."""
        if name not in self._second:
            few = np.minimum(self.grid.shape, PROBE)
            first = (np.asarray(self.grid.shape) - few) // 2
            probe = self.grid.part(first, few)
            self.quantities[name](probe)  # what is read or made ready once does not count
            start = time.perf_counter()
            self.quantities[name](probe)
            self._second[name] = int(probe.size / max(time.perf_counter() - start, 1e-6))
        return self._second[name]


class Sources:
    """The last few fields that were asked for, read once; a file that was written again is read again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int], Source] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, item: Item) -> Source:
        """The field of a run or a file.

        Raises:
            InputError: it has none, or it cannot be read.
        """
        path = item.field
        if path is None:
            raise InputError("this item has no field that can be rendered in a box", where=item.title)
        key = (path, path.stat().st_mtime_ns)
        if key not in self._kept:
            self._kept[key] = _open(path, item)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _open(path: Path, item: Item) -> Source:
    if path.name.endswith(COMPRESSED):
        return _compressed(path)
    result = open_result(path)
    if item.facts.get("task") == "registration":
        return _registration(path.parent, result)
    return Source(result.spec.grid, {IMAGE: result.render})


def _compressed(path: Path) -> Source:
    """Only the bricks that a box touches are decoded; a volume that was fitted whole is a field like any other."""
    if is_brick_file(path):
        return Source(open_bricks(path).bricks.grid, {IMAGE: lambda grid: read_bricks(path, grid=grid).values})
    result = read_field(path)

    def image(grid: Grid) -> np.ndarray:
        return restored(result.render(grid).numpy(), result.provenance, where=str(path))

    return Source(result.spec.grid, {IMAGE: image})


def _registration(folder: Path, result: Reconstruction) -> Source:
    """The moving image is read from the run's folder, where it lies on the fixed image's grid."""
    phi = mapping(result)
    quantities: dict[str, Render] = {
        DISPLACEMENT: partial(_in_pieces, lambda x: (phi(x) - x).norm(dim=-1)),
        DETERMINANT: partial(_in_pieces, lambda x: calculus.determinant(calculus.jacobian(phi, x)[1])),
    }
    moving = folder / UNREGISTERED
    if moving.is_file():
        scan = read_nifti(moving)
        quantities = {WARPED: partial(_warped, phi, scan.values.float(), scan.grid)} | quantities
    return Source(result.spec.grid, quantities)


def _warped(phi: nn.Module, values: Tensor, source: Grid, grid: Grid) -> Tensor:
    return warped_image(phi, values, source, grid)[0]


def _in_pieces(what: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
    with torch.no_grad():
        parts = [what(grid.points(start, start + CHUNK)) for start in range(0, grid.size, CHUNK)]
    return torch.cat(parts).reshape(grid.shape)
