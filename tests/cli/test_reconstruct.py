"""`scanfield reconstruct`, as typed: what it writes, what it refuses, and how it continues."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti, write_nifti

TINY = ("--method", "scope", "--preset", "tiny", "--steps", "20", "--device", "cpu")


def reconstruct(*arguments):
    return main(["reconstruct", *arguments])


def tree(folder):
    """Every path below a folder with its size and time of change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_holds_everything(made):
    run = made / "run"
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "complete" and facts["preset"] == "tiny" and facts["config"]["steps"] == 20
    assert facts["request"]["inputs"] == [str(made / "scan.npz")]
    assert [row["name"] for row in facts["table"]["rows"]][:3] == ["scope", "scope-field", "fbp"]
    assert all((run / name).is_file() for name in ("report.html", "field.safetensors", "log.jsonl", "measurements.npz"))
    image = read_nifti(run / "scope.nii.gz")
    truth = read_nifti(made / "truth.nii.gz")
    image.grid.check_same(truth.grid)
    assert image.unit == "1/mm"


def test_fbp_lies_where_the_volume_lies(made):
    """The block of the truth and of the reconstruction have one centre of mass in the world."""
    truth, image = read_nifti(made / "truth.nii.gz"), read_nifti(made / "run" / "fbp.nii.gz")
    points = truth.grid.points().numpy()
    centres = []
    for weight in ((truth.values + 1000).numpy(), image.values.numpy().clip(0.01) - 0.01):
        w = weight.reshape(-1)
        centres.append((points * w[:, None]).sum(0) / w.sum())
    assert np.abs(centres[0] - centres[1]).max() < 1.0


def test_the_terminal_shows_table_warnings_and_files(work, capsys):
    assert reconstruct("scan.npz", *TINY, "-o", "other", "--reference", "ct.nii.gz") == 0
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    assert "preset tiny (shows that everything works; no image worth looking at); seed 0; cpu" in out
    assert "parallel beam, 16 views of 1 x" in out
    for part in ("SCOPE", "FBP", "vs reference", "held-out", "report.html", "scope.nii.gz", "was resampled onto"):
        assert part in out
    assert "slice-000: 20/20" in captured.err and "FBP ..." in captured.err


