"""Labelled images of many people: their splits, and half resolution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from scanfield.bench.labelled_people import (
    SAME_PERSON,
    People,
    Row,
    brains,
    cohorts,
    halved,
    halved_labels,
    hippocampi,
    splits,
)
from scanfield.data.labels import LabelTable
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.scan import Scan
from scanfield.space.grid import Grid

GRID = Grid.centred((9, 8, 6), 1.0)


def test_half_resolution_has_the_labels_of_most_voxels_and_lots_for_ties():
    classes = torch.zeros(4, 4, 4, dtype=torch.uint8)
    classes[:2, :2, :2] = 1
    classes[0, 0, 0] = 2  # seven of eight remain
    classes[2, 2:, :2] = 2  # four of eight: a tie
    grid = Grid.centred((4, 4, 4), 1.0)
    drawn = [halved_labels(classes, grid, torch.Generator().manual_seed(k))[0] for k in range(40)]
    assert all(int(found[0, 0, 0]) == 1 and int(found[0, 1, 1]) == 0 for found in drawn)
    ties = {int(found[1, 1, 0]) for found in drawn}
    assert ties == {0, 2}
    half = halved_labels(classes, grid, torch.Generator())[1]
    assert half.spacing_mm == pytest.approx((2, 2, 2))
    assert torch.allclose(half.to_world(torch.zeros(3)), grid.to_world(torch.full((3,), 0.5)))


def test_means_over_eight_voxels_stay_in_place():
    scan = Scan(torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0)), GRID)
    half = halved(scan)
    assert half.grid.shape == (4, 4, 3)
    assert float(half.values[3, 1, 2]) == pytest.approx(float(scan.values[6:8, 2:4, 4:6].mean()))
    assert torch.allclose(half.grid.to_world(torch.zeros(3)), GRID.to_world(torch.full((3,), 0.5)))


def test_both_cohorts_have_the_same_people_and_splits(tmp_path):
    rows = []
    for k, split in enumerate(splits(6, judges=2, watched=1)):
        image, label = tmp_path / f"image{k}.nii.gz", tmp_path / f"label{k}.nii.gz"
        write_nifti(image, torch.rand(GRID.shape, generator=torch.Generator().manual_seed(k)), GRID)
        write_nifti(label, (read_nifti(image).values > 0.5).to(torch.uint8) * 7, GRID)
        rows.append(Row(image, label, f"person {k}", split))
    folder = tmp_path / "half"
    folder.mkdir()
    full, half = cohorts(People(LabelTable((0, 7), ("background", "right")), "right", tuple(rows)), folder)
    assert [m.split for m in full.members] == [m.split for m in half.members] == [row.split for row in rows]
    assert [m.subject for m in full.members] == [m.subject for m in half.members]
    assert [m.split for m in full.members] == ["test"] * 2 + ["validation"] + ["train"] * 3
    small = read_nifti(half.members[0].path)
    assert torch.allclose(small.values, halved(read_nifti(rows[0].image)).values)
    assert read_nifti(half.members[0].label).values.unique().tolist() == [0, 7]


def test_everybody_of_the_data_is_in_one_split(development_data):
    for people, count, judges in ((hippocampi(), 100, 30), (brains(), 22, 8)):
        split = {row.subject: row.split for row in people.rows}
        assert len(split) == count
        assert all(split[row.subject] == row.split for row in people.rows)
        assert Counter(split.values())["test"] == judges
        voxels = sum(
            np.bincount(read_nifti(row.label).values.reshape(-1).int().numpy(), minlength=len(people.table))
            for row in people.rows
        )
        assert people.table.names[int(np.argmin(voxels))] == people.smallest


def test_scans_of_one_person_are_those_alike(development_data):
    numbers = range(1, 36)
    scans = [
        read_nifti(development_data / f"brain_population/jlf_{k:02d}_t1.nii.gz").values[::2, ::3, ::2] for k in numbers
    ]
    images = torch.stack(scans).float()
    mean = images.mean(dim=0)
    alike = torch.corrcoef((images - mean)[:, mean > 30])
    same = {(a, b) for people in SAME_PERSON for a in people for b in people if a < b}
    for a in numbers:
        for b in range(a + 1, 36):
            value = float(alike[a - 1, b - 1])
            assert value > 0.35 if (a, b) in same else value < 0.3, (a, b, value)
