"""`scanfield render` and `scanfield report`, as typed."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti
from scanfield.fitting.state import save_state


def test_the_scans_own_grid_gives_the_runs_image(work, capsys):
    assert main(["render", "run", "-o", "again.nii.gz"]) == 0
    again, image = read_nifti(work / "again.nii.gz"), read_nifti(work / "run" / "scope.nii.gz")
    assert again.grid.same_as(image.grid) and np.allclose(again.values, image.values, atol=1e-6)
    assert "24 x 20 x 1 voxels of 4 x 4 x 5 mm, in 1/mm" in capsys.readouterr().out


def test_any_spacing_and_any_grid(work, capsys):
    assert main(["render", "run/field.safetensors", "-o", "fine.nii", "--spacing-mm", "2", "--quiet"]) == 0
    assert read_nifti(work / "fine.nii").grid.shape == (48, 40, 1)
    assert main(["render", "run", "-o", "like.nii.gz", "--like", "truth.nii.gz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [24, 20, 1]


def test_the_report_is_written_again(work, capsys):
    (work / "run" / "report.html").unlink()
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.strip() == "run/report.html" and (work / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("render nowhere -o out.nii.gz", "nowhere"),
        ("render run -o out.png", "ends in .nii or .nii.gz"),
        ("render run -o out.nii.gz --spacing-mm -1", "--spacing-mm: must be greater than 0"),
        ("render run -o out.nii.gz --spacing-mm 1 --like truth.nii.gz", "not from both"),
        ("render run -o out.nii.gz --like nowhere.nii", "there is no such file or folder"),
        ("render run -o missing/out.nii.gz", "does not exist"),
        ("render run", "the following arguments are required: -o/--output"),
        ("render scan.npz -o out.nii.gz", "truncated or is not a field"),
        ("report nowhere", "there is no folder 'nowhere'"),
        ("report .", "it has no run.json"),
    ],
)
def test_bad_input_is_one_message_and_no_file(work, argv, message, capsys):
    before = sorted(work.iterdir())
    assert main(argv.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and captured.out == ""
    assert sorted(work.iterdir()) == before


def rewritten(path, change):
    """The file with its facts changed by somebody who also renewed the checksum."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["scanfield"])
    save_state(path, load_file(path), change(facts))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated or altered"),
        (lambda p: p.write_bytes(b""), "truncated"),
        (lambda p: p.write_bytes((2**40).to_bytes(8, "little") + p.read_bytes()[8:]), "its header announces"),
        (lambda p: rewritten(p, lambda f: f | {"schema": 99}), "has schema 99; this version reads up to"),
        (lambda p: rewritten(p, lambda f: f | {"method": "scpe"}), "unknown method 'scpe'"),
        (
            lambda p: rewritten(p, lambda f: f | {"config": f["config"] | {"stepz": 1}}),
            "unknown configuration key 'stepz'",
        ),
        (lambda p: rewritten(p, lambda f: f | {"config": f["config"] | {"width": 8}}), "do not fit"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])), "checksum does not fit"),
        (lambda p: save_file(load_file(p), p), "not written by scanfield"),
    ],
)
def test_a_damaged_result_is_refused(work, damage, message, capsys):
    damage(work / "run" / "field.safetensors")
    assert main(["render", "run", "-o", "out.nii.gz"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and "Traceback" not in captured.err
    assert not (work / "out.nii.gz").exists()


@pytest.fixture(scope="module")
def ensemble(made, tmp_path_factory):
    """A run of two members."""
    folder = tmp_path_factory.mktemp("ensemble")
    tiny = ["--method", "scope", "--preset", "tiny", "--steps", "20", "--device", "cpu", "--baselines", "none"]
    scan = ["reconstruct", str(made / "scan.npz"), *tiny, "--ensemble", "2", "-o", str(folder / "run"), "--quiet"]
    assert main(scan) == 0
    return folder / "run"


def test_what_a_posterior_says_is_rendered_from_its_file(ensemble, work, capsys):
    run = str(ensemble)
    for what, file in (("image", "scope"), ("deviation", "deviation"), ("low", "interval-low"), ("samples", "samples")):
        assert main(["render", run, "-o", "out.nii.gz", "--what", what, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["what"] == what
        rendered, written = (read_nifti(p, channels=True) for p in (work / "out.nii.gz", ensemble / f"{file}.nii.gz"))
        assert np.array_equal(rendered.values, written.values)
    assert read_nifti(work / "out.nii.gz", channels=True).values.shape == (24, 20, 1, 2)
    assert main(["render", run, "-o", "low.nii.gz", "--what", "low", "--level", "0.5", "--quiet"]) == 0
    assert (read_nifti(work / "low.nii.gz").values >= read_nifti(ensemble / "interval-low.nii.gz").values).all()


def test_the_run_says_how_true_its_uncertainty_is(ensemble):
    facts = json.loads((ensemble / "run.json").read_text())
    assert facts["request"]["ensemble"] == 2
    assert any("from 2 samples hold" in note for note in facts["notes"])
    assert "calibration" in facts["posterior"] and (ensemble / "figures" / "calibration.png").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("render run -o out.nii.gz --what deviation", "is one field and has no deviation"),
        ("render run -o out.nii.gz --what sigma", "--what"),
        ("render run -o out.nii.gz --level 0.9", "--level belongs to --what low or --what high"),
        ("reconstruct scan.npz --method scope -o new --ensemble 1", "--ensemble"),
        ("reconstruct scan.npz --method nesvor --thickness-mm 4 -o new --ensemble 2", "--ensemble is for other data"),
    ],
)
def test_what_cannot_be_said_is_refused(work, argv, message, capsys):
    assert main(argv.split()) == 2
    assert message in capsys.readouterr().err
    assert not (work / "out.nii.gz").exists() and not (work / "new").exists()
