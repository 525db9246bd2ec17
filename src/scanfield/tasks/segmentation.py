"""From an image and a trained model to a judged segmentation on any grid: classes, uncertainty, surfaces, numbers.

A run's folder holds, besides what every run leaves (all images on the grid that was asked for):

    segmentation.nii.gz      the label table's values in the smallest integer type; 0 is the background
    labels.csv               the label table: value,name
    uncertainty.nii.gz       entropy of the classes' probabilities over log(classes), 0 to 1
    surface_<name>.ply       the surface of every class that was found, mm (or .surf.gii); of volumes
    image.nii.gz             the image that was segmented
    reference.nii.gz         the reference it was judged by, where one was given

Nothing is fitted: a segmentation takes as long as asking the model at every voxel, and there is nothing to resume.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.meshes import write_mesh
from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.image import ImageField, nearest
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.segmentation import overlap, surface_agreement
from scanfield.report.build import build_report
from scanfield.report.notebook import segmentation_html, widget, with_table
from scanfield.report.segmentation import (
    IMAGE,
    LABELS,
    REFERENCE,
    TABLE,
    UNCERTAINTY,
    SegmentationRecord,
    class_colours,
)
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh
from scanfield.tasks.folder import begin, facts_of, usual_range, write_record
from scanfield.tasks.labelling import CHUNK, Labeller, LabelMap, largest_parts
from scanfield.tasks.model import Model, built_from
from scanfield.tasks.table import Column, Row, Table

Surfaces = Literal["ply", "surf.gii", "none"]
_PART = 2**18
FAR_SPACING = 2.0  # times coarser or finer than in the training: worth a warning
FAR_INTENSITY = 0.25  # of an image's range by which its ends leave those of the training


@dataclass(eq=False)
class Segmentation:
    """What `segment` returns.

    Args:
        found: classes and uncertainty on the grid that was asked for.
        labels: what the class indices mean.
        image: the image on that grid.
        reference: class indices of the reference at the nearest voxel, if there was one.
        surfaces: by class index.
        table: volumes, and where there was a reference, the agreement with it.
        model: key of the model.
        folder: where it was written, if anywhere.
    """

    found: LabelMap
    labels: LabelTable
    image: Scan
    reference: torch.Tensor | None
    surfaces: dict[int, Mesh]
    table: Table
    model: str
    folder: Path | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def grid(self) -> Grid:
        return self.found.grid

    def volume_ml(self, name: str) -> float:
        """Volume of a class in millilitres.

        Raises:
            InputError: there is no class of this name.
        """
        if name not in self.labels.names:
            raise InputError(f"there is no class '{name}'", fix=f"classes: {', '.join(self.labels.names)}")
        voxels = int((self.found.classes == self.labels.names.index(name)).sum())
        return voxels * self.grid.voxel_volume_mm3 / 1000

    def values(self) -> torch.Tensor:
        """The label map as a file holds it: the table's values, (n0, n1, n2), smallest integer type."""
        return self.labels.values_of(self.found.classes)

    def record(self) -> SegmentationRecord:
        """What the figures need."""
        reference = None if self.reference is None else self.reference.numpy()
        return SegmentationRecord(
            self.grid,
            self.image.values.numpy(),
            self.found.classes.numpy(),
            self.found.uncertainty.numpy(),
            self.labels,
            reference,
        )

    def _repr_html_(self) -> str:
        """In a notebook: outlines and uncertainty in the first plane, and the numbers."""
        return with_table(segmentation_html(self.record()), self.table.to_text())

    def view(self) -> Any:
        """A widget that shows image, classes and uncertainty in a notebook.

        Raises:
            MissingExtra: ipyniivue is not installed.
            InputError: the run kept no folder.
        """
        layers = ((IMAGE, "gray", 1.0), (LABELS, "random", 0.5), (UNCERTAINTY, "magma", 0.0))
        return widget(self.folder, [(name, {"colormap": colours, "opacity": o}) for name, colours, o in layers])


