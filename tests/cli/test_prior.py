"""`scanfield reconstruct --prior`, as typed: recorded, judged, continued, and refused where it makes no sense."""

import json
import shutil

import numpy as np
import pytest

from scanfield.cli.main import main
from scanfield.data.files import checksum
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.shortcuts import reconstruct as reconstruct_in_one_call

NERP = ("--method", "nerp", "--preset", "tiny", "--steps", "20", "--prior-steps", "20", "--device", "cpu")


@pytest.fixture
def earlier(work):
    """earlier.nii.gz: the body of truth.nii.gz before its bright block was there."""
    truth = read_nifti(work / "truth.nii.gz")
    write_nifti(work / "earlier.nii.gz", truth.values.clamp(max=40.0), truth.grid, unit="HU")
    return work


def test_a_run_with_a_prior_says_so_everywhere(earlier, capsys):
    arguments = ["scan.npz", *NERP, "-o", "new", "--prior", "earlier.nii.gz", "--reference", "truth.nii.gz"]
    assert main(["reconstruct", *arguments, "--baselines", "all"]) == 0
    facts = json.loads((earlier / "new" / "run.json").read_text())
    assert facts["prior"] == "prior" and facts["request"]["prior"] == str(earlier / "earlier.nii.gz")
    assert {"path": "earlier.nii.gz", "sha256": checksum(earlier / "earlier.nii.gz")} in facts["inputs"]
    rows = {row["name"]: row["values"] for row in facts["table"]["rows"]}
    assert {"nerp", "prior", "fbp", "tv", "piccs"} <= set(rows)
    assert rows["prior"]["recovered:reference"] == pytest.approx(0.0, abs=1e-6)
    assert rows["piccs"]["recovered:reference"] > 20 and rows["piccs"]["held_out"] < rows["prior"]["held_out"]
    assert any("The prior alone leaves" in note for note in facts["notes"])
    page = (earlier / "new" / "report.html").read_text()
    assert "Change since the prior" in page and (earlier / "new" / "figures" / "change-axial.png").is_file()
    assert "PICCS" in capsys.readouterr().out
    prior = read_nifti(earlier / "new" / "prior.nii.gz")
    assert prior.unit == "1/mm" and float(prior.values.max()) == pytest.approx(0.01929 * 1.04, rel=1e-3)


def test_an_altered_prior_stops_a_resume(earlier, capsys):
    base = [
        "reconstruct",
        "scan.npz",
        *NERP,
        "-o",
        "new",
        "--prior",
        "earlier.nii.gz",
        "--baselines",
        "none",
        "--quiet",
    ]
    assert main(base) == 0
    facts = json.loads((earlier / "new" / "run.json").read_text())
    (earlier / "new" / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    assert main(["reconstruct", "--resume", "new", "--quiet"]) == 0
    (earlier / "new" / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    shutil.copy(earlier / "ct.nii.gz", earlier / "earlier.nii.gz")
    assert main(["reconstruct", "--resume", "new", "--quiet"]) == 2
    assert "has changed since the run was started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scan.npz --method scope -o new --prior earlier.nii.gz", "method 'scope' takes no prior image"),
        ("truth.nii.gz --method siren -o new --prior earlier.nii.gz", "method 'siren' takes no prior image"),
        ("scan.npz --method nerp -o new --prior-unit HU", "there is none"),
        ("scan.npz --method nerp -o new --prior nowhere.nii.gz", "there is no such file"),
        ("scan.npz --method nerp -o new --prior scan.npz", "takes one scan, got 0"),
        ("scan.npz scan.npz --method nerp -o new --prior earlier.nii.gz", "takes one scan, got 2"),
        ("scan.npz --method nerp -o new --prior elsewhere.nii.gz", "the prior covers only 0 %"),
        ("scan.npz --method nerp -o new --prior cm.nii.gz", "times as much as the scan: it has another unit"),
        ("scan.npz --method nerp -o new --prior mr.nii.gz", "cannot tell the unit of values between 0 and 700"),
        ("scan.npz --method nerp -o new --prior mr.nii.gz --prior-unit 1/mm", "it has another unit"),
    ],
)
def test_bad_priors_are_one_message_and_leave_nothing(earlier, arguments, message, capsys):
    truth = read_nifti(earlier / "truth.nii.gz")
    away = np.eye(4)
    away[0, 3] = 1000.0
    write_nifti(earlier / "elsewhere.nii.gz", truth.values, truth.grid.moved(away), unit="HU")
    write_nifti(earlier / "cm.nii.gz", (truth.values / 1000 + 1) * 0.1929, truth.grid)
    write_nifti(earlier / "mr.nii.gz", (truth.values + 1000).clamp(max=700.0), truth.grid)
    assert main(["reconstruct", *arguments.split(), *(["--preset", "tiny"])]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and "Traceback" not in captured.err
    assert not (earlier / "new").exists()


def test_the_same_in_one_call(earlier):
    settings = {"steps": 5, "prior_steps": 5}
    outcome = reconstruct_in_one_call(
        earlier / "scan.npz",
        "nerp",
        preset="tiny",
        settings=settings,
        device="cpu",
        baselines="none",
        prior=earlier / "earlier.nii.gz",
    )
    assert [row.name for row in outcome.table.rows] == ["nerp", "prior"]
    assert [log.stage for log in outcome.result.logs] == ["prior", "fit"]
    assert len(outcome.result.provenance["inputs"]) == 2
