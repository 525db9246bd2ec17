"""Boxes of volumes from files, and into files, against the readers that take everything at once."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from scanfield.data.nifti import read_nifti
from scanfield.data.volumes import create_volume, open_volume, stored_bits
from scanfield.errors import InputError
from scanfield.space.grid import Grid

TURN = np.array([[0.8, -0.6, 0.0, 20.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((11, 9, 6), TURN)
WHOLE = ((0, 11), (0, 9), (0, 6))
BOX = ((2, 10), (1, 5), (3, 6))
CUT = (slice(2, 10), slice(1, 5), slice(3, 6))


def values(kind="int16", frames=()):
    return np.random.default_rng(0).integers(0, 120, (*GRID.shape, *frames)).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "int16", ">i2", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("frames", [(), (4,)])
def test_boxes_of_nifti(tmp_path, kind, frames):
    array = values(kind, frames)
    image = nib.Nifti1Image(array, TURN, dtype=np.dtype(kind))
    if kind == ">i2":
        image = nib.Nifti1Image(array, TURN, nib.Nifti1Header(endianness=">"), dtype=np.dtype(kind))
    nib.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.grid.same_as(GRID) and volume.frames == ({"t": 4} if frames else {})
    for frame in range(4 if frames else 1):
        part = volume.read(frame, BOX)
        assert part.dtype == np.dtype(volume.kind) and np.array_equal(
            part, (array[..., frame] if frames else array)[CUT]
        )
    assert stored_bits(tmp_path / "a.nii") == 8 * np.dtype(volume.kind).itemsize


def test_the_header_s_scale_is_applied(tmp_path):
    image = nib.Nifti1Image(values("float32") * 0.37, TURN)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.kind == "float32"
    assert np.array_equal(volume.read(0, BOX), read_nifti(tmp_path / "a.nii").values.numpy()[CUT])


def test_a_compressed_file_is_expanded_once(tmp_path):
    nib.save(nib.Nifti1Image(values(), TURN), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="gunzip"):
        open_volume(tmp_path / "a.nii.gz")
    volume = open_volume(tmp_path / "a.nii.gz", expanded=tmp_path / "b.nii")
    assert np.array_equal(volume.read(0, BOX), values()[CUT]) and volume.source.endswith("a.nii.gz")
    before = (tmp_path / "b.nii").stat().st_mtime_ns
    open_volume(tmp_path / "a.nii.gz", expanded=tmp_path / "b.nii")
    assert (tmp_path / "b.nii").stat().st_mtime_ns == before and stored_bits(tmp_path / "a.nii.gz") == 16


def test_truncated_files(tmp_path):
    nib.save(nib.Nifti1Image(values(), TURN), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(content[:-50])
    with pytest.raises(InputError, match="truncated"):
        open_volume(tmp_path / "b.nii")
    volume = open_volume(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(content[:900])
    with pytest.raises(InputError, match="truncated"):
        volume.read(0, WHOLE)
    packed = gzip.compress(content)
    (tmp_path / "c.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"truncated|damaged"):
        open_volume(tmp_path / "c.nii.gz", expanded=tmp_path / "d.nii")
    assert not (tmp_path / "d.nii").exists()


def test_what_cannot_be_opened(tmp_path):
    nib.save(nib.Nifti1Image(values("int64"), TURN, dtype=np.int64), tmp_path / "a.nii")
    with pytest.raises(InputError, match="int64"):
        _ = open_volume(tmp_path / "a.nii").kind
    for name, match in (("a.png", "not read in parts"), ("no.nii", "no such file"), ("no.zarr", "no OME-Zarr")):
        with pytest.raises(InputError, match=match):
            open_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.zarr"])
@pytest.mark.parametrize("frames", [{}, {"t": 2}])
def test_boxes_into_files(tmp_path, name, frames):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    array = values("int16", (2,))
    with create_volume(tmp_path / name, GRID, "int16", frames=frames, unit="HU", chunks=(4, 4, 4)) as out:
        for frame in range(2 if frames else 1):
            for i in (0, 7):
                for k in (0, 2, 4):
                    box = ((i, min(i + 7, 11)), (0, 9), (k, k + 2))
                    out.write(frame, box, array[i : i + 7, :, k : k + 2, frame])
        assert not (tmp_path / name).exists()
    volume = open_volume(tmp_path / name, expanded=tmp_path / "expanded.nii")
    assert volume.grid.same_as(GRID) and volume.unit == "HU" and volume.frames == frames and volume.kind == "int16"
    for frame in range(2 if frames else 1):
        assert np.array_equal(volume.read(frame, WHOLE), array[..., frame])
    if name != "a.zarr":
        found = nib.load(tmp_path / name)
        assert np.array_equal(np.asarray(found.dataobj)[..., 0] if frames else found.dataobj, array[..., 0])
        assert {path.name for path in tmp_path.iterdir()} <= {name, "expanded.nii"}


def test_long_axes_are_nifti_2(tmp_path):
    grid = Grid.centred((40000, 1, 1), 0.1)
    with create_volume(tmp_path / "a.nii", grid, "uint8") as out:
        out.write(0, ((39999, 40000), (0, 1), (0, 1)), np.full((1, 1, 1), 7, dtype=np.uint8))
    found = nib.load(tmp_path / "a.nii")
    assert isinstance(found, nib.Nifti2Image) and found.dataobj[39999, 0, 0] == 7


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(InputError, match="ends in"), create_volume(tmp_path / "a.png", GRID, "uint8"):
        pass
    with (
        pytest.raises(InputError, match="no place for"),
        create_volume(tmp_path / "a.nii", GRID, "uint8", frames={"t": 2, "c": 2}),
    ):
        pass
    with pytest.raises(RuntimeError, match="stop"), create_volume(tmp_path / "a.nii.gz", GRID, "uint8"):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