@on_the_run_s_backend
def segment(
    image: Scan,
    model: Model,
    run: Run,
    *,
    grid: Grid | None = None,
    reference: Scan | None = None,
    tolerance_mm: float | None = None,
    refine: bool = False,
    largest: bool = False,
    surfaces: Surfaces = "ply",
    chunk: int = CHUNK,
    request: dict[str, Any] | None = None,
) -> Segmentation:
    """Segments an image with a trained model.

    Args:
        image: one channel.
        model: of a method for segmentation.
        run: device and folder. With a folder everything is written there.
        grid: where the classes are asked for; by default the image's own voxels.
        reference: labels to judge by, values of the model's label table. Numbers are those on its own grid: the model
            is asked there, too, where that is another one.
        tolerance_mm: of the surface Dice; by default the reference's largest voxel size.
        refine: see `Labeller.label`.
        largest: keep the largest part of every class alone.
        surfaces: the format of the surfaces.
        chunk: points the model is asked at once.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the model is none for segmentation or does not suit the image; the reference holds values that the
            model does not know; the grid or the reference does not overlap the image.
    """
    name = model.method
    labels, truth = _checked(image, model, reference, tolerance_mm)
    if grid is None:
        grid = image.grid
    else:
        _check_overlap(image.grid, grid, "the grid that was asked for does not overlap the image", image.source)
    facts = facts_of(run, name, "", to_json(model.config), request or {})
    facts |= {"program": "segment", "model": model.key, "licence": model.licence}
    facts["facts"] = {"model": model.key, "licence_of_the_training_images": model.licence}
    with built_from(model):
        unlike = far_from_training(image, model)
    for sentence in [*learned_from(facts["inputs"], model), *unlike]:
        run.warn(sentence)
    with run.timed("encode"), torch.no_grad():
        classify = api.load(name).classifier(model, image, run.device)
    begin(run, facts, resumes=False)
    labeller = Labeller(classify, len(labels), image.grid, device=run.device, chunk=chunk, told=_progress(run))
    with run.timed("classify"):
        found = _labelled(labeller, grid, refine, largest, labels, run)
    for index in _absent(found, labels):
        run.warn(f"no voxel is '{labels.names[index]}'")
    meshes = {}
    if surfaces != "none" and min(grid.shape) > 1:
        with run.timed("surfaces"):
            meshes = {k: labeller.surface(found, k) for k in range(1, len(labels)) if bool((found.classes == k).any())}
    table = volume_table(found, labels, api.card(name).label, name)
    shown = None
    if reference is not None and truth is not None:
        shown = _on_grid(lambda x: nearest(truth, reference.grid, x), grid)
        with run.timed("judge"):
            same = reference.grid.same_as(grid)
            judged = found if same else _labelled(labeller, reference.grid, refine, largest, labels, run)
            if not same:
                run.note("Dice and distances are those on the reference's own grid; volumes are those on the run's.")
            add_agreement(table, judged, truth, labels, tolerance_mm or _coarsest(reference.grid), run)
    own = Scan(_image_on(image, grid), grid, image.unit, source=image.source)
    outcome = Segmentation(found, labels, own, shown, meshes, table, model.key, run.folder, run.warnings)
    if run.folder is not None:
        _write(run, facts, outcome, surfaces)
    return outcome


def learned_from(inputs: list[dict[str, str]], model: Model) -> list[str]:
    """A sentence for every input file, by its SHA-256, that the model has seen before."""
    seen = {entry["sha256"]: entry["split"] for entry in model.cohort if entry["split"] != "test"}
    return [
        f"the model has seen '{entry['path']}' in its training (split '{seen[entry['sha256']]}'): "
        "numbers for this image say nothing about new ones"
        for entry in inputs
        if entry["sha256"] in seen
    ]


def far_from_training(image: Scan, model: Model) -> list[str]:
    """Sentences on what sets an image apart from those that a model has learned from, as far as its facts tell:

    spacing_mm           their voxel size; compared in order of size, so that another orientation does not count
    intensity.ends       ((lowest, highest) lower end, (lowest, highest) upper end) of their intensities, at the
                         percentiles intensity.low_percentile and intensity.high_percentile
    """
    said = []
    learned = model.facts.get("spacing_mm")
    if learned is not None:
        mine = sorted(s for s, n in zip(image.grid.spacing_mm, image.grid.shape, strict=True) if n > 1)
        theirs = itertools.combinations(sorted(learned), len(mine))  # of a slice, the two that lie in it
        if not any(all(1 / FAR_SPACING <= a / b <= FAR_SPACING for a, b in zip(mine, c, strict=True)) for c in theirs):
            said.append(
                f"voxels of {_millimetres(image.grid.spacing_mm)} are far from those the model has learned from, "
                f"{_millimetres(learned)}: expect worse than its numbers"
            )
    recipe = model.facts.get("intensity", {})
    if "ends" in recipe:
        percentiles = recipe["low_percentile"], recipe["high_percentile"]
        low, high = (float(p) for p in np.percentile(image.values.numpy(), percentiles))
        slack = FAR_INTENSITY * (high - low)
        (a, b), (c, d) = recipe["ends"]
        if not (a - slack <= low <= b + slack and c - slack <= high <= d + slack):
            said.append(
                f"intensities from {low:.4g} to {high:.4g} are unlike all that the model has learned from (from "
                f"{a:.4g}..{b:.4g} to {c:.4g}..{d:.4g}): is this the same kind of image, in the same unit?"
            )
    return said


