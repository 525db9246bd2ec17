"""What there is to see: runs and files, found under the paths that were given, described for the page.

Nothing in a folder is trusted (see `report.record`), and no address of the server holds a path: items are called by a
hash of their path, and their files by names that were found here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scanfield.errors import InputError
from scanfield.report.record import read_facts

VOLUMES = (".nii", ".nii.gz")
SURFACES = (".ply", ".stl", ".obj", ".surf.gii")
DEPTH = 2  # levels of folders below a given one in which runs are looked for
# Of files that are no image of the run's quantity, by the first part of the name that fits: how they are shown.
OTHERS = (
    ("determinant", "Jacobian determinant", "map"),
    ("deviation", "standard deviation", "map"),
    ("gamma", "gamma", "map"),
    ("mask", "mask", "labels"),
    ("warped_labels", "warped labels", "labels"),
)
VECTORS = ("displacement", "inverse_displacement")


@dataclass(frozen=True)
class Layer:
    """A file that the page can load. `kind` is of `report.record.KINDS`, or 'map', 'labels', 'surface', 'file'."""

    name: str
    label: str
    kind: str
    path: Path
    unit: str = ""


@dataclass(frozen=True)
class Item:
    """A run or a file; `problem` says why there is nothing to show. `facts` is run.json as it stands."""

    path: Path
    kind: Literal["run", "file"]
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    figures: tuple[Path, ...] = ()
    problem: str = ""

    @property
    def key(self) -> str:
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12]

    @property
    def status(self) -> str:
        return "problem" if self.problem else str(self.facts.get("status") or "complete")

    @property
    def result(self) -> Path | None:
        """The fitted field, if it can be rendered at any point."""
        path = self.path / "field.safetensors"
        renders = self.kind == "run" and self.status in ("complete", "interrupted")
        return path if renders and self.facts.get("task") == "reconstruction" and path.is_file() else None


def find(paths: Sequence[Path]) -> list[Item]:
    """The items under the given paths, in their order; a folder without run.json is searched for runs."""
    items: dict[str, Item] = {}
    for path in paths:
        for item in _under(path):
            items.setdefault(item.key, item)
    return list(items.values())


def _under(path: Path) -> Iterator[Item]:
    if not path.is_dir():
        yield _file(path)
        return
    if (path / "run.json").is_file():
        yield _run(path)
        return
    runs = sorted(record.parent for depth in range(1, DEPTH + 1) for record in path.glob("*/" * depth + "run.json"))
    yield from map(_run, runs)
    if not runs:
        yield Item(path, "run", path.name, problem="This folder is no run and holds none: it has no run.json.")


def _file(path: Path) -> Item:
    kind = "volume" if path.name.endswith(VOLUMES) else "surface" if path.name.endswith(SURFACES) else ""
    if not path.is_file():
        return Item(path, "file", path.name, problem="There is no such file, and no run has begun there.")
    if not kind:
        known = ", ".join([*VOLUMES, *SURFACES])
        return Item(path, "file", path.name, problem=f"Of this file nothing can be shown; known: {known}.")
    return Item(
        path, "file", path.name, layers=(Layer("0", path.name, "surface" if kind == "surface" else "file", path),)
    )


def _run(folder: Path) -> Item:
    try:
        facts = read_facts(folder, finished=False)
    except InputError as error:
        return Item(folder, "run", folder.name, problem=" ".join(str(error).split()))
    layers = tuple(_layers(folder, facts))
    figures = tuple(sorted((folder / "figures").glob("*.png")))
    return Item(folder, "run", folder.name, facts, layers, figures)


def _layers(folder: Path, facts: dict[str, Any]) -> Iterator[Layer]:
    listed = facts.get("images")
    unit, named = str(facts.get("unit") or ""), {}
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict):
            named[str(entry.get("file"))] = (str(entry.get("label") or entry.get("name")), str(entry.get("kind")))
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith((*VOLUMES, *SURFACES)))
    order = list(named)
    for path in sorted(files, key=lambda p: (order.index(p.name) if p.name in named else len(order), p.name)):
        stem = path.name.split(".")[0]
        if path.name in named:
            label, kind = named[path.name]
            yield Layer(path.name, label, kind, path, unit)
        elif path.name.endswith(SURFACES):
            yield Layer(path.name, stem, "surface", path)
        elif not any(part in stem for part in VECTORS):
            label, kind = next(((text, kind) for part, text, kind in OTHERS if part in stem), (stem, "map"))
            yield Layer(path.name, label, kind, path)


def summary(item: Item) -> dict[str, Any]:
    """The item's line on the start page."""
    facts = item.facts
    timings = facts.get("timings")
    seconds = sum(v for v in timings.values() if isinstance(v, int | float)) if isinstance(timings, dict) else None
    return {
        "key": item.key,
        "kind": item.kind,
        "title": item.title,
        "method": str(facts.get("method") or ""),
        "task": str(facts.get("task") or ""),
        "created": str(facts.get("created") or ""),
        "status": item.status,
        "problem": item.problem,
        "seconds": seconds,
        "numbers": _headline(facts),
    }


def _headline(facts: dict[str, Any]) -> list[str]:
    """The method's first numbers in the table, as 'PSNR 31.20 dB'."""
    table = facts.get("table")
    if not isinstance(table, dict):
        return []
    rows = [row for row in table.get("rows") or [] if isinstance(row, dict) and row.get("kind") == "method"]
    values = rows[0].get("values") if rows else None
    said = []
    for column in table.get("columns") or []:
        value = values.get(column.get("key")) if isinstance(values, dict) and isinstance(column, dict) else None
        if isinstance(value, int | float):
            said.append(f"{column.get('label')} {value:.4g} {column.get('unit') or ''}".strip())
    return said[:3]


def description(item: Item) -> dict[str, Any]:
    """All the page shows of an item, as JSON."""
    facts = item.facts
    display = facts.get("display")
    window = display.get("window") if isinstance(display, dict) else None
    shown = (
        "title",
        "command",
        "table",
        "warnings",
        "notes",
        "timings",
        "config",
        "preset",
        "seed",
        "device",
        "citation",
    )
    return summary(item) | {
        "facts": {name: facts[name] for name in shown if name in facts},
        "layers": [
            {"name": layer.name, "label": layer.label, "kind": layer.kind, "unit": layer.unit} for layer in item.layers
        ],
        "window": window if isinstance(window, list) and len(window) == 2 else None,
        "figures": [path.name for path in item.figures],
        "report": (item.path / "report.html").is_file() if item.kind == "run" else False,
        "renders": item.result is not None,
    }


def events(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """New whole lines of a run's log.jsonl from a byte offset, and the offset behind them."""
    try:
        with (folder / "log.jsonl").open("rb") as file:
            file.seek(offset)
            text = file.read()
    except OSError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found, offset + len(whole)
