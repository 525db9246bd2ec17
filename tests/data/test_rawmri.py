from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Noise
from scanfield.data.rawmri import KSpace, centred_volume, read_array, read_kspace, read_truth, write_kspace
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

TURN = np.array([[0.0, -2, 0, 30], [2, 0, 0, -7], [0, 0, 5, 2], [0, 0, 0, 1]])


def arrays(views=4, coils=3, samples=5):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(views, coils, samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = generator.uniform(-0.2, 0.2, (views, samples, 2))
    return {"kspace": values, "trajectory": trajectory, "matrix": [8, 6], "field_of_view_mm": [16.0, 12.0]}


def measured():
    held = arrays()
    k = np.concatenate([held["trajectory"], np.zeros((4, 5, 1))], axis=-1)
    geometry = KSpaceGeometry(
        k, 3, Grid((8, 6, 1), TURN), time_s=np.arange(4) * 0.1, dwell_s=1e-5, frame=np.array([0, 0, 1, 1]), frames=3
    )
    maps = torch.randn(3, 8, 6, 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    values = torch.from_numpy(held["kspace"])
    return KSpace(values, geometry, Noise("gaussian", 0.3), "arbitrary", "x", sensitivities=maps)


def test_round_trip_keeps_everything(tmp_path):
    before = measured()
    truth = torch.randn(3, 8, 6, 1, dtype=torch.complex64)
    write_kspace(tmp_path / "scan.npz", before, truth=truth)
    after = read_kspace(tmp_path / "scan.npz")
    assert torch.equal(after.values, before.values) and torch.equal(after.sensitivities, before.sensitivities)
    assert after.acquisition.to_json() == before.acquisition.to_json()
    assert np.array_equal(after.acquisition.volume.affine, TURN)
    assert after.noise == before.noise and after.kind == "kspace"
    assert torch.equal(read_truth(tmp_path / "scan.npz"), truth)


def test_r_peaks_travel_and_single_arrays_are_read(tmp_path):
    peaks = np.array([0.0, 0.8, 1.7])
    write_kspace(tmp_path / "scan.npz", replace(measured(), r_peaks_s=peaks))
    assert np.array_equal(read_kspace(tmp_path / "scan.npz").r_peaks_s, peaks)
    assert read_array(tmp_path / "scan.npz", "sensitivities").shape == (3, 8, 6, 1)
    with pytest.raises(InputError, match="lacks 'truth'"):
        read_array(tmp_path / "scan.npz", "truth")


def test_a_plain_file_of_others(tmp_path):
    """matrix and field of view in place of a grid; two columns of a trajectory; what is optional is absent."""
    np.savez(tmp_path / "scan.npz", **arrays())
    scan = read_kspace(tmp_path / "scan.npz")
    assert scan.acquisition.volume.shape == (8, 6, 1) and scan.acquisition.volume.spacing_mm == (2, 2, 1)
    assert scan.acquisition.trajectory.shape == (4, 5, 3) and not scan.acquisition.trajectory[..., 2].any()
    assert scan.sensitivities is None and scan.acquisition.time_s is None and scan.noise == Noise()
    assert read_truth(tmp_path / "scan.npz") is None


def test_subset_and_hold_out_keep_sensitivities():
    scan = measured()
    part = scan.subset(np.array([3, 1]))
    assert isinstance(part, KSpace) and torch.equal(part.values, scan.values[[3, 1]])
    assert part.sensitivities is scan.sensitivities and part.acquisition.frame_count == 3
    fitted, held = scan.hold_out(1)
    assert (fitted.acquisition.views, held.acquisition.views) == (3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajectory": arrays(samples=6)["trajectory"]}, "4 views of 6 samples, k-space has 4 of 5"),
        ({"trajectory": arrays(views=3)["trajectory"]}, "3 views of 5 samples"),
        ({"trajectory": arrays()["trajectory"] * 8}, "beyond the Nyquist frequency"),
        ({"trajectory": arrays()["kspace"]}, "a trajectory is real"),
        ({"kspace": arrays()["kspace"][:, :0]}, "zero coils"),
        ({"kspace": arrays()["kspace"].real}, "complex values"),
        ({"kspace": arrays()["kspace"][0]}, "views, coils, samples"),
        ({"kspace": arrays()["kspace"] * np.nan}, "NaN or infinite"),
        ({"matrix": None}, "no dimensions"),
        ({"field_of_view_mm": [16.0]}, "two or three positive numbers"),
        ({"grid": "{"}, "not valid JSON"),
        ({"sensitivities": np.ones((2, 8, 6, 1), np.complex64)}, "sensitivities must be complex with shape"),
        ({"sensitivities": np.ones((3, 8, 6, 1))}, "holds complex numbers"),
        ({"time_s": np.arange(3.0)}, "each of 4 views"),
        ({"time_s": np.array(["a"] * 4)}, "'time_s' holds real numbers"),
        ({"dwell": [1.0, 2.0]}, "one number"),
        ({"frames": 0}, "whole number from 1"),
        ({"frames": 2.5}, "whole number from 1"),
        ({"frames": np.inf}, "whole number from 1"),
        ({"frames": 2, "frame": [0, 1, 2, 0]}, "frames 0..1"),
        ({"noise_sigma": -1.0}, "at least 0"),
        ({"kspace": None}, "lacks 'kspace'"),
    ],
)
def test_bad_files_name_the_file_and_the_fault(tmp_path, change, message):
    held = {k: v for k, v in (arrays() | change).items() if v is not None}
    np.savez(tmp_path / "scan.npz", **held)
    with pytest.raises(InputError, match=message) as caught:
        read_kspace(tmp_path / "scan.npz")
    assert "scan.npz" in caught.value.where


def test_damaged_and_pickled_files(tmp_path):
    write_kspace(tmp_path / "scan.npz", measured())
    whole = (tmp_path / "scan.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "pickled.npz", kspace=np.array([{}], dtype=object), trajectory=arrays()["trajectory"])
    for name in ("cut.npz", "pickled.npz"):
        with pytest.raises(InputError, match="truncated, damaged or no"):
            read_kspace(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_kspace(tmp_path / "none.npz")
    with pytest.raises(InputError, match="name of a k-space file"):
        write_kspace(tmp_path / "scan.h5", measured())


def test_truth_is_a_series(tmp_path):
    np.savez(tmp_path / "scan.npz", **arrays(), truth=np.ones((8, 6, 1), np.complex64))
    with pytest.raises(InputError, match="four axes"):
        read_truth(tmp_path / "scan.npz")


def test_centred_volume():
    volume = centred_volume([8, 4, 2], [16.0, 12.0, 10.0])
    assert volume.spacing_mm == (2, 3, 5) and np.allclose(volume.centre_mm, 0)
    for matrix, extent in [([0, 4], [1, 1]), ([8, 4], [1, np.nan]), ([8], [1]), (["a", 1], [1, 1])]:
        with pytest.raises(InputError):
            centred_volume(matrix, extent)
