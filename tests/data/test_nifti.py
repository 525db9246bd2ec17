"""NIfTI files: geometry, values, and what damaged or hostile files get."""

import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.errors import InputError
from scanfield.space.grid import Grid

OBLIQUE = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix()


def affine_of(linear: np.ndarray, origin: tuple[float, float, float] = (-12.5, 30.25, 7.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return affine


AFFINES = {
    "plain": affine_of(np.diag([1.5, 0.5, 3.0])),
    "flipped": affine_of(np.diag([-1.5, -0.5, 3.0])),
    "left-handed": affine_of(np.diag([-1.5, 0.5, 3.0])),
    "permuted": affine_of(np.array([[0, 0, 2.0], [1.2, 0, 0], [0, -0.7, 0]])),
    "oblique": affine_of(OBLIQUE @ np.diag([0.7, 1.1, 2.5])),
    "oblique left-handed": affine_of(OBLIQUE @ np.diag([0.7, 1.1, -2.5])),
    "sheared": affine_of(np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 2.0]])),
}


def ramp(shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 7.25


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """Written by nibabel alone, with header fields changed afterwards."""
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patch(path: Path, **header: object) -> Path:
    """Header fields changed in the bytes of an uncompressed file, past nibabel's own checks."""
    raw = bytearray(path.read_bytes())
    changed = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in header.items():
        changed[key] = value
    raw[:348] = changed.binaryblock
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", AFFINES)
def test_round_trip_keeps_values_and_geometry(tmp_path: Path, name: str, suffix: str) -> None:
    grid = Grid((4, 5, 6), AFFINES[name])
    path = tmp_path / f"a{suffix}"
    write_nifti(path, torch.from_numpy(ramp()), grid, unit="1/mm")
    scan = read_nifti(path)
    assert scan.grid.same_as(grid, tolerance_mm=1e-4)
    assert scan.unit == "1/mm" and scan.values.dtype == torch.float32 and scan.source == str(path)
    np.testing.assert_array_equal(scan.values.numpy(), ramp())
    assert np.linalg.det(scan.grid.affine[:3, :3]) * np.linalg.det(AFFINES[name][:3, :3]) > 0


@pytest.mark.parametrize("name", [name for name in AFFINES if name != "sheared"])
def test_other_programs_find_the_same_voxels(tmp_path: Path, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / "a.nii.gz"
    write_nifti(path, ramp(), Grid((4, 5, 6), AFFINES[name]))
    image = nib.load(path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.get_qform(), AFFINES[name], atol=1e-5)
    itk = sitk.ReadImage(str(path))
    for index in [(0, 0, 0), (3, 4, 5), (1, 2, 3)]:
        lps = np.asarray(itk.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(lps * [-1, -1, 1], AFFINES[name][:3] @ [*index, 1], atol=1e-4)
        assert itk.GetPixel(index) == ramp()[index]


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "bool", "float64"])
def test_integers_are_kept_and_floats_become_float32(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(24) % 2 if dtype == "bool" else np.arange(24)).astype(dtype).reshape(2, 3, 4)
    write_nifti(tmp_path / "a.nii", values, Grid.centred((2, 3, 4), 1.0))
    image = nib.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == {"bool": np.uint8, "float64": np.float32}.get(dtype, np.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, ramp(), Grid.centred((4, 5, 6), 1.0))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_two_dimensions(tmp_path: Path) -> None:
    scan = read_nifti(save(tmp_path / "a.nii", ramp((4, 5)), np.diag([2.0, 3.0, 1.0, 1.0])))
    assert scan.grid.shape == (4, 5, 1)
    np.testing.assert_array_equal(scan.values[..., 0].numpy(), ramp((4, 5)))


def test_two_dimensions_without_a_slice_thickness(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp((4, 5)))
    patch(path, sform_code=1, srow_x=[0, 2, 0, 5], srow_y=[3, 0, 0, 6], srow_z=[0, 0, 0, 7])
    np.testing.assert_allclose(read_nifti(path).grid.affine[:3], [[0, 2, 0, 5], [3, 0, 0, 6], [0, 0, -1, 7]])
    patch(path, sform_code=0, qform_code=0, pixdim=[1, 2, 3, 0, 0, 0, 0, 0])
    assert read_nifti(path).grid.spacing_mm == (2.0, 3.0, 1.0)


def test_trailing_axes_of_one_voxel_are_dropped(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "a.nii", ramp((4, 5, 6, 1, 1)))).values.shape == (4, 5, 6)


