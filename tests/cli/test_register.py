"""`scanfield register`, as typed: what it writes, what it refuses, and how it continues."""

import json

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti, write_nifti

TINY = ("--method", "idir", "--preset", "tiny", "--steps", "30", "--device", "cpu")


def register(*arguments):
    return main(["register", *arguments])


def test_a_run_holds_everything(aligned):
    run = aligned / "run"
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "complete" and facts["task"] == "registration" and facts["config"]["steps"] == 30
    assert len(facts["inputs"]) == len(facts["request"]["inputs"]) == 7
    assert facts["request"]["fixed"] == str(aligned / "fixed.nii.gz")
    names = ["field.safetensors", "displacement.nii.gz", "displacement_itk.nii.gz", "inverse_displacement.nii.gz"]
    names += ["warped.nii.gz", "determinant.nii.gz", "landmarks.csv", "dice.csv", "warped_labels.nii.gz", "report.html"]
    assert [name for name in names if not (run / name).is_file()] == []
    before, after = (row["values"] for row in facts["table"]["rows"])
    assert before["tre_mm"] == pytest.approx(4.0, abs=1e-3) and after["tre_mm"] < 4.0


def test_each_image_has_its_own_preprocessing_and_the_run_says_so(pair):
    pytest.importorskip("SimpleITK")
    how = ("--window", "0,80", "--moving-window", "0,60", "--correct-bias", "moving", "--baselines", "none")
    assert register("fixed.nii.gz", "moving.nii.gz", *TINY, "-o", "apart", *how) == 2  # N4 takes no values below zero
    assert not (pair / "apart").exists()
    assert register("fixed.nii.gz", "moving.nii.gz", *TINY, "-o", "apart", *how[:4], *how[6:]) == 0
    facts = json.loads((pair / "apart" / "run.json").read_text())["facts"]
    assert facts["fixed window"].endswith("above 80") and facts["moving window"].endswith("above 60")
    assert read_nifti(pair / "apart" / "warped.nii.gz").values.max() <= 60.001


def test_the_terminal_shows_the_table_and_the_files(pair, capsys):
    window = ("--window=-20,80", "--baselines", "none")
    assert register("fixed.nii.gz", "moving.nii.gz", *TINY, "-o", "other", *window) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "fixed fixed.nii.gz: 20 x 18 x 9 voxels of 3 x 3 x 4 mm",
        "moving moving.nii.gz:",
        "fixed window intensities cut off below -20 and above 80",
        "moving window intensities cut off below -20 and above 80",
        "no registration",
        "IDIR",
        "folding [%]",
        "displacement_itk.nii.gz",
        "`scanfield warp` moves images and points",
    ):
        assert part in out
    assert "moving window" in json.loads((pair / "other" / "run.json").read_text())["facts"]
    assert read_nifti(pair / "other" / "fixed.nii.gz").values.max() <= 80
    assert "intensities cut off below" in (pair / "other" / "report.html").read_text(encoding="utf-8")


def test_json_is_one_object(pair, capsys):
    assert register("fixed.nii.gz", "moving.nii.gz", *TINY, "-o", "other", "--baselines", "none", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["table"]["rows"]] == ["identity", "idir"]