def test_json_is_one_object(work, capsys):
    assert reconstruct("scan.npz", *TINY, "-o", "other", "--baselines", "none", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "complete" and facts["images"]["scope"] == "scope.nii.gz"
    assert [row["name"] for row in facts["table"]["rows"]] == ["scope", "scope-field"]


def test_the_grid_can_be_chosen(work):
    assert reconstruct("scan.npz", *TINY, "-o", "fine", "--baselines", "none", "--spacing-mm", "2", "--quiet") == 0
    assert read_nifti(work / "fine" / "scope.nii.gz").grid.shape == (48, 40, 1)
    assert reconstruct("scan.npz", *TINY, "-o", "like", "--baselines", "none", "--like", "truth.nii.gz", "--quiet") == 0
    assert read_nifti(work / "like" / "scope.nii.gz").grid.shape == (24, 20, 1)


def test_settings_come_from_preset_file_and_flags(work):
    (work / "c.json").write_text('{"steps": 11, "width": 16}')
    arguments = ("--method", "scope", "--preset", "tiny", "--config", "c.json", "--steps", "12")
    assert reconstruct("scan.npz", *arguments, "-o", "set", "--baselines", "none", "--quiet") == 0
    config = json.loads((work / "set" / "run.json").read_text())["config"]
    assert (config["steps"], config["width"], config["levels"]) == (12, 16, 5)


def test_an_image_is_fitted_by_a_method_for_images(work, capsys):
    tiny = ("--method", "siren", "--preset", "tiny", "--steps", "10", "--device", "cpu")
    assert reconstruct("truth.nii.gz", *tiny, "-o", "image", "--holdout-fraction", "0.2") == 0
    text = capsys.readouterr().out
    assert "truth.nii.gz: image of 24 x 20 x 1 voxels of 4 x 4 x 5 mm" in text
    assert read_nifti(work / "image" / "siren.nii.gz").grid.same_as(read_nifti(work / "truth.nii.gz").grid)
    assert main(["render", "image", "-o", "fine.nii.gz", "--spacing-mm", "2", "--quiet"]) == 0
    assert read_nifti(work / "fine.nii.gz").grid.shape == (48, 40, 1)


def test_a_surface_leaves_its_meshes(work, capsys):
    """The mask is the bone of the volume: 4 x 4 x 3 voxels of 4 x 4 x 5 mm, in all three slices."""
    values = (read_nifti(work / "ct.nii.gz").values > 200).float()
    write_nifti(work / "mask.nii.gz", values, read_nifti(work / "ct.nii.gz").grid)
    settings = ("--method", "siren", "--preset", "tiny", "--supervision", "surface", "--steps", "10", "--device", "cpu")
    assert reconstruct("mask.nii.gz", *settings, "-o", "shape") == 0
    assert "surface-mask.ply" in capsys.readouterr().out
    assert (work / "shape" / "surface-mask.surf.gii").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scan.npz --method scpe -o new", "unknown method 'scpe' (did you mean 'scope'?)"),
        ("scan.npz -o new", "the following arguments are required: --method"),
        ("scan.npz --method scope", "the following arguments are required: -o/--output"),
        ("scan.npz --method scope -o new --stps 3", "unknown option '--stps' (did you mean '--steps'?)"),
        ("scan.npz --method scope -o new --preset quick", "--preset: 'quick' is not one of tiny, fast, paper"),
        (
            "scan.npz --method scope -o new --config wrong.json",
            "unknown configuration key 'stepz' (did you mean 'steps'?)",
        ),
        ("scan.npz --method scope -o new --config none.json", "the configuration cannot be read"),
        ("nowhere.npz --method scope -o new", "there is no such file or folder"),
        ("ct.nii.gz --method scope -o new", "does not take data of kind 'image'"),
        ("cut.npz --method scope -o new", "no complete .npz file"),
        ("nan.npz --method scope -o new", "measurements are NaN or infinite"),
        ("shape.npz --method scope -o new", "but their geometry describes"),
        ("pickle.npz --method scope -o new", "pickled Python objects"),
        ("scan.npz scan.npz --method scope -o new", "scope takes one scan, got 2"),
        ("scan.npz --method scope -o new --spacing-mm 0", "--spacing-mm: must be greater than 0"),
        ("scan.npz --method scope -o new --spacing-mm 1 --like truth.nii.gz", "not from both"),
        ("scan.npz --method scope -o new --preset tiny --holdout-views 16", "cannot hold out 16 of 16 views"),
        ("scan.npz --method scope -o new --holdout-fraction 0.1", "held out by views, not by voxels"),
        ("scan.npz --method siren -o new", "does not take data of kind 'projections:parallel'"),
        ("truth.nii.gz --method siren -o new --holdout-views 2", "an image has no views to hold out"),
        ("truth.nii.gz --method siren -o new --reference-unit HU", "--reference-unit is for CT projections"),
        ("scan.npz --method scope -o new --reference elsewhere.nii.gz", "the reference covers only 0 %"),
        ("scan.npz --method scope -o new --reference scan.npz", "an image is needed here"),
        ("scan.npz --method scope -o new --reference cut.nii.gz", "truncated"),
        ("scan.npz --method scope -o run", "the folder already holds a run"),
        ("scan.npz --method scope -o scan.npz", "cannot write to the output folder"),
        ("scan.npz --method scope -o new --device gpu", "--device: 'gpu' is not one of auto, cpu, cuda"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(work, arguments, message, capsys):
    bad_files(work)
    before = tree(work)
    assert reconstruct(*arguments.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and "Traceback" not in captured.err
    assert tree(work).keys() == before.keys()


def bad_files(folder):
    (folder / "wrong.json").write_text('{"stepz": 3}')
    (folder / "cut.npz").write_bytes((folder / "scan.npz").read_bytes()[:-200])
    (folder / "cut.nii.gz").write_bytes((folder / "truth.nii.gz").read_bytes()[:-20])
    with np.load(folder / "scan.npz") as file:
        arrays = dict(file)
    broken = arrays["projections"].copy()
    broken[0, 0, 0] = np.nan
    np.savez(folder / "nan.npz", **(arrays | {"projections": broken}))
    np.savez(folder / "shape.npz", **(arrays | {"projections": arrays["projections"][:-1]}))
    np.savez(folder / "pickle.npz", **(arrays | {"projections": np.array([print], dtype=object)}))
    import nibabel

    image = nibabel.load(folder / "truth.nii.gz")
    moved = image.affine.copy()
    moved[:3, 3] += 1000
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), folder / "elsewhere.nii.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_named(work, capsys):
    (work / "locked").mkdir()
    (work / "locked").chmod(0o500)
    assert reconstruct("scan.npz", *TINY, "-o", "locked/run") == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_full_disk_is_named(work, capsys, monkeypatch):
    import errno

    from scanfield.run import Run

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work / "full" / "log.jsonl"))

    monkeypatch.setattr(Run, "event", full)
    assert reconstruct("scan.npz", *TINY, "-o", "full", "--quiet") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_force_replaces_a_run(work):
    assert reconstruct("scan.npz", *TINY, "-o", "run", "--force", "--baselines", "none", "--seed", "5", "--quiet") == 0
    assert json.loads((work / "run" / "run.json").read_text())["seed"] == 5