def test_a_fourth_axis_is_refused_or_read_as_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp((4, 5, 6, 3)))
    with pytest.raises(InputError, match=r"\(4, 5, 6, 3\)"):
        read_nifti(path)
    np.testing.assert_array_equal(read_nifti(path, channels=True).values.numpy(), ramp((4, 5, 6, 3)))
    vectors = save(tmp_path / "v.nii", ramp((4, 5, 6, 1, 3)))  # NIfTI's own layout of vector fields
    np.testing.assert_array_equal(read_nifti(vectors, channels=True).values.numpy(), ramp((4, 5, 6, 3)))
    with pytest.raises(InputError, match="one volume is expected"):
        read_nifti(save(tmp_path / "b.nii", ramp((2, 2, 2, 3, 2))), channels=True)


def test_scale_is_applied(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = patch(save(tmp_path / "a.nii", stored), scl_slope=0.5, scl_inter=-1000.0)
    np.testing.assert_array_equal(read_nifti(path).values.numpy(), stored * 0.5 - 1000)


@pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_of_length_become_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    path = save(tmp_path / "a.nii", ramp(), np.diag([2.0, 3.0, 4.0, 1.0]), xyzt_units=code)
    np.testing.assert_allclose(read_nifti(path).grid.spacing_mm, np.array([2.0, 3.0, 4.0]) * factor)


def test_the_sform_comes_before_the_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), None)
    image.set_qform(AFFINES["flipped"], code=1)
    image.set_sform(AFFINES["oblique"], code=1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").grid.affine, AFFINES["oblique"], atol=1e-5)
    patch(tmp_path / "a.nii", sform_code=0)
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").grid.affine, AFFINES["flipped"], atol=1e-5)


def test_nifti_2_and_big_endian(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(ramp(), AFFINES["oblique"]), tmp_path / "two.nii")
    big = nib.Nifti1Image(ramp(), AFFINES["oblique"], nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii.gz")
    for name in ("two.nii", "big.nii.gz"):
        scan = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(scan.values.numpy(), ramp())
        np.testing.assert_allclose(scan.grid.affine, AFFINES["oblique"], atol=1e-5)


def test_the_name_does_not_decide_about_compression(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", ramp())
    (tmp_path / "a.nii.gz").rename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii").values.numpy(), ramp())


def test_unit_comes_from_the_description(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "a.nii", ramp(), descrip=b"unit=HU from elsewhere")).unit == "HU"
    assert read_nifti(save(tmp_path / "b.nii", ramp(), descrip=b"FSL5.0")).unit == "arbitrary"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.6, 0.99])
def test_truncated(tmp_path: Path, suffix: str, part: float) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path / f"a{suffix}", rng.normal(size=(16, 16, 16)).astype(np.float32))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match=r"truncated|cut off") as caught:
        read_nifti(path)
    assert str(path) in caught.value.where


