"""Reads a RUN folder: everything a report may say, checked, and nothing else.

A RUN folder holds run.json (facts, table, list of images), the images as NIfTI on one grid, and where they exist
measurements.npz (`measured`, `predicted` (views, rows, columns), `angles_deg`) and log.jsonl (one event a line).
Optional in run.json: `facts` (name -> text or number, printed as they are; `mu_water_per_mm` adds HU to captions),
`bibtex`, `measurements.column_spacing_mm`, `deformation` (of a registration: the files `displacement` and
`determinant`, the images `fixed`, `before` and `after`), and `note` on a reference image (what the reader must know
to compare).
Nothing in it is trusted: names may not leave the folder, arrays are loaded without pickle, text stays text.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from scanfield.data.displacement import read_displacement
from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.views import View, views
from scanfield.space.grid import Grid

SCHEMA = 1
KINDS = ("reference", "method", "read-out", "baseline", "class")  # the order of pictures; classes are rows alone
RERUN = "continue the run with --resume RUN, or repeat it"


@dataclass(frozen=True)
class Column:
    """One column of the table of numbers.

    Args:
        key: 'metric' or 'metric:reference', where a reference is the name of an image.
        better: 'higher', 'lower' or '' (not ranked).
        note: what the numbers refer to.
        digits: decimals to print, or None to choose them.
    """

    key: str
    label: str
    unit: str
    better: str
    note: str
    digits: int | None


@dataclass(frozen=True)
class Row:
    """One result in the table; a value that is not available has no key."""

    name: str
    label: str
    kind: str
    values: dict[str, float]


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, cut along every view of the record: arrays (rows, columns) as they stand on screen."""

    name: str
    label: str
    kind: str
    note: str
    cuts: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Projections:
    """Measured and predicted values, (views, rows, columns), views in the order of the scan.

    Args:
        angles_deg: (views,).
        held_out: indices of the views that the fit did not see.
        unit: of the values.
        column_spacing_mm: distance of detector columns, or None where it is not known.
    """

    measured: np.ndarray
    predicted: np.ndarray
    angles_deg: np.ndarray
    held_out: tuple[int, ...]
    unit: str
    column_spacing_mm: float | None


@dataclass(frozen=True, eq=False)
class Deformation:
    """What a registration did, cut along every view of the record.

    Args:
        fixed, before, after: names of the images: the fixed one, and the moving one before and after.
        determinants: det d phi / d x, (rows, columns) as on screen.
        displacements: phi(x) - x in mm, (rows, columns, 3): along the screen downwards, to the right, and out of it.
    """

    fixed: str
    before: str
    after: str
    determinants: tuple[np.ndarray, ...]
    displacements: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Event:
    """One line of the log; `held_out` is the residual on held-out measurements where it was computed."""

    stage: str
    step: int
    seconds: float
    loss: dict[str, float]
    held_out: float | None


@dataclass(frozen=True, eq=False)
class Record:
    """A RUN folder in memory. `facts` is run.json as it stands; the other members are checked parts of it."""

    facts: dict[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    grid: Grid | None
    views: tuple[View, ...]
    pictures: tuple[Picture, ...]
    projections: Projections | None
    events: tuple[Event, ...]
    deformation: Deformation | None = None

    def text(self, key: str) -> str:
        """A fact as text on one line; '' where it is missing."""
        value = self.facts.get(key)
        return "" if value is None else " ".join(str(value).split())

    def texts(self, key: str) -> list[str]:
        """A list of texts; [] where it is missing."""
        value = self.facts.get(key) or []
        return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]

    @property
    def method_label(self) -> str:
        """The method's name as it is written in the table, or its identifier."""
        labels = [row.label for row in self.rows if row.kind == "method"]
        labels += [picture.label for picture in self.pictures if picture.kind == "method"]
        return labels[0] if labels else self.text("method")

    @property
    def references(self) -> tuple[Picture, ...]:
        return tuple(picture for picture in self.pictures if picture.kind == "reference")


