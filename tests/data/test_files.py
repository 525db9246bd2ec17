"""Loading by content, and checksums."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.files import checksum, load
from scanfield.data.measurement import Measurement
from scanfield.data.nifti import write_nifti
from scanfield.data.projections import write_projections
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((4, 5, 6), 2.0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "image.nii", np.arange(120).reshape(4, 5, 6).astype(np.float32), GRID, unit="HU")
    return tmp_path / "image.nii"


@pytest.fixture
def projections(tmp_path: Path) -> Path:
    geometry = ProjectionGeometry("parallel", np.arange(3) * 60.0, Detector("flat", (1, 8), (2.0, 2.0)), GRID)
    write_projections(tmp_path / "scan.npz", Measurement(torch.ones(geometry.shape), geometry))
    return tmp_path / "scan.npz"


@pytest.mark.parametrize("name", ["image.nii", "image.NII", "image.img", "image"])
def test_images(image: Path, name: str) -> None:
    scan = load(image.rename(image.with_name(name)))
    assert isinstance(scan, Scan) and scan.unit == "HU" and scan.grid.same_as(GRID)


@pytest.mark.parametrize("name", ["scan.npz", "scan.bin", "scan"])
def test_projections(projections: Path, name: str) -> None:
    scan = load(projections.rename(projections.with_name(name)))
    assert isinstance(scan, Measurement) and scan.kind == "projections:parallel"


def test_dicom_folder_and_single_file(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    with pytest.raises(InputError, match="no DICOM image"):
        load(tmp_path)
    for name in ("slice.dcm", "IM0001"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(100))
        with pytest.raises(InputError, match="one part of a series") as caught:
            load(tmp_path / name)
        assert str(tmp_path) in caught.value.fix


def test_a_series_is_chosen_only_in_a_folder(image: Path) -> None:
    with pytest.raises(InputError, match="only a DICOM folder"):
        load(image, series=0)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000), b"P5 2 2 255 abcd"])
def test_unknown_formats_get_the_list_of_known_ones(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match=r"'a\.mha' is not recognised") as caught:
        load(tmp_path / "a.mha")
    for known in (".nii.gz", "DICOM", ".npz"):
        assert known in caught.value.fix


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load(tmp_path / "a.nii")


def test_the_ending_names_the_reader_of_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"broken")
    with pytest.raises(InputError, match="no complete"):
        load(tmp_path / "a.npz")


def test_checksum_of_a_file(image: Path) -> None:
    assert checksum(image) == hashlib.sha256(image.read_bytes()).hexdigest()


def test_checksum_of_a_folder(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "sub").mkdir(parents=True)
    (first / "b").write_bytes(b"1")
    (first / "sub" / "a").write_bytes(b"2")
    shutil.copytree(first, tmp_path / "second")
    known = checksum(first)
    assert known == checksum(tmp_path / "second")
    (tmp_path / "second" / "b").write_bytes(b"3")
    assert checksum(tmp_path / "second") != known
    (first / "b").rename(first / "c")
    assert checksum(first) != known


def test_checksum_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        checksum(tmp_path / "missing")
