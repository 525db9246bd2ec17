"""`scanfield dose` from files to a folder, on a small plan written as DICOM."""

import json

import pydicom
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.dicomrt import read_rtdose, write_rtdose
from scanfield.data.dose import PlanFacts
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.structures import write_rtstruct
from scanfield.space.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GRID = Grid.centred((20, 18, 10), (3.0, 3.0, 4.0))
QUICK = ("--method", "dose_inr", "--steps", "60", "--points-per-step", "512", "--device", "cpu", "--quiet")
RATE = ("--bits-per-voxel", "4")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """dose.dcm, boost.dcm, structures.dcm, other_frame.dcm and dose.nii.gz."""
    folder = tmp_path_factory.mktemp("plan")
    x = GRID.points().double()
    inside = (x.norm(dim=1) < 26).reshape(GRID.shape)
    dose = (5 + 60 * torch.sigmoid((12 - x.norm(dim=1)) / 3)).float().reshape(GRID.shape) * inside
    write_rtdose(folder / "dose.dcm", dose, GRID, plan=PlanFacts("1.2.3", ("1.2.4",)))
    write_rtdose(folder / "boost.dcm", 0.2 * dose, GRID, plan=PlanFacts("1.2.3", ("1.2.5",)))
    write_nifti(folder / "dose.nii.gz", dose, GRID, unit="Gy")
    masks = {"PTV": (x.norm(dim=1) < 10).reshape(GRID.shape), "Body": inside}
    write_rtstruct(folder / "structures.dcm", masks, GRID, plan=PlanFacts("1.2.3"))
    write_rtstruct(folder / "other_frame.dcm", masks, GRID, plan=PlanFacts("7.7.7"))
    return folder


@pytest.fixture(scope="module")
def run(files):
    command = ["dose", str(files / "dose.dcm"), *QUICK, *RATE, "--structures", str(files / "structures.dcm")]
    assert main([*command, "--prescribed-gy", "60", "-o", str(files / "run")]) == 0
    return files / "run"


def test_from_dicom_to_a_folder(run):
    facts = json.loads((run / "run.json").read_text())
    rows = {row["name"]: row["values"] for row in facts["table"]["rows"]}
    assert {"dose_inr", "sperr", "sz3-mask", "downsampled"} <= set(rows)
    assert rows["dose_inr"]["bytes"] == (run / "dose.sfz").stat().st_size
    assert facts["request"]["prescribed_gy"] == 60 and len(facts["inputs"]) == 2
    assert pydicom.dcmread(run / "dose.dcm").FrameOfReferenceUID == "1.2.3"
    assert "PTV" in (run / "dvh.csv").read_text()


def test_the_model_alone_gives_the_dose_back(run, tmp_path):
    assert main(["decompress", str(run / "dose.sfz"), "-o", str(tmp_path / "back.nii.gz"), "--quiet"]) == 0
    back, shown = read_nifti(tmp_path / "back.nii.gz"), read_nifti(run / "dose_inr.nii.gz")
    assert back.unit == "Gy" and torch.allclose(back.values, shown.values.clamp(max=float(back.values.max())))
    assert main(["render", str(run), "-o", str(tmp_path / "fine.nii.gz"), "--spacing-mm", "2", "--quiet"]) == 0
    assert read_nifti(tmp_path / "fine.nii.gz").grid.shape[0] == 30
    assert main(["report", str(run), "--quiet"]) == 0


def test_one_structure_two_doses_and_another_grid(files, tmp_path, capsys):
    command = ["dose", str(files / "dose.dcm"), "--add", str(files / "boost.dcm"), *QUICK, *RATE]
    command += ["--structures", str(files / "structures.dcm"), "--structure", "PTV", "--spacing-mm", "4"]
    assert main([*command, "--baselines", "none", "-o", str(tmp_path / "sum"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["table"]["rows"]] == ["dose_inr"]
    assert any("point by point" in note for note in facts["notes"])
    shown = read_nifti(tmp_path / "sum" / "dose_inr.nii.gz")
    assert shown.grid.spacing_mm == pytest.approx((4, 4, 4))
    peak = 1.2 * read_rtdose(files / "dose.dcm").highest_gy
    assert any(f"peak {peak:.4g} Gy" in column["note"] for column in facts["table"]["columns"])
    assert not (tmp_path / "sum" / "dose.dcm").exists(), "a sum belongs to no plan"
    assert "Body" not in (tmp_path / "sum" / "dvh.csv").read_text()


def test_nifti_and_an_architecture_that_is_kept(files, tmp_path):
    site = tmp_path / "site.json"
    command = ["dose", str(files / "dose.nii.gz"), *QUICK, *RATE, "--baselines", "none", "--architecture", str(site)]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    settings = json.loads(site.read_text())["rates"]["4"]["settings"]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["config"]["hidden_layers"] == settings["hidden_layers"]


def test_a_finished_run_has_nothing_to_resume(run, capsys):
    assert main(["dose", "--resume", str(run)]) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dose.dcm", "--structures", "other_frame.dcm"], "different frames of reference"),
        (["dose.dcm", "--structures", "structures.dcm", "--structure", "PTV1"], "did you mean 'PTV'"),
        (["dose.dcm", "--structure", "PTV"], "--structures RTSTRUCT"),
        (["dose.dcm", "--through", "run"], "--add DOSE2"),
        (["structures.dcm"], "no RTDOSE"),
        (["missing.dcm"], "no such file"),
        (["dose.dcm", "--unit", "cGy"], "has its own"),
        (["dose.dcm", "--bits-per-voxel", "0.01"], "too few"),
        (["dose.dcm", "--bits-per-voxel", "-1"], "must be positive"),
        (["dose.dcm", "--like", "dose.nii.gz", "--spacing-mm", "2"], "not from both"),
    ],
)
def test_wrong_inputs_are_one_clear_message(files, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files)
    assert main(["dose", *arguments, *QUICK, "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_what_was_read_is_unchanged(files):
    assert read_rtdose(files / "dose.dcm").plan.frame_of_reference == "1.2.3"


def test_help_lists_the_options_and_the_settings(capsys):
    assert main(["dose", "--method", "dose_inr", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--bits-per-voxel" in text and "--architecture" in text and "--structures" in text