def volume_table(found: LabelMap, labels: LabelTable, label: str, name: str) -> Table:
    """A row for all classes together, headed by the method's label, and one for each: volumes in millilitres."""
    table = Table([Column("volume_ml", "volume", "ml", "", "", 3)])
    counts = torch.bincount(found.classes.flatten(), minlength=len(labels)).tolist()
    ml = found.grid.voxel_volume_mm3 / 1000
    table.rows.append(Row(name, label, "method", {"volume_ml": sum(counts[1:]) * ml}))
    for index in range(1, len(labels)):
        key = f"class {labels.values[index]}"
        table.rows.append(Row(key, labels.names[index], "class", {"volume_ml": counts[index] * ml}))
    return table


def add_agreement(
    table: Table, found: LabelMap, truth: torch.Tensor, labels: LabelTable, tolerance_mm: float, run: Run
) -> None:
    """Adds the agreement with a reference on the same grid to a table of `volume_table`: per class and, in the first
    row, the mean over the classes that the reference or the segmentation shows. What does not exist is left out."""
    mean = "of voxels; the first row is the mean over the classes below"
    near = f"share of both surfaces' area within {tolerance_mm:.4g} mm of the other"
    apart = "between surfaces midway between voxel centres, weighted by area; HD95 the larger of both directions"
    for column in (
        Column("reference_ml", "reference volume", "ml", "", "", 3),
        Column("dice", "Dice", "1", "", mean, 4),
        Column("surface_dice", "surface Dice", "1", "", near, 4),
        Column("hausdorff95_mm", "HD95", "mm", "", apart),
        Column("assd_mm", "ASSD", "mm", "", apart),
    ):
        table.add_column(column)
    together: dict[str, list[float]] = {}
    total = 0.0
    for index, row in enumerate(table.rows[1:], start=1):
        mine, theirs = found.classes == index, truth == index
        voxels = overlap(mine, theirs, found.grid)
        row.values["reference_ml"] = voxels.reference_mm3 / 1000
        total += voxels.reference_mm3 / 1000
        if math.isnan(voxels.dice):
            run.note(f"'{row.label}' is neither in the reference nor in the segmentation: it does not count.")
            continue
        surfaces = surface_agreement(mine, theirs, found.grid, tolerance_mm=tolerance_mm)
        numbers = {"dice": voxels.dice} | vars(surfaces)
        if math.isinf(surfaces.assd_mm):
            where = "reference" if voxels.volume_mm3 == 0 else "segmentation"
            run.warn(f"'{row.label}' is in the {where} alone: its Dice is 0, its distances do not exist")
        for key in ("dice", "surface_dice", "hausdorff95_mm", "assd_mm"):
            if math.isfinite(numbers[key]):
                row.values[key] = numbers[key]
                together.setdefault(key, []).append(numbers[key])
    table.rows[0].values |= {"reference_ml": total} | {k: sum(v) / len(v) for k, v in together.items()}


def file_names(labels: LabelTable, indices: list[int], ending: str) -> dict[int, str]:
    """The surfaces' files by class index: their names with plain letters; the value where two would be the same."""
    plain = {k: re.sub(r"[^A-Za-z0-9.-]+", "_", labels.names[k]).strip("_.") or str(labels.values[k]) for k in indices}
    folded = [name.lower() for name in plain.values()]  # some file systems do not tell them apart
    return {
        k: f"surface_{name}{f'_{labels.values[k]}' if folded.count(name.lower()) > 1 else ''}.{ending}"
        for k, name in plain.items()
    }


def _checked(
    image: Scan, model: Model, reference: Scan | None, tolerance_mm: float | None
) -> tuple[LabelTable, torch.Tensor | None]:
    """The model's label table and the reference's class indices, or what is wrong with the input."""
    if api.card(model.method).task != "segmentation":
        others = [c.name for c in api.discover().values() if c.task == "segmentation"]
        raise InputError(
            f"this is a model of '{model.method}', which does not segment",
            fix=f"train one of {', '.join(others) or 'none yet'}",
        )
    if image.values.ndim != 3:
        raise InputError("an image of one channel is needed", where=image.source, fix="extract one channel")
    labels = LabelTable.from_json(model.facts.get("labels"))
    if tolerance_mm is not None and not tolerance_mm > 0:
        raise InputError(f"the tolerance of the surface Dice must be positive, got {tolerance_mm:g} mm")
    if reference is None:
        return labels, None
    _check_overlap(image.grid, reference.grid, "the reference does not overlap the image", reference.source)
    return labels, labels.indices(reference.values, where=reference.source)


