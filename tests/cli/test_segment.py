"""`scanfield segment`, as typed: a folder, numbers, and one clear message for whatever is wrong."""

import json

import numpy as np
import pytest
import torch

import scanfield
from scanfield.cli.main import main
from scanfield.data.files import checksum
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid((22, 20, 12), np.diag([-1.0, 1.2, 2.0, 1.0]))


@pytest.fixture
def work(thresholds, tmp_path, monkeypatch):
    """image.nii.gz, labels.nii.gz (as the model sees it) and model/ in the current folder."""
    monkeypatch.chdir(tmp_path)
    distance = (GRID.points() - torch.tensor(GRID.centre_mm).float()).norm(dim=-1).reshape(GRID.shape)
    values = (90 - 8 * distance).clamp(min=0)
    write_nifti("image.nii.gz", values, GRID)
    write_nifti("labels.nii.gz", (3 * (values > 20) + 4 * (values > 50)).to(torch.uint8), GRID)
    (tmp_path / "model").mkdir()
    thresholds.save(tmp_path / "model" / "model.safetensors")
    return tmp_path


def segment(*arguments):
    return main(["segment", *arguments])


def test_a_run_says_what_it_found_and_can_be_shown_again(work, capsys):
    command = ("image.nii.gz", "--model", "model", "-o", "run", "--reference", "labels.nii.gz", "--device", "cpu")
    assert segment(*command) == 0
    said = capsys.readouterr().out
    assert "surface_core.ply" in said and "HD95 [mm]" in said and "1.0000" in said
    facts = json.loads((work / "run" / "run.json").read_text())
    assert facts["command"] == "scanfield segment " + " ".join(command)
    assert [entry["path"] for entry in facts["inputs"]] == ["image.nii.gz", "model.safetensors", "labels.nii.gz"]
    assert torch.equal(read_nifti("run/segmentation.nii.gz").values, read_nifti("labels.nii.gz").values)
    (work / "run" / "report.html").unlink()
    assert main(["report", "run"]) == 0
    assert (work / "run" / "report.html").is_file()


def test_on_another_grid_as_json(work, capsys):
    options = ("--spacing-mm", "0.9", "--refine", "--largest", "--surfaces", "gii", "--json")
    assert segment("image.nii.gz", "--model", "model/model.safetensors", "-o", "fine", *options) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"surface_rim.surf.gii", "labels.csv", "report.html"} <= set(facts["files"])
    assert facts["volumes_ml"]["core"] == pytest.approx(4 / 3 * np.pi * 5**3 / 1000, rel=0.06)
    assert read_nifti("fine/segmentation.nii.gz").grid.spacing_mm == pytest.approx((0.9,) * 3)
    assert segment("image.nii.gz", "--model", "model", "-o", "same", "--like", "fine/image.nii.gz", "--quiet") == 0
    a, b = (read_nifti(f"{name}/segmentation.nii.gz").values for name in ("fine", "same"))
    assert torch.equal(a, b) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nowhere"), "no model file"),
        (("--model", "model", "--like", "image.nii.gz", "--spacing-mm", "1"), "not from both"),
        (("--model", "model", "--tolerance-mm", "1"), "--reference LABELS"),
        (("--model", "model", "--reference", "image.nii.gz"), "values outside the table"),
        (("--model", "model", "--spacing", "1"), "did you mean '--spacing-mm'"),
        (("--model", "model", "--surfaces", "obj"), "not one of ply, gii, none"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_no_folder(work, capsys, options, said):
    assert segment("image.nii.gz", *options, "-o", "run") == 2
    assert said in capsys.readouterr().err
    assert not (work / "run").exists()


def test_an_image_of_the_training_is_told(work, thresholds, capsys):
    thresholds.cohort = [{"sha256": checksum("image.nii.gz"), "split": "validation"}]
    thresholds.save(work / "model" / "model.safetensors")
    assert segment("image.nii.gz", "--model", "model", "-o", "run", "--json") == 0
    assert any("split 'validation'" in warning for warning in json.loads(capsys.readouterr().out)["warnings"])
    thresholds.cohort[0]["split"] = "test"
    thresholds.save(work / "model" / "model.safetensors")
    assert segment("image.nii.gz", "--model", "model", "-o", "run", "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_nothing_is_left_of_a_run_that_does_not_end(work, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scanfield.tasks.segmentation.write_label_table", stopped)
    assert segment("image.nii.gz", "--model", "model", "-o", "run", "--quiet") == 1
    assert not (work / "run").exists()


def test_an_existing_run_is_kept_unless_it_may_be_replaced(work, capsys):
    command = ("image.nii.gz", "--model", "model", "-o", "run", "--quiet")
    assert segment(*command) == 0
    assert segment(*command) == 2
    assert "already holds a run" in capsys.readouterr().err and (work / "run" / "run.json").is_file()
    assert segment(*command, "--force") == 0


def test_the_same_in_one_call(work, thresholds):
    outcome = scanfield.segment("image.nii.gz", "model", reference="labels.nii.gz", device="cpu")
    assert outcome.table.rows[0].values["dice"] == 1.0 and outcome.folder is None
    fine = scanfield.segment(scanfield.load("image.nii.gz"), thresholds, spacing_mm=0.9, folder="run", device="cpu")
    assert fine.grid.spacing_mm == pytest.approx((0.9,) * 3) and (work / "run" / "report.html").is_file()
    with pytest.raises(InputError, match="not from both"):
        scanfield.segment("image.nii.gz", "model", grid=GRID, spacing_mm=1.0)
