import numpy as np
import pytest
import torch

from scanfield.data.dicomrt import write_rtdose
from scanfield.data.dose_files import read_dose, read_structures
from scanfield.data.nifti import write_nifti
from scanfield.data.structures import write_rtstruct
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid((7, 6, 5), np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]))
VALUES = 60 * torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0))


def test_one_dose_in_every_format(tmp_path):
    write_nifti(tmp_path / "gy.nii.gz", VALUES, GRID, unit="Gy")
    write_nifti(tmp_path / "plain.nii", 100 * VALUES, GRID)
    write_rtdose(tmp_path / "d.dcm", VALUES, GRID)
    np.savez(tmp_path / "d.npz", dose_cGy=(100 * VALUES).numpy(), affine=GRID.affine)
    found = {name: read_dose(tmp_path / name) for name in ("gy.nii.gz", "d.dcm", "d.npz")}
    found["plain.nii"] = read_dose(tmp_path / "plain.nii", unit="cGy")
    x = GRID.points()[::7].double()
    for name, dose in found.items():
        i, j, k = dose.grid.to_voxel(x).round().long().unbind(1)
        assert torch.allclose(dose.values[i, j, k], VALUES.flatten()[::7], atol=1e-4), name
        assert dose.source.endswith(name)


def test_a_dose_in_cgy_is_not_taken_for_gy(tmp_path):
    write_nifti(tmp_path / "d.nii", 100 * VALUES, GRID)
    with pytest.raises(InputError, match="no treatment gives") as caught:
        read_dose(tmp_path / "d.nii")
    assert "--unit cGy" in caught.value.fix


def test_units_are_only_for_files_that_do_not_say(tmp_path):
    write_nifti(tmp_path / "hu.nii", VALUES, GRID, unit="HU")
    with pytest.raises(InputError, match="in 'HU'"):
        read_dose(tmp_path / "hu.nii")
    write_nifti(tmp_path / "gy.nii", VALUES, GRID, unit="Gy")
    assert torch.allclose(read_dose(tmp_path / "gy.nii", unit="cGy").values, VALUES), "the file knows better"
    np.savez(tmp_path / "d.npz", dose_gy=VALUES.numpy(), voxel_mm=[2.0, 3.0, 2.5])
    with pytest.raises(InputError, match="only a NIfTI dose needs a unit"):
        read_dose(tmp_path / "d.npz", unit="cGy")
    with pytest.raises(InputError, match="relative"):
        read_dose(tmp_path / "d.npz", relative_to_gy=2.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": VALUES.numpy()}, "no dose"),
        ({"dose_gy": np.ones(4)}, "no dose"),
        ({"dose_gy": VALUES.numpy()}, "where its voxels are"),
        ({"dose_gy": VALUES.numpy(), "affine": np.eye(3)}, "4x4"),
        ({"dose_gy": np.array([None] * 3)}, "damaged or no .npz"),
    ],
)
def test_npz_files_that_hold_no_dose(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_dose(tmp_path / "d.npz")


def test_a_broken_npz_is_refused(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match="truncated, damaged"):
        read_dose(tmp_path / "d.npz")


def test_structures_in_every_format(tmp_path):
    a, b = VALUES > 40, (VALUES > 20) & (VALUES <= 40)
    write_rtstruct(tmp_path / "s.dcm", {"a": a, "b": b}, GRID)
    write_nifti(tmp_path / "s.nii.gz", a.to(torch.uint8) + 3 * b.to(torch.uint8), GRID)
    bits = (a.int() + 2 * b.int()).numpy().astype(np.uint16)
    np.savez(tmp_path / "s.npz", roi_bits=bits, roi_names=["a", "b", "none"], affine=GRID.affine)
    for name, names in (("s.dcm", ["a", "b"]), ("s.nii.gz", ["label 1", "label 3"]), ("s.npz", ["a", "b"])):
        found = read_structures(tmp_path / name)
        assert [s.name for s in found.structures] == names
        assert torch.equal(found.structures[0].on(GRID), a) and torch.equal(found.structures[1].on(GRID), b)
    assert read_structures(tmp_path / "s.npz").skipped == ("none",)


def test_images_and_arrays_that_hold_no_structures(tmp_path):
    write_nifti(tmp_path / "s.nii", VALUES, GRID)
    with pytest.raises(InputError, match="whole numbers"):
        read_structures(tmp_path / "s.nii")
    np.savez(tmp_path / "s.npz", dose_gy=VALUES.numpy())
    with pytest.raises(InputError, match="no structures"):
        read_structures(tmp_path / "s.npz")
    np.savez(tmp_path / "t.npz", roi_bits=np.zeros(GRID.shape, int), roi_names=["a"], affine=GRID.affine)
    with pytest.raises(InputError, match="no structure with a voxel"):
        read_structures(tmp_path / "t.npz")
