"""What a stored dose costs in a planner's terms: one row per result, and dose-volume histograms of every structure."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.dose import Dose, box_of
from scanfield.data.structures import Structure, StructureSet
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.metrics.dose import (
    DoseVolume,
    Histogram,
    conformity,
    dose_volume,
    gradient_error,
    histogram,
    isodose_dice,
)
from scanfield.metrics.gamma import Gamma, GammaCriterion, gamma
from scanfield.metrics.image import psnr_db
from scanfield.tasks.table import Column, Kind, Row

CRITERIA = (GammaCriterion(3.0, 3.0, largest=1.2), GammaCriterion(2.0, 2.0, local=True, largest=1.2))
LEVELS_GY = (5.0, 20.0, 30.0, 50.0)
ISODOSES = (95, 50)  # percent of the prescription, or of the highest dose
TARGETS = ("PTV", "CTV", "GTV", "ITV")  # how names of targets begin
STEP_GY = 0.1
_COLUMNS = ("structure", "dose", "voxels", "D98_Gy", "D95_Gy", "D50_Gy", "D2_Gy", "mean_Gy", "max_Gy")


@dataclass(eq=False)
class Dosimetry:
    """Judges doses on the grid of the planned one.

    Args:
        plan: the planned dose.
        structures: targets and organs; their masks on the dose grid.
        prescribed_gy: for isodoses and conformity; without it isodoses refer to the highest dose.
        rows: dose-volume numbers collected so far, as they stand in dvh.csv.
        curves: cumulative histograms by (structure, result).
    """

    plan: Dose
    structures: dict[str, Bool[Tensor, "n0 n1 n2"]]
    prescribed_gy: float | None = None
    rows: list[list[Any]] = field(default_factory=list)
    curves: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.box = torch.zeros(self.plan.grid.shape, dtype=torch.bool)
        self.box[tuple(slice(low, high) for low, high in box_of(self.plan))] = True
        self.received = self.plan.values > 0
        self.levels = tuple(level for level in LEVELS_GY if level < self.plan.highest_gy)
        self.planned = {
            name: dose_volume(self.plan.values[mask], self.levels) for name, mask in self.structures.items()
        }

    @property
    def targets(self) -> list[str]:
        """The structures whose coverage matters: those called like targets, or all of them if there are none."""
        return [name for name in self.structures if name.upper().startswith(TARGETS)] or list(self.structures)

    def columns(self) -> list[Column]:
        """Of the table of results."""
        peak = f"peak {self.plan.highest_gy:.4g} Gy, the highest dose"
        columns = [
            Column("bytes", "file", "bytes", "", "everything a decoder needs", 0),
            Column("bits_per_voxel", "rate", "bit/voxel", "", f"of the {int(self.box.sum())} voxels of the box"),
            Column("psnr_db:box", "PSNR, box", "dB", "higher", f"the smallest box that holds all dose, {peak}"),
            Column(
                "psnr_db:dose", "PSNR, dose", "dB", "higher", f"{int(self.received.sum())} voxels with dose, {peak}"
            ),
            Column("max_gy", "largest error", "Gy", "lower"),
        ]
        for criterion in CRITERIA:
            note = f"points above {criterion.cutoff_percent:g} % of the highest dose with gamma <= 1"
            columns.append(Column(_key(criterion), f"gamma {criterion.label}", "%", "higher", note, 2))
        columns.append(
            Column("gradient", "gradient error", "Gy/mm", "lower", "root mean square where there is dose", 3)
        )
        of = "the prescription" if self.prescribed_gy else "the highest dose"
        for percent in ISODOSES:
            columns.append(Column(f"dice:{percent}", f"Dice, {percent} % isodose", "", "higher", f"of {of}", 4))
        if self.structures:
            note = f"largest of {', '.join(self.targets)}"
            columns.append(Column("d95_gy", "|D95 change|", "Gy", "lower", note, 3))
            columns.append(Column("mean_percent", "|mean dose change|", "%", "lower", note, 3))
        columns.append(Column("seconds", "time", "s", "", "", 1))
        return columns

    def row(
        self, name: str, label: str, kind: Kind, dose: Float[Tensor, "n0 n1 n2"], size: int, seconds: float
    ) -> tuple[Row, Gamma]:
        """The numbers of one result on the plan's grid, and its gamma map by the first criterion; collects its
        dose-volume numbers, too."""
        plan, peak = self.plan.values, self.plan.highest_gy
        values = {
            "bytes": float(size),
            "bits_per_voxel": 8 * size / int(self.box.sum()),
            "psnr_db:box": psnr_db(dose, plan, self.box, peak),
            "psnr_db:dose": psnr_db(dose, plan, self.received, peak),
            "max_gy": float((dose - plan).abs().max()),
            "gradient": gradient_error(dose, plan, self.plan.grid, self.received),
            "seconds": seconds,
        }
        maps = [gamma(plan, self.plan.grid, dose, self.plan.grid, criterion) for criterion in CRITERIA]
        values |= {_key(found.criterion): found.passing_percent for found in maps}
        for percent in ISODOSES:
            level = percent / 100 * (self.prescribed_gy or peak)
            overlap = isodose_dice(dose, plan, level)
            values |= {} if math.isnan(overlap) else {f"dice:{percent}": overlap}
        found = {structure: self.collect(structure, name, dose[mask]) for structure, mask in self.structures.items()}
        if found:
            changes = [(found[t], self.planned[t]) for t in self.targets]
            values["d95_gy"] = max(abs(a.d95 - b.d95) for a, b in changes)
            values["mean_percent"] = max(100 * abs(a.mean / b.mean - 1) if b.mean else 0.0 for a, b in changes)
        return Row(name, label, kind, values), maps[0]

    def collect(self, structure: str, name: str, values: Float[Tensor, " n"]) -> DoseVolume:
        """Keeps the dose-volume numbers of one structure under the name of a dose."""
        found = dose_volume(values, self.levels)
        self.rows.append([structure, name, len(values), *_numbers(found)])
        self.curves[structure, name] = histogram(values, highest_gy=self.plan.highest_gy, step_gy=STEP_GY)
        return found

    def coverage(self, dose: Float[Tensor, "n0 n1 n2"]) -> dict[str, float]:
        """Paddick's conformity index of every target; empty without a prescription."""
        if self.prescribed_gy is None or not self.structures:
            return {}
        return {name: conformity(dose, self.structures[name], self.prescribed_gy) for name in self.targets}

    def write(self, folder: Path) -> None:
        """dvh.csv, a line per structure and dose, and dvh_curves.csv, the cumulative histograms in percent."""
        if not self.rows:
            return
        volumes = [f"V{level:g}Gy_percent" for level in self.levels]
        rows = [[*_COLUMNS, *volumes], *([*row[:3], *(f"{value:.4f}" for value in row[3:])] for row in self.rows)]
        _write_csv(folder / "dvh.csv", rows)
        curves = list(self.curves.values())
        head = ["dose_Gy", *(f"{structure}|{name}" for structure, name in self.curves)]
        lines = [[f"{gy:.3f}", *(f"{curve.percent[k]:.4f}" for curve in curves)] for k, gy in enumerate(curves[0].gy)]
        _write_csv(folder / "dvh_curves.csv", [head, *lines])


