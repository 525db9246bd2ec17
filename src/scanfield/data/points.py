"""Points in the world as CSV: landmarks of registration, and points to be mapped.

The file has a header with the columns x, y and z (mm, RAS+), in any order and case, and any further columns, which are
kept as text:

    x,y,z,name
    -12.5,30.25,7,carina
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.guard import existing_file, located
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid

_COLUMNS = ("x", "y", "z")
_HEADER_FIX = "begin the file with a line that names the columns: x,y,z (mm, RAS+)"
_EDGE = 1e-3  # voxels beyond the box that rounding in a file may cost
_WHOLE = 1e-6
_FEW = 4  # points: fewer whole numbers may be chance


@dataclass(frozen=True, eq=False)
class Points:
    """Points in the world.

    Args:
        x: (n, 3) positions in mm, RAS+, double precision.
        columns: further columns by name, n texts each, in the file's order.
        source: name of the file, for messages.
    """

    x: Float[Tensor, "n 3"]
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if name.strip().lower() in _COLUMNS or len(values) != len(self.x):
                raise ValueError(f"column '{name}' must hold {len(self.x)} values beside x, y, z")


def read_points(path: str | Path) -> Points:
    """Reads points from a CSV file.

    Raises:
        InputError: the file is missing or no text; it has no header, no points, no column x, y or z, or one of them
            twice; a row is too short or too long; a coordinate is no finite number. The message names the line.
    """
    path = existing_file(path)
    with located(path):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"this is no text in UTF-8: {error.reason}", fix="save the points as CSV") from error
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise InputError(f"this is no CSV file: {error}", fix="save the points as CSV") from error
        if not rows:
            raise InputError("the file is empty", fix=_HEADER_FIX)
        names = _header(rows[0][1])
        if len(rows) == 1:
            raise InputError("the file holds a header and no points", fix="add a line for every point")
        for line, row in rows[1:]:
            if len(row) != len(names):
                raise InputError(f"the row has {len(row)} columns, the header {len(names)}", where=f"line {line}")
        place = [names.index(name) for name in _COLUMNS]
        x = [[_number(row[column], line, names[column]) for column in place] for line, row in rows[1:]]
        others = [column for column in range(len(names)) if column not in place]
        columns = {names[column]: tuple(row[column] for _, row in rows[1:]) for column in others}
    return Points(torch.tensor(x, dtype=torch.float64), columns, str(path))


def write_points(path: str | Path, points: Points) -> None:
    """Writes points atomically, to a nanometre, their further columns behind x, y, z.

    Raises:
        InputError: a coordinate is NaN or infinite (a map that left its domain), or the file cannot be written.
    """
    bad = int((~torch.isfinite(points.x)).any(dim=-1).sum())
    if bad:
        raise InputError(f"{bad} of {len(points.x)} points are NaN or infinite", where=str(path))
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *points.columns])
        for i, place in enumerate(points.x.tolist()):
            writer.writerow([*(f"{value:.6f}" for value in place), *(values[i] for values in points.columns.values())])


def read_point_pairs(fixed: str | Path, moving: str | Path) -> tuple[Points, Points]:
    """Corresponding landmarks of two images: row by row the same place of the body.

    Raises:
        InputError: as for `read_points`, or the files have different numbers of points.
    """
    a, b = read_points(fixed), read_points(moving)
    if len(a.x) != len(b.x):
        raise InputError(
            f"landmarks come in pairs, the files hold {len(a.x)} and {len(b.x)}",
            where=f"{fixed}, {moving}",
            fix="give two files with the same landmarks in the same order",
        )
    return a, b


def looks_like_voxels(points: Float[Tensor, "n 3"], grid: Grid) -> bool:
    """Whether points seem to be voxel indices of `grid` (counted from 0 or 1) and not millimetres.

    They seem so if all of them are possible indices and either most of them lie outside the grid's box as millimetres,
    or all of them (four at least) are whole numbers although the grid's spacing is not.
    """
    size = torch.tensor(grid.shape, dtype=points.dtype, device=points.device)
    if len(points) == 0 or not bool(((points >= -0.5) & (points <= size)).all()):
        return False
    if int(_in_box(points, grid).sum()) < len(points) / 2:
        return True
    whole = bool(((points - points.round()).abs() < _WHOLE).all())
    return whole and len(points) >= _FEW and any(abs(s - round(s)) > _EDGE for s in grid.spacing_mm)


def check_inside(points: Points, grid: Grid, *, image: str = "image") -> None:
    """Raises unless all points lie in the box of `grid`; says so if they seem to be voxel indices or LPS instead.

    Raises:
        InputError: points lie outside, or look like voxel indices.
    """
    x = points.x
    outside = int((~_in_box(x, grid)).sum())
    if looks_like_voxels(x, grid):
        raise InputError(
            f"the points seem to be voxel indices of the {image}; world coordinates in mm (RAS+) are needed",
            where=points.source,
            fix="apply the image's affine to them (nibabel.affines.apply_affine); subtract 1 first if counted from 1",
        )
    if outside == 0:
        return
    turned = x * torch.tensor([-1, -1, 1], dtype=x.dtype, device=x.device)
    if bool(_in_box(turned, grid).all()):
        fix = "they seem to be in LPS, as ITK and DICOM have it: change the sign of x and y"
    else:
        low, high = grid.corners_mm().min(axis=0), grid.corners_mm().max(axis=0)
        spans = ", ".join(f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip(_COLUMNS, low, high, strict=True))
        fix = f"give points of this image in mm (RAS+); it reaches over {spans}"
    raise InputError(f"{outside} of {len(x)} points lie outside the {image}", where=points.source, fix=fix)


def _in_box(x: Float[Tensor, "n 3"], grid: Grid) -> Tensor:
    place = grid.to_voxel(x)
    size = torch.tensor(grid.shape, dtype=x.dtype, device=x.device)
    return ((place >= -0.5 - _EDGE) & (place <= size - 0.5 + _EDGE)).all(dim=-1)


def _header(row: list[str]) -> list[str]:
    """The names of the columns; x, y and z in lower case."""
    if len(row) == 1 and any(mark in row[0] for mark in ";\t"):
        raise InputError("the columns are not separated by commas", where="line 1", fix="save the points as CSV")
    if all(_is_number(cell) for cell in row):
        raise InputError("the file has no header: its first line holds numbers", where="line 1", fix=_HEADER_FIX)
    names = [name.strip() for name in row]
    names = [name.lower() if name.lower() in _COLUMNS else name for name in names]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"the header lacks {', '.join(missing)}; it names {', '.join(names)}", where="line 1", fix=_HEADER_FIX
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"the header names '{twice[0]}' twice", where="line 1", fix=_HEADER_FIX)
    return names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, line: int, column: str) -> float:
    value = float(cell) if _is_number(cell) else math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{column} is {cell.strip() or 'empty'!r}, not a number in mm",
            where=f"line {line}",
            fix="give a number with a decimal point, or remove the line",
        )
    return value
