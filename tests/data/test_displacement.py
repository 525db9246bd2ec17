"""Displacement fields on disk: SimpleITK maps the same physical points, whatever the grid."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.displacement import read_displacement, write_displacement, write_itk_displacement
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.space.grid import Grid

LPS = np.array([-1, -1, 1.0])
OBLIQUE = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix()
GRIDS = {
    "plain": np.diag([1.5, 0.5, 3.0]),
    "flipped": np.diag([-1.5, -0.5, 3.0]),
    "left-handed": np.diag([-1.5, 0.5, 3.0]),
    "permuted": np.array([[0, 0, 2.0], [1.2, 0, 0], [0, -0.7, 0]]),
    "oblique": OBLIQUE @ np.diag([0.7, 1.1, 2.5]),
    "oblique left-handed": OBLIQUE @ np.diag([0.7, 1.1, -2.5]),
}
SHEARED = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 2.0]])


def grid_of(linear: np.ndarray, shape: tuple[int, int, int] = (9, 8, 7)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, (-112.5, 230.25, 47.0)
    return Grid(shape, affine)


def displacement(x: np.ndarray) -> np.ndarray:
    """A smooth field of several millimetres in world coordinates, different along x, y and z."""
    return np.stack([6 * np.sin(x[..., 1] / 9), 3 + 0.05 * x[..., 2], -4 * np.cos(x[..., 0] / 11)], axis=-1)


def on(grid: Grid) -> torch.Tensor:
    return torch.from_numpy(displacement(grid.points().double().numpy())).reshape(*grid.shape, 3).float()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("write", [write_displacement, write_itk_displacement])
@pytest.mark.parametrize("name", GRIDS)
def test_round_trip(tmp_path: Path, name: str, write, suffix: str) -> None:
    grid = grid_of(GRIDS[name])
    path = tmp_path / f"u{suffix}"
    write(path, on(grid), grid)
    found, place = read_displacement(path)
    assert place.same_as(grid) and torch.equal(found, on(grid))
    first = path.read_bytes()
    write(path, on(grid), grid)
    assert path.read_bytes() == first


def test_what_the_headers_say(tmp_path: Path) -> None:
    grid = grid_of(GRIDS["oblique"])
    for write, intent, sign in (
        (write_displacement, "displacement vector", 1),
        (write_itk_displacement, "vector", LPS),
    ):
        write(tmp_path / "u.nii.gz", on(grid), grid)
        image = nib.load(tmp_path / "u.nii.gz")
        assert image.shape == (9, 8, 7, 1, 3) and image.get_data_dtype() == np.float32
        assert image.header.get_intent()[0] == intent and image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, :, 0], on(grid).numpy() * np.float32(sign))


@pytest.mark.parametrize(
    ("write", "shape"),
    [
        (write_itk_displacement, (9, 8, 7)),
        (write_itk_displacement, (9, 8, 1)),
        (write_itk_displacement, (1, 8, 7)),
        (write_displacement, (9, 8, 7)),  # turned by ITK itself, because of the intent
    ],
)
@pytest.mark.parametrize("name", GRIDS)
def test_itk_maps_the_same_physical_points(tmp_path: Path, name: str, write, shape: tuple[int, int, int]) -> None:
    """At voxel centres against the field itself, between them against trilinear interpolation of its samples."""
    sitk = pytest.importorskip("SimpleITK")
    grid = grid_of(GRIDS[name], shape)
    write(tmp_path / "u.nii.gz", on(grid), grid)
    image = sitk.ReadImage(str(tmp_path / "u.nii.gz"), sitk.sitkVectorFloat64)
    assert image.GetNumberOfComponentsPerPixel() == 3
    assert image.GetSize() == (*shape[:2], 3 if shape[2] == 1 else shape[2])
    transform = sitk.DisplacementFieldTransform(image)

    def mapped(x: np.ndarray) -> np.ndarray:
        return np.array([transform.TransformPoint(p) for p in (x * LPS).tolist()]) * LPS

    centres = grid.points().double().numpy()
    assert np.abs(mapped(centres) - (centres + displacement(centres))).max() < 0.01

    index = np.random.default_rng(0).uniform(0, np.asarray(shape) - 1, size=(100, 3))
    between = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    x = torch.from_numpy(between)
    u = torch.cat([ImageField(on(grid)[..., c], grid)(x) for c in range(3)], dim=-1)
    assert np.abs(mapped(between) - (x + u).numpy()).max() < 0.01
    assert np.abs(u.numpy()).max() > 2  # no comparison of nothing with nothing


@pytest.mark.parametrize("fixed", ["oblique left-handed", "permuted"])
def test_itk_resamples_the_moving_image_onto_the_fixed_grid(tmp_path: Path, fixed: str) -> None:
    """One direction: the field takes fixed points to moving points, on grids that have nothing in common."""
    sitk = pytest.importorskip("SimpleITK")
    fixed_grid = grid_of(GRIDS[fixed])
    x = fixed_grid.points().double()
    moved = x + torch.from_numpy(displacement(x.numpy()))
    low, high = moved.min(dim=0).values - 5, moved.max(dim=0).values + 5
    affine = np.diag([-1.3, 1.1, 1.7, 1.0])
    affine[:3, 3] = [float(high[0]), float(low[1]), float(low[2])]
    shape = tuple(int(n) for n in np.ceil((high - low).numpy() / [1.3, 1.1, 1.7]) + 1)
    moving_grid = Grid(shape, affine)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    write_nifti(tmp_path / "moving.nii.gz", values, moving_grid)
    write_nifti(tmp_path / "fixed.nii.gz", torch.zeros(fixed_grid.shape), fixed_grid)
    write_itk_displacement(tmp_path / "u.nii.gz", on(fixed_grid), fixed_grid)

    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "u.nii.gz"), sitk.sitkVectorFloat64))
    reference, moving = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, reference, field, sitk.sitkLinear, -99.0)).T
    ours = ImageField(values, moving_grid)(moved).reshape(fixed_grid.shape).numpy()
    np.testing.assert_allclose(warped, ours, atol=1e-3)


def test_a_field_written_by_itk_is_read_along_ras(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    grid = grid_of(GRIDS["oblique left-handed"])
    image = sitk.GetImageFromArray((on(grid).double().numpy() * LPS).transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((np.diag(LPS) @ grid.directions).ravel().tolist())
    image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(tmp_path / "itk.nii.gz"))
    found, place = read_displacement(tmp_path / "itk.nii.gz")
    assert place.same_as(grid)
    torch.testing.assert_close(found, on(grid))


def test_a_slice_keeps_its_place_for_itk(tmp_path: Path) -> None:
    grid = grid_of(GRIDS["oblique left-handed"], (9, 8, 1))
    write_itk_displacement(tmp_path / "u.nii.gz", on(grid), grid)
    found, place = read_displacement(tmp_path / "u.nii.gz")
    assert place.slice(1).same_as(grid) and place.spacing_mm == pytest.approx(grid.spacing_mm)
    assert torch.equal(found, on(grid).expand(9, 8, 3, 3))


def test_a_sheared_grid_is_kept_in_ras_and_refused_for_itk(tmp_path: Path) -> None:
    grid = grid_of(SHEARED)
    write_displacement(tmp_path / "u.nii.gz", on(grid), grid)
    found, place = read_displacement(tmp_path / "u.nii.gz")
    assert place.same_as(grid) and torch.equal(found, on(grid))
    with pytest.raises(InputError, match="right angles") as error:
        write_itk_displacement(tmp_path / "itk.nii.gz", on(grid), grid)
    assert "itk.nii.gz" in error.value.where and not (tmp_path / "itk.nii.gz").exists()
    scanner = grid_of(GRIDS["oblique"] + 1e-6 * SHEARED)  # rounding in a header is no shear
    write_itk_displacement(tmp_path / "itk.nii.gz", on(scanner), scanner)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    grid = grid_of(GRIDS["plain"])
    broken = on(grid)
    broken[1, 2, 3] = torch.nan
    for write in (write_displacement, write_itk_displacement):
        with pytest.raises(InputError, match="1 of 504 voxels is NaN"):
            write(tmp_path / "u.nii.gz", broken, grid)
        with pytest.raises(InputError, match="does not fit"):
            write(tmp_path / "u.nii.gz", on(grid)[1:], grid)
        with pytest.raises(InputError, match="ends in"):
            write(tmp_path / "u.mha", on(grid), grid)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_displacement(tmp_path: Path) -> None:
    grid = grid_of(GRIDS["plain"])
    path = tmp_path / "a.nii.gz"
    for values in (on(grid)[..., 0], on(grid)):  # an image; three channels without an intent
        write_nifti(path, values, grid)
        with pytest.raises(InputError, match="no displacement field") as error:
            read_displacement(path)
        assert str(path) in error.value.where
    with pytest.raises(InputError, match="no such file"):
        read_displacement(tmp_path / "missing.nii")
