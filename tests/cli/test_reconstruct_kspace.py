"""`scanfield reconstruct` and `render` with raw MR data: files, phases, BART, and what is refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from scanfield.cli.main import main
from scanfield.data.rawmri import read_kspace

pytest.importorskip("finufft")
QUICK = ["--method", "nik", "--preset", "tiny", "--steps", "30", "--baselines", "fast"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A scan of one beat and a bit, and its truth at six phases."""
    folder = tmp_path_factory.mktemp("scan")
    command = [
        "simulate", "kspace", "sample:mr_head_volume", "-o", str(folder / "scan.npz"), "--matrix", "16", "16",
        "--coils", "2", "--frames", "5", "--spokes-per-frame", "20", "--repetition-ms", "10", "--motion", "beating",
        "--samples", "32", "--truth", str(folder / "cine.nii.gz"), "--phases", "6", "--quiet",
    ]  # fmt: skip
    assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def run_folder(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    command = ["reconstruct", str(files / "scan.npz"), *QUICK, "--phases", "6", "-o", str(folder), "--quiet"]
    assert main([*command, "--reference", str(files / "cine.nii.gz")]) == 0
    return folder


def test_phases_of_the_beat_and_the_true_cine(run_folder, files):
    assert nib.load(files / "cine.nii.gz").header.get_zooms()[3] == pytest.approx(0.8 / 6)
    header = nib.load(run_folder / "nik.nii.gz").header
    assert header.get_data_shape() == (16, 16, 1, 6) and header.get_zooms()[3] == pytest.approx(0.8 / 6)
    facts = json.loads((run_folder / "run.json").read_text())
    assert facts["request"]["options"]["phases"] == 6 and len(facts["inputs"]) == 2
    assert "phases of a cycle of 0.8 s" in facts["facts"]["Series"]
    assert all("psnr_db:reference" in row["values"] for row in facts["table"]["rows"])


def test_rendered_at_other_moments_and_parts(run_folder, tmp_path):
    out = tmp_path / "c.nii.gz"
    command = ["render", str(run_folder), "-o", str(out), "--quiet"]
    assert main([*command, "--frames", "9", "--spacing-mm", "6"]) == 0
    assert nib.load(out).shape[3] == 9 and nib.load(out).header.get_zooms()[0] == pytest.approx(6.0)
    parts = {}
    for part in ("magnitude", "phase", "real", "imaginary"):
        assert main([*command, "--part", part]) == 0
        parts[part] = np.asarray(nib.load(out).dataobj)
    np.testing.assert_allclose(parts["magnitude"] * np.cos(parts["phase"]), parts["real"], atol=1e-3)
    np.testing.assert_allclose(parts["magnitude"] * np.sin(parts["phase"]), parts["imaginary"], atol=1e-3)


def test_frames_in_time_and_the_scan_s_own_truth(files, tmp_path, capsys):
    command = ["reconstruct", str(files / "scan.npz"), *QUICK, "-o", str(tmp_path / "run"), "--json"]
    assert main([*command, "--reference", str(files / "scan.npz")]) == 0
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [row["name"] for row in rows] == ["nik", "gridding", "cg-sense"]
    assert all(row["values"]["psnr_db:reference"] > 5 for row in rows)


def test_a_stopped_run_goes_on(files, tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["reconstruct", str(files / "scan.npz"), *QUICK, "-o", str(folder), "--quiet", "--frames", "2"]
    assert main(command) == 0
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    assert main(["reconstruct", "--resume", str(folder), "--quiet"]) == 0
    again = json.loads((folder / "run.json").read_text())
    assert again["status"] == "complete" and again["request"]["options"]["frames"] == 2
    assert main(["reconstruct", "--resume", str(folder)]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_bart_files_with_sensitivities(files, tmp_path):
    """The same scan as BART has it gives the same images."""
    scan = read_kspace(files / "scan.npz")
    geometry = scan.acquisition
    extent = np.asarray(geometry.volume.shape) * np.asarray(geometry.volume.spacing_mm)

    def write(name, array):
        with (tmp_path / f"{name}.cfl").open("wb") as file:
            file.write(np.asarray(array, dtype=np.complex64).T.tobytes())
        sizes = " ".join(map(str, array.shape + (1,) * (16 - array.ndim)))
        (tmp_path / f"{name}.hdr").write_text(f"# Dimensions\n{sizes}\n")

    write("scan", scan.values.numpy().transpose(2, 0, 1)[None])
    write("traj", np.moveaxis(geometry.trajectory * extent, (2, 1, 0), (0, 1, 2)))
    write("maps", np.moveaxis(scan.sensitivities.numpy(), 0, 3))
    options = ["--trajectory", str(tmp_path / "traj.cfl"), "--sensitivities", str(tmp_path / "maps.cfl")]
    options += ["--matrix", "16", "16", "--field-of-view-mm", *(f"{x:.6f}" for x in extent[:2]), "--quiet"]
    out = tmp_path / "run"
    assert main(["reconstruct", str(tmp_path / "scan.cfl"), *QUICK, "-o", str(out), *options]) == 0
    assert (
        main(["reconstruct", str(files / "scan.npz"), *QUICK, "-o", str(tmp_path / "b"), "--quiet", "--frames", "1"])
        == 0
    )
    a, b = (np.asarray(nib.load(folder / "gridding.nii.gz").dataobj) for folder in (out, tmp_path / "b"))
    np.testing.assert_allclose(a.ravel(), b.ravel(), atol=2e-3 * b.max())


def npz(path, **changes):
    """A tiny scan, with some arrays replaced; None leaves one out."""
    k = np.zeros((6, 8, 2))
    k[..., 0] = (np.arange(8) - 4) / 16
    held = {"kspace": np.ones((6, 2, 8), dtype=np.complex64), "trajectory": k, "matrix": [8, 8]}
    held |= {"field_of_view_mm": [8.0, 8.0], "time_s": 0.1 * np.arange(6)} | changes
    np.savez(path, **{name: value for name, value in held.items() if value is not None})
    return str(path)


BAD = {
    "lengths": (
        dict(trajectory=np.zeros((6, 7, 2))),
        [],
        "the trajectory has 6 views of 7 samples, k-space has 6 of 8",
    ),
    "nyquist": (dict(trajectory=np.full((6, 8, 2), 0.6)), [], "beyond the Nyquist frequency"),
    "coils": (dict(kspace=np.ones((6, 0, 8), dtype=np.complex64)), [], "zero coils"),
    "dimensions": (dict(matrix=None), [], "no dimensions"),
    "zero": (dict(kspace=np.zeros((6, 2, 8), dtype=np.complex64)), [], "zero everywhere"),
    "no ecg": ({}, ["--phases", "3"], "no R-peaks"),
    "unsorted ecg": (
        dict(r_peaks_s=np.array([0.0, 0.5, 0.3])),
        ["--phases", "3"],
        "R-peak 2 at 0.3 s does not come after",
    ),
    "fast ecg": (dict(r_peaks_s=np.array([0.0, 0.1, 0.5])), ["--phases", "3"], "the R-R interval from 0 s is 0.1 s"),
    "both": ({}, ["--phases", "3", "--frames", "2"], "not both"),
    "beats alone": ({}, ["--beats", "2"], "--beats is for phases"),
    "bart option": ({}, ["--matrix", "8", "8"], "--matrix is for BART data"),
    "hdf5 option": ({}, ["--slice-index", "1"], "--slice-index is for HDF5"),
    "no times": (dict(time_s=None), ["--frames", "2"], "does not say when its views were taken"),
    "too many frames": ({}, ["--frames", "3", "--holdout-frames", "2"], "2 frames cannot be held out of 3"),
    "other data": ({}, ["--holdout-slices", "1"], "--holdout-slices is for stacks of slices"),
    "no truth": ({}, ["--reference", "{scan}"], "does not carry a true series"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_clear_message_and_leaves_nothing(name, tmp_path, capsys):
    changes, options, message = BAD[name]
    scan = npz(tmp_path / "scan.npz", **changes)
    options = [scan if option == "{scan}" else option for option in options]
    out = tmp_path / "run"
    assert main(["reconstruct", scan, *QUICK, "-o", str(out), "--quiet", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("scanfield:") == 1
    assert not out.exists()


def test_damaged_bart_files_are_refused(tmp_path, capsys):
    data = np.ones((1, 8, 6, 2), dtype=np.complex64)
    command = ["reconstruct", str(tmp_path / "scan.cfl"), *QUICK, "-o", str(tmp_path / "run"), "--quiet"]
    command += ["--field-of-view-mm", "8", "8"]
    (tmp_path / "scan.hdr").write_text("# Dimensions\n1 8 6 2 1 1 1 1 1 1 1 1 1 1 1 1\n")
    for raw, message in ((data.tobytes()[:-8], "truncated"), (data.byteswap().tobytes(), "order")):
        (tmp_path / "scan.cfl").write_bytes(raw)
        assert main(command) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_other_methods_and_other_files_are_told_apart(files, tmp_path, capsys):
    out = ["-o", str(tmp_path / "run"), "--quiet"]
    assert main(["reconstruct", str(files / "scan.npz"), "--method", "scope", "--frames", "2", *out]) == 2
    assert "--frames is for raw MR data" in capsys.readouterr().err
    assert main(["reconstruct", str(files / "scan.npz"), "--method", "scope", *out]) == 2
    assert "raw MR data, not CT projections" in capsys.readouterr().err
    (tmp_path / "x.dat").write_bytes(b"0")
    assert main(["reconstruct", str(tmp_path / "x.dat"), *QUICK, *out]) == 2
    assert "no raw MR data that can be read" in capsys.readouterr().err
    assert main(["reconstruct", *[str(files / "scan.npz")] * 2, *QUICK, *out]) == 2
    assert "takes one scan, got 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_image_has_no_frames_to_render(tmp_path, capsys):
    command = ["reconstruct", "sample:ct_chest_slice", "--method", "siren", "--preset", "tiny", "--steps", "2"]
    assert main([*command, "--baselines", "none", "--quiet", "-o", str(tmp_path / "run")]) == 0
    assert main(["render", str(tmp_path / "run"), "-o", str(tmp_path / "x.nii.gz"), "--frames", "3"]) == 2
    assert "gives no complex series" in capsys.readouterr().err
