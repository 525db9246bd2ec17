"""Labelled images of many people, and the same at half resolution, split by person: what segmentation is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from scanfield.bench.protocol import data_path
from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.scan import Scan
from scanfield.space.grid import Grid


@dataclass(frozen=True)
class Row:
    """An image of a person, with its label map, and what it is for."""

    image: Path
    label: Path
    subject: str
    split: str


@dataclass(frozen=True)
class People:
    """Images of one kind.

    Args:
        table: the classes of their label maps.
        smallest: the class with the fewest voxels.
    """

    table: LabelTable
    smallest: str
    rows: tuple[Row, ...]


def hippocampi() -> People:
    """100 people, a crop of a T1 volume each, about 35 x 51 x 35 voxels of 1 mm, with the anterior and the posterior
    part of the hippocampus (Medical Segmentation Decathlon, task 4). By number, the first 30 judge, the next 10 are
    watched, and 60 are learned from."""
    root = data_path("hippocampus/hippocampus_006.nii.gz").parent
    names = sorted(path.name.removesuffix("_label.nii.gz") for path in root.glob("hippocampus_???_label.nii.gz"))
    rows = [
        Row(root / f"{name}.nii.gz", root / f"{name}_label.nii.gz", name, split)
        for name, split in zip(names, splits(len(names), judges=len(names) - 70, watched=10), strict=True)
    ]
    return People(LabelTable((0, 1, 2), ("background", "anterior", "posterior")), "posterior", tuple(rows))


SAME_PERSON = ((1, 2), (4, 5), (6, 7, 8), (9, 10, 11), (19, 20, 21), (22, 23, 24), (29, 30, 31), (34, 35))


def brains() -> People:
    """22 people, T1 slabs of 18 axial slices, 217 x 182 voxels of 1 mm, with four tissues (ANTs tutorial). By number,
    the first 8 judge, the next 3 are watched, and 11 are learned from.

    Several scans show the same person: less their mean, the images of `SAME_PERSON` have correlations above 0.35,
    all others below 0.3. Of judges and of those watched the first scan counts, the others serve no purpose; of
    those learned from all do.
    """
    people = [*SAME_PERSON, *((k,) for k in range(1, 36) if k not in {n for same in SAME_PERSON for n in same})]
    people.sort()
    rows = []
    for scans, split in zip(people, splits(len(people), judges=8, watched=3), strict=True):
        for number in scans if split == "train" else scans[:1]:
            image, label = (data_path(f"brain_population/jlf_{number:02d}_{kind}.nii.gz") for kind in ("t1", "seg"))
            rows.append(Row(image, label, f"person {scans[0]:02d}", split))
    names = ("background", "fluid", "cortex", "white matter", "deep grey matter")
    return People(LabelTable((0, 1, 2, 3, 4), names), "deep grey matter", tuple(rows))


def splits(count: int, *, judges: int, watched: int) -> list[str]:
    """The split of every person, by number: first those who judge, then those watched, then those learned from."""
    return ["test"] * judges + ["validation"] * watched + ["train"] * (count - judges - watched)


def cohorts(people: People, folder: Path) -> tuple[Cohort, Cohort]:
    """The images at full and at half resolution, which is written to a folder; the same splits.

    Half resolution: the mean of 2 x 2 x 2 voxels, and the label that most of them have, ties drawn by lot.
    """
    generator = torch.Generator().manual_seed(0)
    write_label_table(folder / "labels.csv", people.table)
    full, half = (["path,label,subject,split"] for _ in range(2))
    for k, row in enumerate(people.rows):
        scan, classes = read_nifti(row.image), read_nifti(row.label)
        coarse = halved(scan)
        write_nifti(folder / f"{k}.nii.gz", coarse.values, coarse.grid)
        indices, grid = halved_labels(people.table.indices(classes.values), classes.grid, generator)
        write_nifti(folder / f"{k}_label.nii.gz", people.table.values_of(indices), grid)
        full.append(f"{row.image},{row.label},{row.subject},{row.split}")
        half.append(f"{k}.nii.gz,{k}_label.nii.gz,{row.subject},{row.split}")
    return _read(folder, "full", full), _read(folder, "half", half)


def _read(folder: Path, name: str, lines: list[str]) -> Cohort:
    (folder / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_cohort(folder / f"{name}.csv", labels=folder / "labels.csv")


def halved(scan: Scan) -> Scan:
    """Means over 2 x 2 x 2 voxels; an odd last slice is left out."""
    return Scan(
        _blocks(scan.values.float()).mean(dim=-1), scan.grid.coarsened((2, 2, 2)), scan.unit, source=scan.source
    )


def halved_labels(
    classes: UInt8[Tensor, "n0 n1 n2"], grid: Grid, generator: torch.Generator
) -> tuple[UInt8[Tensor, "m0 m1 m2"], Grid]:
    """The class that most voxels of a block have; ties are drawn by lot, so that no structure shrinks or grows."""
    counts = torch.nn.functional.one_hot(_blocks(classes).long()).sum(dim=-2)
    lot = torch.rand(counts.shape, generator=generator)
    return (counts + 0.5 * lot).argmax(dim=-1).to(torch.uint8), grid.coarsened((2, 2, 2))


def _blocks(values: Tensor) -> Tensor:
    """The voxels of every block of 2 x 2 x 2, (m0, m1, m2, 8)."""
    a, b, c = (n // 2 for n in values.shape)
    split = values[: 2 * a, : 2 * b, : 2 * c].reshape(a, 2, b, 2, c, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(a, b, c, 8)
