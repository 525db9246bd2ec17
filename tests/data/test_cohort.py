"""Tables of images: what is read, when, and what is refused before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from scanfield.data.cohort import Images, read_cohort
from scanfield.data.files import checksum
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((4, 3, 2), 1.0)
ROWS = ("a.nii.gz,ann,train", "b.nii.gz,ann,train", "c.nii.gz,bob,validation", "d.nii.gz,eve,test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate("abcd"):
        write_nifti(tmp_path / f"{name}.nii.gz", torch.full(GRID.shape, float(k)), GRID)
    return tmp_path


def table(folder: Path, *rows: str, head: str = "path,subject,split") -> Path:
    (folder / "cohort.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder / "cohort.csv"


def test_members_by_split_with_their_checksums(folder):
    cohort = read_cohort(table(folder, *ROWS))
    assert [m.path.name for m in cohort.part("train")] == ["a.nii.gz", "b.nii.gz"]
    assert [len(cohort.part(s)) for s in ("train", "validation", "test")] == [2, 1, 1]
    assert cohort.subjects("train") == 1
    assert cohort.members[2].sha256 == checksum(folder / "c.nii.gz")


def test_the_record_names_nobody(folder):
    cohort = read_cohort(table(folder, *ROWS))
    record = cohort.record()
    assert record[3] == {"sha256": checksum(folder / "d.nii.gz"), "split": "test"}
    assert all(set(entry) == {"sha256", "split"} for entry in record)


def test_spreadsheets_files_are_read(folder):
    """A byte order mark, blanks, further columns in any order."""
    path = folder / "cohort.csv"
    path.write_bytes("\ufeffsplit, age ,subject,path\ntrain, 7 ,ann,a.nii.gz\ntest,,bob,b.nii.gz\n".encode())
    cohort = read_cohort(path)
    assert cohort.members[0].more == {"age": "7"} and cohort.members[1].more == {"age": ""}


def test_an_image_saved_again_is_the_same_image(folder):
    values = read_nifti(folder / "a.nii.gz").values
    write_nifti(folder / "plain.nii", values, GRID)
    write_nifti(folder / "other.nii.gz", values.to(torch.int16), Grid.centred(GRID.shape, 2.0), unit="HU")
    for name in ("plain.nii", "other.nii.gz"):
        with pytest.raises(InputError, match=f"same voxels: 'a.nii.gz' .train. and '{name}' .test."):
            read_cohort(table(folder, "a.nii.gz,ann,train", f"{name},bob,test"))
    read_cohort(table(folder, "a.nii.gz,ann,train", "plain.nii,ann,train", "b.nii.gz,bob,test"))


@pytest.mark.parametrize(
    ("first", "second"),
    [("sub-01", "SUB-01"), ("sub 01", "sub  01"), ("M\u00fcller", "Mu\u0308ller"), ("ann", "ann\u200b")],
)
def test_spellings_of_one_name_are_one_person(folder, first, second):
    with pytest.raises(InputError, match="is in two splits, train and test"):
        read_cohort(table(folder, f"a.nii.gz,{first},train", f"b.nii.gz,{second},test"))
    with pytest.raises(InputError, match="all images show one subject"):
        read_cohort(table(folder, f"a.nii.gz,{first},train", f"b.nii.gz,{second},train"))


def test_images_are_read_when_asked_for_and_the_last_ones_kept(folder):
    members = read_cohort(table(folder, *ROWS)).members
    read: list[str] = []

    def prepare(scan):
        read.append(Path(scan.source).name)
        return float(scan.values.mean())

    images = Images(members, prepare, keep=2)
    assert len(images) == 4 and read == []
    assert [images[0], images[1], images[0], images[-2], images[0]] == [0.0, 1.0, 0.0, 2.0, 0.0]
    assert read == ["a.nii.gz", "b.nii.gz", "c.nii.gz"], "the one used last stays"
    assert images[1] == 1.0 and read[-1] == "b.nii.gz"
    with pytest.raises(IndexError):
        images[4]
    with pytest.raises(ValueError, match="at least one"):
        Images(members, prepare, keep=0)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ((), "no images"),
        (("x.nii.gz,ann,train", *ROWS[2:]), "no image 'x.nii.gz'"),
        (("a.nii.gz,ann,training", *ROWS[2:]), "unknown split 'training' .did you mean 'train'"),
        (("a.nii.gz,,train", *ROWS[2:]), "row has no subject"),
        (("a.nii.gz,ann", *ROWS[2:]), "row has no split"),
        (("a.nii.gz,ann,train,more", *ROWS[2:]), "more values"),
        ((*ROWS, "a.nii.gz,zoe,test"), "listed twice"),
        (("a.nii.gz,ann,train", "b.nii.gz,ann,test"), "'ann' is in two splits, train and test"),
        (ROWS[:2], "one subject, 'ann'"),
        (ROWS[2:], "no image is in the split 'train'"),
    ],
)
def test_bad_tables_are_refused_with_one_sentence(folder, rows, match):
    with pytest.raises(InputError, match=match) as caught:
        read_cohort(table(folder, *rows))
    assert "cohort.csv" in caught.value.where


def test_the_same_image_under_another_name_is_leakage(folder):
    shutil.copy(folder / "a.nii.gz", folder / "e.nii.gz")
    with pytest.raises(InputError, match=r"'a.nii.gz' .train. and 'e.nii.gz' .test."):
        read_cohort(table(folder, *ROWS, "e.nii.gz,zoe,test"))


def test_tables_without_columns_or_text_are_refused(folder):
    with pytest.raises(InputError, match=r"no column 'subject'.*did you mean 'subjects'"):
        read_cohort(table(folder, *ROWS, head="path,subjects,split"))
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_cohort(folder / "binary.csv")
    with pytest.raises(InputError, match="no such file"):
        read_cohort(folder / "none.csv")