def read_record(folder: Path) -> Record:
    """Reads and checks a RUN folder.

    Raises:
        InputError: it is no RUN folder, was written by a newer version, or a file is missing, half-written or
            contradicts the others.
    """
    facts = read_facts(folder)
    where = str(folder / "run.json")
    columns, rows = _table(facts.get("table"), where)
    grid: Grid | None = None
    planes: tuple[View, ...] = ()
    pictures: list[Picture] = []
    for entry in _entries(facts.get("images"), where, "images"):
        name, label, kind = _label(entry, where)
        volume, own = _volume(folder, _text(entry, "file", where))
        if grid is None:
            grid, planes = own, views(own.shape, own.affine)
        own.check_same(
            grid, mine=f"image '{name}'", theirs=f"image '{pictures[0].name}'" if pictures else "", fix=RERUN
        )
        cuts = tuple(view.cut(volume).astype(np.float64) for view in planes)
        pictures.append(Picture(name, label, kind, str(entry.get("note") or ""), cuts))
    return Record(
        facts=facts,
        columns=columns,
        rows=rows,
        views=planes,
        grid=grid,
        pictures=tuple(sorted(pictures, key=lambda picture: KINDS.index(picture.kind))),
        projections=read_projections(folder, facts.get("measurements")),
        events=_events(folder / "log.jsonl"),
        deformation=_deformation(folder, facts.get("deformation"), where, pictures, grid, planes),
    )


def read_facts(folder: Path, *, finished: bool = True) -> dict[str, Any]:
    """run.json of a RUN folder, of this schema or an older one.

    Args:
        finished: whether a run that has not written its results is refused.

    Raises:
        InputError: as for `read_record`.
    """
    path = folder / "run.json"
    fix = "give the folder that was written as -o RUN"
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'", fix=fix)
    if not path.is_file():
        raise InputError("this is not a RUN folder: it has no run.json", where=str(folder), fix=fix)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"run.json cannot be read: {error}", where=str(path), fix=RERUN) from None
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or "method" not in facts:
        raise InputError("run.json does not describe a run (it needs 'schema' and 'method')", where=str(path), fix=fix)
    if schema > SCHEMA:
        raise InputError(
            f"this run was written by a newer version (schema {schema}; this version reads up to {SCHEMA})",
            where=str(path),
            fix="pip install --upgrade scanfield",
        )
    if finished and facts.get("status") not in ("complete", "interrupted"):
        raise InputError(
            f"this run has not written its results (its status is '{facts.get('status')}')", where=str(path), fix=RERUN
        )
    return dict(facts)


def _entries(value: Any, where: str, key: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"'{key}' must be a list of objects", where=where, fix=RERUN)
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(entry.get(key), str) or not entry[key]:
        raise InputError(f"an entry lacks the text '{key}': {str(entry)[:80]}", where=where, fix=RERUN)
    return str(entry[key])


def _label(entry: dict[str, Any], where: str) -> tuple[str, str, str]:
    name, kind = _text(entry, "name", where), _text(entry, "kind", where)
    if kind not in KINDS:
        raise InputError(f"'{name}' is of unknown kind '{kind}'; known: {', '.join(KINDS)}", where=where)
    return name, " ".join(str(entry.get("label") or name).split()), kind


def _table(value: Any, where: str) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    if value is None:
        return (), ()
    if not isinstance(value, dict):
        raise InputError("'table' must be an object with 'columns' and 'rows'", where=where, fix=RERUN)
    columns = []
    for entry in _entries(value.get("columns"), where, "table.columns"):
        key = _text(entry, "key", where)
        label, unit, better, note = (str(entry.get(k) or "") for k in ("label", "unit", "better", "note"))
        digits = entry.get("digits")
        digits = digits if isinstance(digits, int) and 0 <= digits <= 12 else None
        columns.append(Column(key, label or key, unit, better, note, digits))
    rows = []
    for entry in _entries(value.get("rows"), where, "table.rows"):
        numbers = entry.get("values") or {}
        if not isinstance(numbers, dict):
            raise InputError("'values' of a table row must be an object", where=where, fix=RERUN)
        kept = {str(k): float(v) for k, v in numbers.items() if isinstance(v, int | float) and not math.isnan(v)}
        rows.append(Row(*_label(entry, where), kept))
    return tuple(columns), tuple(rows)


def file_inside(folder: Path, name: str) -> Path:
    """The path of a file that run.json names.

    Raises:
        InputError: it leaves the folder, or is missing.
    """
    if name in ("", ".", "..") or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise InputError(f"run.json names a file outside the RUN folder: '{name}'", where=str(folder))
    path = folder / name
    if not path.is_file():
        raise InputError(f"the file '{name}' is missing", where=str(folder), fix=RERUN)
    return path


def _volume(folder: Path, name: str) -> tuple[np.ndarray, Grid]:
    """Voxels (n0, n1, n2) of an image and where they are; of several channels the first."""
    scan = read_nifti(file_inside(folder, name), channels=True)
    return scan.values.reshape(*scan.grid.shape, -1)[..., 0].numpy(), scan.grid


