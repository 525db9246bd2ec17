"""`scanfield simulate cells` as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.cohort import read_cohort
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.sequences import check_sequences, read_sequence
from scanfield.space.grid import Grid


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    grid = Grid.centred((40, 24, 22), (1.0, 1.0, 1.5))
    index = grid.voxels(torch.arange(grid.size)).double()
    values = torch.zeros(grid.size, dtype=torch.uint8)
    for value, x in ((1, 8.0), (2, 20.0), (5, 31.0)):
        values[
            ((index - torch.tensor([x, 11.0, 10.0])) / torch.tensor([4.0, 5.0 + value / 5, 4.0])).norm(dim=1) < 1
        ] = value
    path = tmp_path_factory.mktemp("labels") / "labels.nii.gz"
    write_nifti(path, values.reshape(grid.shape), grid)
    return str(path)


SMALL = ["--frames", "4", "--size", "20", "--finer", "2", "--step-s", "30", "--seed", "3"]


def test_a_label_map_becomes_a_cohort(labels, tmp_path, capsys):
    out = tmp_path / "cells"
    assert main(["simulate", "cells", labels, "-o", str(out), "--validation", "1", "--json", *SMALL]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sequences"] == 3 and facts["splits"] == {"train": 2, "validation": 1} and facts["frames"] == 4
    cohort = read_cohort(out / "cohort.csv")
    check_sequences(cohort)
    sequence = read_sequence(cohort.members[0].path)
    assert sequence.duration_s == 90 and sequence.grid.shape == (20, 20, 20)
    rows = list(csv.DictReader((out / "cohort.csv").open()))
    assert [row["subject"] for row in rows] == ["label_001", "label_002", "label_005"]
    assert sum(row["divides"] == "yes" for row in rows) == facts["dividing"]
    record = json.loads((out / "simulation.json").read_text())
    assert record["options"]["seed"] == 3 and record["command"].startswith("scanfield simulate cells")


def test_text_output_and_several_maps(labels, tmp_path, capsys):
    out, other = tmp_path / "cells", tmp_path / "other.nii.gz"
    scan = read_nifti(labels)
    write_nifti(other, scan.values.flip(0).to(torch.uint8), scan.grid)
    assert main(["simulate", "cells", labels, str(other), "-o", str(out), "--count", "4", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "4 sequences (4 train)" in said and "cohort.csv" in said


def test_a_label_map_that_is_given_twice_is_refused(labels, tmp_path, capsys):
    """Its objects would be two subjects, one to learn from and one to judge by."""
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(Path(labels).read_bytes())
    for twin in (labels, str(copy)):
        assert main(["simulate", "cells", labels, twin, "-o", str(tmp_path / "cells"), *SMALL]) == 2
        assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--count", "9"], "there are 3 whole objects, 9 are wanted"),
        (["--test", "2"], "at least 2 must be left to learn from"),
        (["--growth", "0"], "must be greater than 0"),
        (["--deformation", "0.9"], "beyond which objects fold"),
    ],
)
def test_what_cannot_be_is_said(more, said, labels, tmp_path, capsys):
    assert main(["simulate", "cells", labels, "-o", str(tmp_path / "x"), *SMALL, *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_full_folder_is_left_alone(labels, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["simulate", "cells", labels, "-o", str(tmp_path), *SMALL]) == 2
    assert "new or empty folder" in capsys.readouterr().err