def _check_overlap(seen: Grid, other: Grid, what: str, where: str) -> None:
    ones = torch.ones(seen.shape, dtype=torch.uint8)
    if not bool(_on_grid(lambda x: nearest(ones, seen, x), other).any()):
        raise InputError(what, where=where, fix="both need a place in the same world coordinates")


def _coarsest(grid: Grid) -> float:
    """The largest voxel size; the thickness of a slice does not count."""
    return max(s for s, n in zip(grid.spacing_mm, grid.shape, strict=True) if n > 1)


def _progress(run: Run) -> Callable[[int, int], None]:
    """Tells the run's observers how far a large grid is."""
    start = time.perf_counter()

    def told(done: int, of: int) -> None:
        run.tell({"stage": "voxels", "step": done, "of": of, "seconds": time.perf_counter() - start, "loss": {}})

    return told


def _labelled(labeller: Labeller, grid: Grid, refine: bool, largest: bool, labels: LabelTable, run: Run) -> LabelMap:
    found = labeller.label(grid, refine=refine)
    if largest:
        found, dropped = largest_parts(found)
        for index, count in dropped.items():
            run.note(f"{count} voxels of '{labels.names[index]}' lay apart from its largest part and were dropped.")
    return found


def _absent(found: LabelMap, labels: LabelTable) -> list[int]:
    there = set(found.classes.unique().tolist())
    return [index for index in range(1, len(labels)) if index not in there]


def _image_on(image: Scan, grid: Grid) -> torch.Tensor:
    """The image at the voxel centres of a grid, trilinear; 0 where it shows nothing."""
    if image.grid.same_as(grid):
        return image.values.float()
    field = ImageField(image.values, image.grid)
    return _on_grid(lambda x: field(x)[:, 0] * field.inside(x), grid)


def _on_grid(function: Callable[[torch.Tensor], torch.Tensor], grid: Grid) -> torch.Tensor:
    """A function of points (n, 3) at the voxel centres of a grid, in parts: points take more memory than voxels."""
    parts = [function(grid.points(start, start + _PART)) for start in range(0, grid.size, _PART)]
    return torch.cat(parts).reshape(grid.shape)


def _millimetres(spacing: Any) -> str:
    return " x ".join(f"{float(s):.3g}" for s in spacing) + " mm"


def _write(run: Run, facts: dict[str, Any], outcome: Segmentation, surfaces: Surfaces) -> None:
    """Everything in the run's folder, the page last."""
    folder, grid, labels = run.folder, outcome.grid, outcome.labels
    assert folder is not None
    write_label_table(folder / TABLE, labels)
    write_nifti(folder / LABELS, outcome.values(), grid, unit="1")
    write_nifti(folder / UNCERTAINTY, outcome.found.uncertainty, grid, unit="1")
    write_nifti(folder / IMAGE, outcome.image.values, grid, unit=outcome.image.unit)
    if outcome.reference is not None:
        write_nifti(folder / REFERENCE, labels.values_of(outcome.reference), grid, unit="1")
    files = file_names(labels, list(outcome.surfaces), surfaces)
    for index, mesh in outcome.surfaces.items():
        write_mesh(folder / files[index], mesh)
    counts = torch.bincount(outcome.found.classes.flatten(), minlength=len(labels)).tolist()
    classes = [
        {
            "value": labels.values[k],
            "name": labels.names[k],
            "colour": colour,
            "voxels": counts[k],
            "volume_ml": counts[k] * grid.voxel_volume_mm3 / 1000,
            "surface": files.get(k),
        }
        for k, colour in enumerate(class_colours(len(labels) - 1), start=1)
    ]
    facts = facts | {
        "unit": outcome.image.unit,
        "timings": run.timings,
        "warnings": run.warnings,
        "notes": run.notes,
        "status": "complete",
        "table": outcome.table.to_json(),
        "images": [{"name": "image", "label": "image", "kind": "reference", "file": IMAGE}],
        "segmentation": {
            "file": LABELS,
            "uncertainty": UNCERTAINTY,
            "table": TABLE,
            "image": "image",
            "reference": None if outcome.reference is None else REFERENCE,
            "points": outcome.found.asked,
            "classes": classes,
        },
        "display": {"window": list(usual_range(outcome.image.values))},
    }
    write_record(folder, facts)
    build_report(folder)
