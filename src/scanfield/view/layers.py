"""The files of a run or of a path that the page can load, and how each is shown: as an image, a map, labels, a surface.

Nothing in a folder is trusted: of run.json only what has the right type is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

VOLUMES = (".nii", ".nii.gz")
SURFACES = (".ply", ".stl", ".obj", ".surf.gii")
COMPRESSED = ".sfz"
VECTORS = ("displacement", "inverse_displacement")  # files of three channels, which no slice shows
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")

Colours = Literal["gray", "viridis", "determinant", "labels"]


@dataclass(frozen=True)
class Class:
    """One label of a segmentation, with the colour that the report gives it."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True)
class Layer:
    """A file that the page can load.

    Args:
        kind: of `report.record.KINDS`, or 'file' (an image), 'map', 'labels', 'surface'.
        colours: how its values become colours.
        unit: of its values.
        range: ends of the colour map where they are known beforehand.
        classes: of labels, the names that are known.
        rendered: whether there is no such file: it is rendered from a field.
    """

    name: str
    label: str
    kind: str
    path: Path
    unit: str = ""
    colours: Colours = "gray"
    range: tuple[float, float] | None = None
    classes: tuple[Class, ...] = ()
    rendered: bool = False


@dataclass(frozen=True)
class _Shown:
    """How files are shown whose names begin in a certain way; without a unit they have the images' one."""

    label: str
    kind: str
    colours: Colours
    unit: str | None = None
    range: tuple[float, float] | None = None


# Of files that are no image of the run's quantity, by the first part of the name that fits.
OTHERS = {
    "determinant": _Shown("Jacobian determinant", "map", "determinant", "1"),
    "deviation": _Shown("standard deviation", "map", "viridis"),
    "uncertainty": _Shown("uncertainty (normalised entropy)", "map", "viridis", "1", (0.0, 1.0)),
    "gamma": _Shown("gamma", "map", "viridis", "1", (0.0, 2.0)),
    "interval-low": _Shown("lower end of the interval", "file", "gray"),
    "interval-high": _Shown("upper end of the interval", "file", "gray"),
    "samples": _Shown("samples", "file", "gray"),
    "mask": _Shown("mask", "labels", "labels", ""),
    "segmentation": _Shown("segmentation", "labels", "labels", ""),
    "warped_labels": _Shown("warped labels", "labels", "labels", ""),
    "reference": _Shown("reference labels", "labels", "labels", ""),  # of a segmentation; an image is listed
}


def layers_of_run(folder: Path, facts: dict[str, Any]) -> Iterator[Layer]:
    """The volumes and surfaces in a run's folder, those that run.json lists first and in its order.

    Args:
        facts: run.json.
    """
    listed = facts.get("images")
    unit, named = str(facts.get("unit") or ""), {}
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict):
            named[str(entry.get("file"))] = (str(entry.get("label") or entry.get("name")), str(entry.get("kind")))
    named |= _generated(facts)
    surfaces, classes = _classes(facts)
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith((*VOLUMES, *SURFACES)))
    order = list(named)
    for path in sorted(files, key=lambda p: (order.index(p.name) if p.name in named else len(order), p.name)):
        stem = path.name.split(".")[0]
        if path.name in named:
            label, kind = named[path.name]
            yield Layer(path.name, label, kind, path, unit)
        elif path.name.endswith(SURFACES):
            own = surfaces.get(path.name)
            label = stem.removeprefix("surface_").replace("_", " ")
            yield Layer(path.name, own.name if own else label, "surface", path, classes=(own,) if own else ())
        elif not any(part in stem for part in VECTORS):
            shown = next((s for part, s in OTHERS.items() if part in stem), _Shown(stem, "map", "viridis", ""))
            of = classes if shown.kind == "labels" and "mask" not in stem else ()
            own_unit = unit if shown.unit is None else shown.unit
            yield Layer(path.name, shown.label, shown.kind, path, own_unit, shown.colours, shown.range, of)


def layer_of_file(path: Path) -> Layer | None:
    """A file by itself; None if nothing of it can be shown."""
    if path.name.endswith(COMPRESSED):
        return Layer("whole.nii.gz", path.name, "file", path, rendered=True)
    if path.name.endswith(SURFACES):
        return Layer(path.name, path.name, "surface", path)
    return Layer(path.name, path.name, "file", path) if path.name.endswith(VOLUMES) else None


def _generated(facts: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Label and kind of generated sequences of masks by file, in their order: each is an image by itself."""
    synthesis = facts.get("synthesis")
    entries = synthesis.get("sequences") if isinstance(synthesis, dict) else None
    found = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            found[entry["file"]] = (f"sequence {number}", "file")
    return found


def _classes(facts: dict[str, Any]) -> tuple[dict[str, Class], tuple[Class, ...]]:
    """The classes of a segmentation, by the file of their surface and in their order."""
    segmentation = facts.get("segmentation")
    entries = segmentation.get("classes") if isinstance(segmentation, dict) else None
    surfaces, classes = {}, []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), int):
            continue
        colour = str(entry.get("colour"))
        if not COLOUR.fullmatch(colour):
            continue
        one = Class(entry["value"], str(entry.get("name") or entry["value"]), colour)
        classes.append(one)
        surfaces[str(entry.get("surface"))] = one
    return surfaces, tuple(classes)
