"""Images with label maps: read together, and refused before a training begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.labelled import Labelled, LabelledImages, check_labelled, label_table, read_labelled
from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((4, 3, 2), (1.0, 2.0, 3.0))
TABLE = LabelTable((0, 4, 9), ("background", "grey", "white"))
SPLITS = ("train", "train", "validation", "test")


def labels(k: int) -> torch.Tensor:
    values = torch.zeros(GRID.shape, dtype=torch.uint8)
    values[k, 0, 0], values[k, 1, 1] = 4, 9
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(4):
        write_nifti(tmp_path / f"{k}.nii.gz", torch.full(GRID.shape, float(k)), GRID)
        write_nifti(tmp_path / f"{k}_label.nii.gz", labels(k), GRID)
    write_label_table(tmp_path / "labels.csv", TABLE)
    return tmp_path


def cohort(folder: Path, *, table: bool = True, **changed: str) -> Cohort:
    """The four images; `label_2="x.nii.gz"` changes what row 3 says of its label map."""
    lines = ["path,label,subject,split"]
    for k, split in enumerate(SPLITS):
        lines.append(f"{k}.nii.gz,{changed.get(f'label_{k}', f'{k}_label.nii.gz')},p{k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv", labels=folder / "labels.csv" if table else None)


def test_images_come_with_class_indices_when_asked_for(folder):
    made = cohort(folder)
    check_labelled(made)
    read: list[str] = []

    def prepare(labelled: Labelled) -> Labelled:
        read.append(Path(labelled.image.source).name)
        return labelled

    images = LabelledImages(made.part("train"), label_table(made), prepare=prepare)
    assert len(images) == 2 and read == []
    assert images[1].classes.dtype == torch.uint8
    assert torch.equal(images[1].classes, torch.where(labels(1) == 4, 1, torch.where(labels(1) == 9, 2, 0)).byte())
    assert images[1].image.grid.same_as(GRID) and float(images[1].image.values.mean()) == 1
    assert read == ["1.nii.gz"], "once"


def test_without_a_table_the_training_labels_make_one(folder):
    made = cohort(folder, table=False)
    assert made.labels is None
    assert label_table(made) == LabelTable((0, 4, 9), ("background", "label 4", "label 9"))
    check_labelled(made)


def test_the_record_knows_label_maps(folder):
    made = cohort(folder)
    assert [set(entry) for entry in made.record()] == [{"sha256", "split", "label_sha256"}] * 4
    assert made.record()[0]["label_sha256"] == made.members[0].label_sha256 != ""


def test_a_label_map_that_is_not_there(folder):
    with pytest.raises(InputError, match=r"no label map 'x.nii.gz'") as caught:
        cohort(folder, label_2="x.nii.gz")
    assert "row 3" in caught.value.where


def test_a_row_without_a_label_map(folder):
    made = cohort(folder, label_3="")
    assert made.members[3].label is None
    with pytest.raises(InputError, match=r"'3.nii.gz' has no label map") as caught:
        check_labelled(made)
    assert "row 4" in caught.value.where and "column 'label'" in caught.value.fix
    with pytest.raises(InputError, match="no label map"):
        read_labelled(made.members[3], TABLE)


@pytest.mark.parametrize("table", [True, False])
def test_values_outside_the_table(folder, table):
    write_nifti(folder / "2_label.nii.gz", torch.full(GRID.shape, 7, dtype=torch.uint8), GRID)
    with pytest.raises(InputError, match=r"'2_label.nii.gz': label values outside the table: 7") as caught:
        check_labelled(cohort(folder, table=table))
    assert "row 3" in caught.value.where and ("--labels" in caught.value.fix) != table


@pytest.mark.parametrize("values", [labels(0) * 0.5, -labels(0).float()])
def test_label_maps_that_are_no_labels(folder, values):
    write_nifti(folder / "0_label.nii.gz", values, GRID)
    with pytest.raises(InputError, match="integers from 0 on") as caught:
        check_labelled(cohort(folder, table=False))
    assert "0_label.nii.gz" in caught.value.where


def test_image_and_label_map_on_different_grids(folder):
    write_nifti(folder / "1_label.nii.gz", labels(1), Grid.centred(GRID.shape, (1.0, 2.0, 3.5)))
    made = cohort(folder)
    with pytest.raises(
        InputError, match=r"image '1.nii.gz' and label map '1_label.nii.gz' are not on the same"
    ) as caught:
        check_labelled(made)
    assert "row 2" in caught.value.where
    with pytest.raises(InputError, match="spacings differ"):
        read_labelled(made.members[1], TABLE)


def test_a_class_that_no_training_image_shows(folder):
    for k in range(2):
        write_nifti(folder / f"{k}_label.nii.gz", torch.where(labels(k) == 9, 0, labels(k)).byte(), GRID)
    with pytest.raises(InputError, match=r"shows the class 'white' \(value 9\)"):
        check_labelled(cohort(folder))
    with pytest.raises(InputError, match="outside the table: 9"):
        check_labelled(cohort(folder, table=False))


def test_nothing_but_background(folder):
    for k in range(2):
        write_nifti(folder / f"{k}_label.nii.gz", torch.zeros(GRID.shape), GRID)
    with pytest.raises(InputError, match="background only"):
        check_labelled(cohort(folder, table=False))


def test_images_without_background(folder):
    for k in range(4):
        write_nifti(folder / f"{k}_label.nii.gz", torch.where(labels(k) == 9, 9, 4).byte(), GRID)
    check_labelled(cohort(folder))


def test_an_image_in_the_place_of_a_label_map(folder):
    write_nifti(folder / "0_label.nii.gz", torch.arange(600.0).reshape(10, 10, 6), Grid.centred((10, 10, 6), 1.0))
    with pytest.raises(InputError, match=r"1 to 255 classes beside the background, got \d+") as caught:
        label_table(cohort(folder, table=False))
    assert "cohort.csv" in caught.value.where


def test_images_of_several_channels_are_refused_at_once(folder):
    write_nifti(folder / "0.nii.gz", torch.rand(*GRID.shape, 2), GRID)
    with pytest.raises(InputError, match=r"0.nii.gz' has 2 channels"):
        check_labelled(cohort(folder))


def test_the_same_label_map_in_two_splits_is_leakage(folder):
    shutil.copy(folder / "0_label.nii.gz", folder / "3_label.nii.gz")
    with pytest.raises(InputError, match=r"same label map is in two splits: '0_label.nii.gz' .train. and '3_label"):
        cohort(folder)


def test_two_images_may_share_a_label_map_and_empty_maps_are_no_leakage(folder):
    made = cohort(folder, label_1="0_label.nii.gz")
    assert made.members[0].label == made.members[1].label
    for k in (2, 3):
        write_nifti(folder / f"{k}_label.nii.gz", torch.zeros(GRID.shape), GRID)
    check_labelled(cohort(folder))
