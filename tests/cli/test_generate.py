"""From a cohort of sequences to new ones, as a user types it."""

from __future__ import annotations

import json

import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.data.sequences import MaskSequence, read_sequence, write_sequence
from scanfield.space.grid import Grid

TINY = ["--preset", "tiny", "--epochs", "60", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder, grid = tmp_path_factory.mktemp("cells"), Grid.centred((14, 14, 14), 1.0)
    lines = ["path,subject,split"]
    for k in range(4):
        length = (grid.points() * torch.tensor([1.0, 1.0, 1.0 - 0.15 * k])).norm(dim=1).reshape(grid.shape)
        frames = torch.stack([length < 2.4 + 0.3 * k + 0.4 * t for t in range(3)])
        write_sequence(folder / f"{k}.nii.gz", MaskSequence(frames, grid, 5.0))
        lines.append(f"{k}.nii.gz,{k},{'validation' if k == 3 else 'train'}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    assert (
        main(["train", "cell_shapes", "--cohort", str(folder / "cohort.csv"), "-o", str(folder / "model"), *TINY]) == 0
    )
    return str(folder / "model")


def test_sequences_come_out_as_files_and_numbers(model, tmp_path, capsys):
    out = tmp_path / "new"
    how = ["--frames", "4", "--seed", "3", "--device", "cpu", "--json"]
    assert main(["generate", model, "-n", "3", "-o", str(out), *how]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sequences"] == 3 and facts["frames"] == 4 and len(facts["nearest_dice"]) == 3
    assert read_sequence(out / "sequence_03.nii.gz").duration_s == pytest.approx(10.0)
    assert len(list((out / "meshes").glob("*.ply"))) == 12
    assert {"descriptors.csv", "contact_sheet.png", "report.html", "run.json"} <= {path.name for path in out.iterdir()}
    record = json.loads((out / "run.json").read_text())
    assert record["command"].startswith("scanfield generate") and len(record["inputs"]) == 1
    assert main(["report", str(out)]) == 0


def test_modes_spacing_and_force(model, tmp_path, capsys):
    out = str(tmp_path / "new")
    how = ["-n", "1", "-o", out, "--no-meshes", "--device", "cpu"]
    assert main(["generate", model, *how, "--mode", "between", "--spacing-mm", "0.8"]) == 0
    assert "voxels of 0.8 mm" in capsys.readouterr().out
    assert not (tmp_path / "new" / "meshes").exists()
    assert main(["generate", f"{model}/model.safetensors", *how]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["generate", model, *how, "--mode", "near", "--spread", "0.2", "--force", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_force_replaces_runs_alone(model, tmp_path, capsys):
    (tmp_path / "notes.nii.gz").write_bytes(b"the only copy")
    assert main(["generate", model, "-n", "1", "-o", str(tmp_path), "--device", "cpu", "--force"]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.nii.gz"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--mode", "new"], "'new' is not one of prior, near, between"),
        (["--frames", "1"], "must be at least 2"),
        (["-n", "0"], "must be at least 1"),
        (["--spread", "-1"], "must be at least 0"),
    ],
)
def test_what_cannot_be_is_said(more, said, model, tmp_path, capsys):
    assert main(["generate", model, "-o", str(tmp_path / "x"), "--device", "cpu", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_of_a_run_that_does_not_end(model, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scanfield.tasks.synthesis.write_canvas", stopped)
    assert main(["generate", model, "-n", "1", "-o", str(tmp_path / "x"), "--device", "cpu", "--quiet"]) == 1
    assert not (tmp_path / "x").exists()


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert main(["generate", str(tmp_path), "-o", str(tmp_path / "x"), "--device", "cpu"]) == 2
    assert "there is no model file" in capsys.readouterr().err


def test_a_table_of_images_is_refused_before_anything_is_made(tmp_path, capsys):
    grid = Grid.centred((8, 8, 8), 1.0)
    length = grid.points().norm(dim=1).reshape(grid.shape)
    for k in range(2):
        write_nifti(tmp_path / f"{k}.nii.gz", (length < 2.0 + k).byte(), grid)
    (tmp_path / "cohort.csv").write_text("path,subject,split\n0.nii.gz,a,train\n1.nii.gz,b,train")
    out = tmp_path / "model"
    assert main(["train", "cell_shapes", "--cohort", str(tmp_path / "cohort.csv"), "-o", str(out), *TINY]) == 2
    said = capsys.readouterr().err
    assert "this image shows one moment" in said and "0.nii.gz" in said and "fix:" in said
    assert not out.exists()