def _deformation(
    folder: Path, value: Any, where: str, pictures: list[Picture], grid: Grid | None, planes: tuple[View, ...]
) -> Deformation | None:
    if value is None:
        return None
    if not isinstance(value, dict) or grid is None:
        raise InputError("'deformation' must be an object or null, and needs images", where=where, fix=RERUN)
    fixed, before, after = (_text(value, key, where) for key in ("fixed", "before", "after"))
    unknown = {fixed, before, after} - {picture.name for picture in pictures}
    if unknown:
        raise InputError(f"'deformation' names images that do not exist: {sorted(unknown)}", where=where, fix=RERUN)
    determinant, own = _volume(folder, _text(value, "determinant", where))
    displacement, other = read_displacement(file_inside(folder, _text(value, "displacement", where)))
    for found, name in ((own, "determinant"), (other, "displacement")):
        found.check_same(grid, mine=name, theirs=f"image '{pictures[0].name}'", fix=RERUN)
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cuts = []
    for view in planes:
        down = unit[:, view.row_axis] * (-1 if view.flip_rows else 1)
        right = unit[:, view.column_axis] * (-1 if view.flip_columns else 1)
        frame = np.stack([down, right, np.cross(down, right)])
        parts = [view.cut(displacement[..., k].numpy()) for k in range(3)]
        cuts.append(np.stack(parts, axis=-1).astype(np.float64) @ frame.T)
    determinants = tuple(view.cut(determinant).astype(np.float64) for view in planes)
    return Deformation(fixed, before, after, determinants, tuple(cuts))


def read_projections(folder: Path, value: Any) -> Projections | None:
    """Measured and predicted projections of a RUN folder.

    Args:
        value: what run.json says under 'measurements'.

    Raises:
        InputError: as for `read_record`.
    """
    where = str(folder / "run.json")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError("'measurements' must be an object or null", where=where, fix=RERUN)
    path = file_inside(folder, _text(value, "file", where))
    try:
        with np.load(path, allow_pickle=False) as file:
            measured, predicted, angles = (np.asarray(file[k]) for k in ("measured", "predicted", "angles_deg"))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"the measurements cannot be read: {error}", where=str(path), fix=RERUN) from None
    if measured.ndim != 3 or measured.shape != predicted.shape or angles.shape != measured.shape[:1] or not angles.size:
        raise InputError(
            "measured and predicted must be (views, rows, columns) with one angle a view, "
            f"got {measured.shape}, {predicted.shape} and {angles.shape}",
            where=str(path),
            fix=RERUN,
        )
    if np.iscomplexobj(measured) or np.iscomplexobj(predicted):
        measured, predicted = np.abs(measured), np.abs(predicted)
    held_out = value.get("held_out_views") or []
    if not all(isinstance(v, int) and 0 <= v < len(measured) for v in held_out):
        raise InputError(f"'held_out_views' must be indices of the {len(measured)} views", where=where, fix=RERUN)
    spacing = value.get("column_spacing_mm")
    return Projections(
        measured=measured.astype(np.float64),
        predicted=predicted.astype(np.float64),
        angles_deg=angles.astype(np.float64),
        held_out=tuple(sorted(set(held_out))),
        unit=str(value.get("unit") or "1"),
        column_spacing_mm=float(spacing) if isinstance(spacing, int | float) and 0 < spacing < math.inf else None,
    )


def _events(path: Path) -> tuple[Event, ...]:
    """The steps in the log, in order; of a step that was repeated after a resume the last one counts.

    A last line cut off by a kill is ignored, as are events that are no steps.
    """
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    events: dict[tuple[str, int], Event] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or "step" not in entry or "loss" not in entry:
                continue
            held_out = entry.get("held_out")
            event = Event(
                stage=str(entry.get("stage") or "fit"),
                step=int(entry["step"]),
                seconds=float(entry.get("seconds") or 0.0),
                loss={str(name): float(value) for name, value in entry["loss"].items()},
                held_out=None if held_out is None else float(held_out),
            )
            events[event.stage, event.step] = event
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines):
                continue
            raise InputError(f"line {number} of the log cannot be read: {error}", where=str(path)) from None
    stages = list(dict.fromkeys(stage for stage, _ in events))
    return tuple(sorted(events.values(), key=lambda event: (stages.index(event.stage), event.step)))