def masks_of(structures: StructureSet, plan: Dose) -> tuple[dict[str, Bool[Tensor, "n0 n1 n2"]], list[str]]:
    """Masks of the structures on the dose grid, and a sentence for each that leaves it.

    Raises:
        InputError: a structure lies outside the dose grid, or two share a name.
    """
    masks: dict[str, Tensor] = {}
    partly = []
    for structure in structures.structures:
        if structure.name in masks:
            raise InputError(f"two structures are called '{structure.name}'", where=structures.source)
        masks[structure.name] = structure.on(plan.grid)
        share = structure.share_on(plan.grid)
        if share < 0.999:
            partly.append(
                f"only {100 * share:.3g} % of the structure '{structure.name}' lies in the dose grid; "
                "its numbers are those of that part"
            )
    return masks, partly


def named(structures: StructureSet) -> dict[str, Structure]:
    """Structures by name."""
    return {structure.name: structure for structure in structures.structures}


def _key(criterion: GammaCriterion) -> str:
    return f"gamma:{criterion.dose_percent:g}/{criterion.distance_mm:g}{'l' if criterion.local else ''}"


def _numbers(found: DoseVolume) -> list[float]:
    return [found.d98, found.d95, found.d50, found.d2, found.mean, found.highest, *found.volumes.values()]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