def test_a_finished_run_is_not_resumed(work, capsys):
    before = tree(work)
    assert reconstruct("--resume", "run") == 0
    assert "run is complete: nothing to resume" in capsys.readouterr().out
    assert tree(work) == before


def unfinished(work):
    """The run of `work` as a kill would leave it: its record says so, its results are not there."""
    record = work / "run" / "run.json"
    facts = json.loads(record.read_text()) | {"status": "running"}
    record.write_text(json.dumps(facts))
    return record, facts


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f | {"schema": 99}, "written by a newer version (schema 99"),
        (lambda f: {k: v for k, v in f.items() if k != "request"}, "does not say how it was started"),
        (lambda f: f | {"config": f["config"] | {"stepz": 1}}, "unknown configuration key 'stepz'"),
        (lambda f: f | {"inputs": [{"path": "scan.npz", "sha256": "0"}]}, "the scan has changed since"),
        (
            lambda f: f | {"request": f["request"] | {"inputs": ["/nowhere/scan.npz"]}},
            "the scan of this run is no longer there",
        ),
        (lambda f: [f], "does not describe a run"),
    ],
)
def test_a_damaged_record_is_refused(work, damage, message, capsys):
    record, facts = unfinished(work)
    facts["request"]["inputs"] = [str(work / "scan.npz")]
    record.write_text(json.dumps(damage(facts)))
    before = tree(work)
    assert reconstruct("--resume", "run") == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1
    assert tree(work) == before


@pytest.mark.parametrize(("keep", "message"), [(100, "truncated"), (-50, "truncated or altered")])
def test_a_damaged_checkpoint_is_refused(work, keep, message, capsys):
    unfinished(work)
    (checkpoint,) = (work / "run" / "state").glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    assert reconstruct("--resume", "run") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "this is not a RUN folder"),
        (["--resume", "run", "--steps", "5"], "everything else comes from the run"),
        (["--resume"], "expected one argument"),
    ],
)
def test_resume_takes_a_run_and_nothing_else(work, arguments, message, capsys):
    assert reconstruct(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_run_that_is_stopped_and_killed_ends_like_one_that_was_not(work):
    """Ctrl-C after a third, continue, kill -9 after two thirds, continue: bit for bit the uninterrupted result."""
    steps = 240
    command = [sys.executable, "-m", "scanfield", "reconstruct"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    settings = [
        "--method",
        "scope",
        "--preset",
        "tiny",
        "--steps",
        str(steps),
        "--baselines",
        "none",
        "--device",
        "cpu",
    ]
    subprocess.run([*command, "scan.npz", *settings, "-o", "whole", "--quiet"], check=True, env=environment)

    def start_until(arguments, step):
        process = subprocess.Popen(
            [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        log = work / "parts" / "log.jsonl"
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            lines = log.read_text().splitlines() if log.is_file() else []
            if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
                return process
            time.sleep(0.002)
        raise AssertionError(f"step {step} did not come: {process.communicate()}")

    process = start_until(["scan.npz", *settings, "-o", "parts"], steps // 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and b"continue with: scanfield reconstruct --resume parts" in err
    assert json.loads((work / "parts" / "run.json").read_text())["status"] == "interrupted"
    assert (work / "parts" / "scope.nii.gz").is_file()  # what there was

    process = start_until(["--resume", "parts"], 2 * steps // 3)
    process.kill()
    process.communicate(timeout=60)
    subprocess.run([*command, "--resume", "parts", "--quiet"], check=True, env=environment)
    assert json.loads((work / "parts" / "run.json").read_text())["status"] == "complete"
    whole, parts = (load_file(work / name / "field.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    logged = (work / "parts" / "log.jsonl").read_text().splitlines()
    steps_logged = [json.loads(line)["step"] for line in logged if '"step"' in line]
    assert steps_logged == sorted(set(steps_logged)) and steps_logged[-1] == steps
