"""What there is to see: runs and files, found under the paths that were given, described for the page.

Nothing in a folder is trusted (see `report.record`), and no address of the server holds a path: items are called by a
hash of their path, and their files by names that were found here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as member
from pathlib import Path
from typing import Any, Literal

from scanfield.data.nifti import nifti_layout
from scanfield.errors import InputError
from scanfield.report.record import read_facts
from scanfield.view.coarse import LARGE
from scanfield.view.layers import COMPRESSED, SURFACES, VOLUMES, Colours, Layer, layer_of_file, layers_of_run
from scanfield.view.measured import FILES
from scanfield.view.preview import FILE

DEPTH = 2  # levels of folders below a given one in which runs are looked for
IMAGE, WARPED, DISPLACEMENT, DETERMINANT = "image", "warped", "displacement", "determinant"  # what fields are asked for
UNREGISTERED = "identity.nii.gz"  # of a registration: the moving image on the fixed one's grid


@dataclass(frozen=True)
class Quantity:
    """What can be rendered of an item's field in a box of any size."""

    name: str
    label: str
    unit: str
    colours: Colours = "gray"


@dataclass(frozen=True)
class Item:
    """A run or a file; `problem` says why there is nothing to show. `facts` is run.json as it stands."""

    path: Path
    kind: Literal["run", "file"]
    title: str
    facts: dict[str, Any] = member(default_factory=dict)
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
    def field(self) -> Path | None:
        """The file of the field, if there is one that can be rendered at any point."""
        if self.kind == "file":
            return self.path if self.path.name.endswith(COMPRESSED) and not self.problem else None
        path = self.path / "field.safetensors"
        return path if self.status in ("complete", "interrupted") and path.is_file() else None

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What can be rendered of the field."""
        if self.field is None:
            return ()
        unit = str(self.facts.get("unit") or "")
        if self.facts.get("task") != "registration":
            return (Quantity(IMAGE, "image", unit),)
        warped = (Quantity(WARPED, "warped image", unit),) if (self.path / UNREGISTERED).is_file() else ()
        return (
            *warped,
            Quantity(DISPLACEMENT, "length of the displacement", "mm", "viridis"),
            Quantity(DETERMINANT, "Jacobian determinant", "1", "determinant"),
        )

    @property
    def preview(self) -> Path | None:
        """The pictures of a fit that is being watched."""
        path = self.path / FILE
        return path if self.kind == "run" and self.status == "running" and path.is_file() else None

    @property
    def measured(self) -> bool:
        """Whether the run keeps measurements."""
        return self.kind == "run" and not self.problem and any((self.path / name).is_file() for name in FILES)


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
    if not path.is_file():
        return Item(path, "file", path.name, problem="There is no such file, and no run has begun there.")
    layer = layer_of_file(path)
    if layer is None:
        known = ", ".join([*VOLUMES, *SURFACES, COMPRESSED])
        return Item(path, "file", path.name, problem=f"Of this file nothing can be shown; known: {known}.")
    return Item(path, "file", path.name, layers=(layer,))


def _run(folder: Path) -> Item:
    try:
        facts = read_facts(folder, finished=False)
    except InputError as error:
        return Item(folder, "run", folder.name, problem=" ".join(str(error).split()))
    layers = tuple(layers_of_run(folder, facts))
    figures = tuple(sorted((folder / "figures").glob("*.png")))
    return Item(folder, "run", folder.name, facts, layers, figures)


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
            unit = "" if column.get("unit") in (None, "1") else column["unit"]
            said.append(f"{column.get('label')} {value:.4g} {unit}".strip())
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
        "layers": [_described(layer) for layer in item.layers],
        "window": window if isinstance(window, list) and len(window) == 2 else None,
        "figures": [path.name for path in item.figures],
        "report": (item.path / "report.html").is_file() if item.kind == "run" else False,
        "quantities": [asdict(quantity) for quantity in item.quantities],
        "measured": item.measured,
    }


def _described(layer: Layer) -> dict[str, Any]:
    """A layer without its path, which nobody outside needs to know."""
    about = {name: value for name, value in asdict(layer).items() if name not in ("path", "rendered")}
    about |= {"range": about["range"] and list(about["range"]), "classes": list(about["classes"])}
    return about | {"large": not layer.rendered and layer.path.name.endswith(VOLUMES) and _voxels(layer.path) > LARGE}


def _voxels(path: Path) -> int:
    """Of an image, by its header; 0 if it has none that can be read, which loading it will say."""
    try:
        return math.prod(nifti_layout(path).shape)
    except InputError:
        return 0


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