def test_altered_compressed_data(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="truncated or damaged"):
        read_nifti(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = patch(save(tmp_path / "a.nii", ramp()), dim=[3, 32000, 32000, 1000, 1, 1, 1, 1])
    if suffix == ".nii.gz":
        raw = path.read_bytes()
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(raw))
    tracemalloc.start()
    with pytest.raises(InputError, match="truncated"):
        read_nifti(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_more_than_this_machine_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", ramp())
    monkeypatch.setattr("scanfield.data.guard._physical_memory", lambda: 959)
    with pytest.raises(InputError, match="GiB of memory"):
        read_nifti(path)
    monkeypatch.setattr("scanfield.data.guard._physical_memory", lambda: 960)  # 120 voxels, as stored and as float32
    read_nifti(path)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, "sizes"),
        ({"dim": [3, 4, -5, 6, 1, 1, 1, 1]}, "sizes"),
        ({"dim": [3, 4, 0, 6, 1, 1, 1, 1]}, "sizes"),
        ({"vox_offset": 0}, "start at byte"),
        ({"vox_offset": np.nan}, "start at byte"),
        ({"vox_offset": 1e30}, "start at byte"),
        ({"datatype": 32}, "complex64"),
        ({"datatype": 128}, "not supported"),
        ({"datatype": 7}, "unknown code 7"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "intensity scale"),
        ({"xyzt_units": 5}, "unit of length"),
        ({"magic": b"ni1"}, "half of a header/image pair"),
        ({"sform_code": 1, "srow_x": [0, 0, 0, 0]}, "spacing is zero"),
        ({"sform_code": 1, "srow_y": [0, np.nan, 0, 0]}, "finite"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "spacing must be positive"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 1, -2, 1, 0, 0, 0, 0]}, "spacing must be positive"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]}, "spacing must be positive"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}, "qform is invalid"),
    ],
)
def test_impossible_headers(tmp_path: Path, header: dict[str, object], word: str) -> None:
    path = patch(save(tmp_path / "a.nii", ramp()), **header)
    with pytest.raises(InputError, match=word) as caught:
        read_nifti(path)
    assert str(path) in caught.value.where


def test_nan_and_overflow(tmp_path: Path) -> None:
    values = ramp()
    values[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="1 of 120 voxels"):
        read_nifti(save(tmp_path / "a.nii", values))
    with pytest.raises(InputError, match="NaN or infinite"):
        read_nifti(save(tmp_path / "b.nii", np.full((2, 2, 2), 1e300)))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b broken", b"PK\x03\x04" + bytes(400), bytes(600)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"not a NIfTI|damaged"):
        read_nifti(tmp_path / "a.nii.gz")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("a.mha", ramp(), "ends in .nii"),
        ("a.nii", ramp((5, 4, 6)), "do not fit"),
        ("a.nii", ramp().astype(complex), "complex128"),
        ("a.nii", np.full((4, 5, 6), np.inf), "120 values are NaN or infinite"),
        ("no/a.nii", ramp(), "does not exist"),
    ],
)
def test_what_is_not_written(tmp_path: Path, name: str, values: np.ndarray, word: str) -> None:
    with pytest.raises(InputError, match=word):
        write_nifti(tmp_path / name, values, Grid.centred((4, 5, 6), 1.0))
    assert os.listdir(tmp_path) == []


def test_a_series_has_its_step_of_time(tmp_path: Path) -> None:
    grid = Grid.centred((4, 5, 6), 2.0)
    write_nifti(tmp_path / "cine.nii.gz", np.zeros((4, 5, 6, 3)), grid, step_s=0.04)
    header = nib.load(tmp_path / "cine.nii.gz").header
    assert header.get_zooms() == pytest.approx((2, 2, 2, 0.04)) and header.get_xyzt_units() == ("mm", "sec")
    assert read_nifti(tmp_path / "cine.nii.gz", channels=True).grid.same_as(grid)
    write_nifti(tmp_path / "vector.nii", np.zeros((4, 5, 6, 3)), grid)
    assert nib.load(tmp_path / "vector.nii").header.get_xyzt_units() == ("mm", "unknown")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_random_damage_gives_an_image_or_an_input_error(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", ramp())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        raw = bytearray(whole)
        raw[rng.integers(min(len(raw), 352))] = rng.integers(256)
        path.write_bytes(bytes(raw))
        try:
            read_nifti(path)
        except InputError:
            refused += 1
    assert 0 < refused < 150