@pytest.fixture
def broken(pair):
    """More files, each wrong in one way."""
    image = read_nifti("fixed.nii.gz")
    far = image.grid.moved(np.array([[1, 0, 0, 900.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    write_nifti("far.nii.gz", image.values, far)
    write_nifti("constant.nii.gz", torch.ones(image.grid.shape), image.grid)
    write_nifti("empty.nii.gz", torch.zeros(image.grid.shape, dtype=torch.uint8), image.grid)
    write_nifti("slice.nii.gz", image.values[:, :, :1], image.grid.slice(0))
    write_nifti("half.nii.gz", image.values / 2, image.grid)
    write_nifti("series.nii.gz", image.values[..., None].repeat(1, 1, 1, 3), image.grid)
    (pair / "voxels.csv").write_text("x,y,z\n3,4,5\n10,11,6\n7,2,3\n1,1,1\n12,8,4\n3,3,3\n")
    (pair / "few.csv").write_text("x,y,z\n11,-5,27\n")
    return pair


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fixed.nii.gz", "far.nii.gz"), "0 % of the fixed image lies in the moving image"),
        (("fixed.nii.gz", "constant.nii.gz"), "the moving image is constant (1)"),
        (("fixed.nii.gz", "slice.nii.gz"), "the fixed image is a volume, the moving image a slice"),
        (("series.nii.gz", "moving.nii.gz"), "series.nii.gz"),
        (("fixed.nii.gz", "moving.nii.gz", "--fixed-mask", "empty.nii.gz"), "the mask is empty"),
        (
            ("fixed.nii.gz", "moving.nii.gz", "--moving-mask", "mask.nii.gz"),
            "moving image and mask are not on the same",
        ),
        (
            ("fixed.nii.gz", "moving.nii.gz", "--fixed-points", "fixed.csv"),
            "points are needed in both images or in none",
        ),
        (("fixed.nii.gz", "moving.nii.gz", "--moving-labels", "fixed.csv"), "labels are needed in both images"),
        (
            ("fixed.nii.gz", "moving.nii.gz", "--fixed-points", "voxels.csv", "--moving-points", "moving.csv"),
            "the points seem to be voxel indices of the fixed image",
        ),
        (
            ("fixed.nii.gz", "moving.nii.gz", "--fixed-points", "few.csv", "--moving-points", "moving.csv"),
            "landmarks come in pairs, the files hold 1 and 6",
        ),
        (
            ("fixed.nii.gz", "moving.nii.gz", "--fixed-labels", "half.nii.gz", "--moving-labels", "half.nii.gz"),
            "labels are whole numbers",
        ),
        (("fixed.nii.gz", "moving.nii.gz", "--window", "5,1"), "a window needs finite LOW < HIGH"),
        (("fixed.nii.gz", "moving.nii.gz", "--window", "soft"), "expected LOW,HIGH"),
        (("fixed.nii.gz",), "required: MOVING"),
        (("fixed.nii.gz", "nowhere.nii.gz"), "there is no such file"),
        (("fixed.nii.gz", "moving.nii.gz", "--wdth", "3"), "did you mean '--width'"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(broken, arguments, message, capsys):
    assert register(*arguments, *TINY, "-o", "new") == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1
    assert not (broken / "new").exists()


def test_a_method_for_scans_is_refused(pair, capsys):
    assert register("fixed.nii.gz", "moving.nii.gz", "--method", "siren", "-o", "new") == 2
    assert "methods for 'image-pair': " in capsys.readouterr().err


def test_a_stopped_run_continues_to_the_same_bits(pair):
    """As a kill leaves it: a checkpoint of the first half, no results."""
    from scanfield.run import Run

    half = []
    event = Run.event

    def stop(run, what):
        event(run, what)
        if what.get("step", 0) >= 15:
            run.stop.set()
            half.append(what)

    command = ("fixed.nii.gz", "moving.nii.gz", *TINY, "--baselines", "none", "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "event", stop)
        assert register(*command, "-o", "cut") == 1
    assert half and json.loads((pair / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert "scanfield register --resume RUN" in (pair / "cut" / "report.html").read_text(encoding="utf-8")
    assert register("--resume", "cut", "--quiet") == 0
    assert register(*command, "-o", "whole") == 0
    a, b = (read_nifti(pair / name / "displacement.nii.gz", channels=True).values for name in ("cut", "whole"))
    assert torch.equal(a, b)


def test_each_command_continues_its_own_runs(pair, capsys):
    record = pair / "run" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "running"}))
    assert main(["reconstruct", "--resume", "run"]) == 2
    assert "started by `scanfield register`" in capsys.readouterr().err
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"inputs": facts["inputs"][:-1]}))
    assert register("--resume", "run") == 2
    assert "has changed since the run was started" in capsys.readouterr().err
    assert register("--resume", "run", "--steps", "5") == 2
    assert "scanfield register --resume RUN takes only" in capsys.readouterr().err
