"""`train`, and the files that its models make, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.methods.compression import coinpp
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model
from scanfield.tasks.training import CHECKS

GRID = Grid.centred((24, 20, 1), (1.0, 1.0, 2.0))
SMALL = ["--preset", "tiny", "--steps", "50", "--latent", "4", "--seed", "2", "--device", "cpu"]


def image(path: Path, a: float, b: float) -> str:
    x = GRID.points().reshape(*GRID.shape, 3)
    values = 100 + 90 * torch.sin(a * x[..., 0] + b * x[..., 1])
    write_nifti(path, values.round().to(torch.int16), GRID, unit="HU")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("train")
    rows = ["path,subject,split"]
    for k, split in enumerate(("train", "train", "validation")):
        image(made / f"{k}.nii.gz", 0.2 + 0.1 * k, 0.3 - 0.1 * k)
        rows.append(f"{k}.nii.gz,p{k},{split}")
    (made / "cohort.csv").write_text("\n".join(rows))
    image(made / "new.nii.gz", 0.25, 0.15)
    code = main(["train", "coinpp", "--cohort", str(made / "cohort.csv"), "-o", str(made / "model"), *SMALL, "--quiet"])
    assert code == 0
    return made


def test_there_and_back_with_a_model(folder, tmp_path, capsys):
    new, file, model = str(folder / "new.nii.gz"), str(tmp_path / "a.sfz"), str(folder / "model")
    how = [
        "compress",
        new,
        "-o",
        file,
        "--method",
        "coinpp",
        "--bpp",
        "8",
        "--no-baselines",
        "--device",
        "cpu",
        "--json",
    ]
    assert main([*how, "--model", model]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] <= GRID.size and facts["model"]
    assert facts["table"]["rows"][0]["values"]["model_bytes"] > 1000
    assert main(["inspect", file]) == 0
    assert f"model       {facts['model']}; decoding needs it" in capsys.readouterr().out
    back = str(tmp_path / "back.nii.gz")
    assert main(["decompress", file, "-o", back, "--model", f"{model}/model.safetensors"]) == 0
    assert nib.load(back).get_data_dtype() == np.int16 and nib.load(back).shape == GRID.shape
    assert main(["decompress", file, "-o", back, "--model", model, "--spacing-mm", "2"]) == 0
    capsys.readouterr()
    assert main(["decompress", file, "-o", back]) == 2
    assert f"needs the model {facts['model']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "needs a trained model"),
        (["--preset", "fast", "--model", "MODEL"], "not from a preset"),
        (["--width", "99", "--model", "MODEL"], "trained with width = 24, not 99"),
        (["--model", "nowhere"], "there is no model file"),
    ],
)
def test_compressing_with_the_wrong_model_is_one_message(folder, tmp_path, capsys, more, said):
    more = [str(folder / "model") if word == "MODEL" else word for word in more]
    how = ["compress", str(folder / "new.nii.gz"), "-o", str(tmp_path / "a.sfz"), "--method", "coinpp"]
    assert main([*how, "--device", "cpu", "--quiet", *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "a.sfz").exists()


def test_methods_without_a_model_take_none(folder, tmp_path, capsys):
    how = ["compress", str(folder / "new.nii.gz"), "-o", str(tmp_path / "a.sfz"), "--method", "sci"]
    assert main([*how, "--model", str(folder / "model")]) == 2
    assert "takes no model" in capsys.readouterr().err


def test_a_finished_training_has_nothing_to_resume(folder, capsys):
    assert main(["train", "--resume", str(folder / "model")]) == 0
    assert "complete: nothing to resume" in capsys.readouterr().out
    assert main(["report", str(folder / "model")]) == 2
    assert "a training has no report" in capsys.readouterr().err


def test_what_a_training_says(folder, tmp_path, capsys, monkeypatch):
    """Also its warnings, and who is in the cohort."""
    trained = coinpp.train

    def warning(config, cohort, run):
        run.warn("The images are small.")
        run.note("One thread.")
        return trained(config, cohort, run)

    monkeypatch.setattr(coinpp, "train", warning)
    out = tmp_path / "model"
    assert main(["train", "coinpp", "--cohort", str(folder / "cohort.csv"), "-o", str(out), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "images    2 train (2 subjects), 1 validation (1 subject)\n" in said
    assert "warning: The images are small.\nnote: One thread.\n" in said
    log = Model.load(out).logs[0]
    assert f"held out {log.best_held_out:.4g} at best, at step {log.best_step}" in said


def test_a_training_that_was_stopped_goes_on(folder, tmp_path, capsys):
    out = tmp_path / "model"
    command = ["train", "coinpp", "--cohort", str(folder / "cohort.csv"), "-o", str(out), *SMALL]
    assert main([*command, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    (out / "model.safetensors").unlink()
    assert main(["train", "--resume", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == first["model"]


@pytest.mark.slow
def test_two_processes_make_the_model_of_one(folder, tmp_path):
    """With a method that does not share its batches, and so learns bit for bit what one process learns."""
    out = tmp_path / "model"
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["train", "coinpp", "--cohort", str(folder / "cohort.csv"), "-o", str(out), *SMALL, "--json"]
    source = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": source}
    done = subprocess.run(
        [*program, "-m", "scanfield", *command], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(said) == 1, "one of them talks"
    assert said[0]["model"] == Model.load(folder / "model").key
    assert "does not share its batches" in said[0]["warnings"][0]
    facts = json.loads((out / "run.json").read_text())
    assert facts["status"] == "complete" and facts["processes"] == 2
    lines = (out / "log.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["step"] for line in lines})


def test_a_table_of_labels_is_read_and_watched_for_changes(folder, tmp_path, capsys, monkeypatch):
    table, out = tmp_path / "labels.csv", tmp_path / "model"
    command = ["train", "coinpp", "--cohort", str(folder / "cohort.csv"), "-o", str(out), *SMALL, "--quiet"]
    assert main([*command, "--labels", str(table)]) == 2
    assert "no such file" in capsys.readouterr().err and not out.exists()
    table.write_text("value,name\n1,hippocampus\n")
    assert main([*command, "--labels", str(table)]) == 2
    assert "takes no table of labels" in capsys.readouterr().err and not out.exists()
    seen = []
    monkeypatch.setitem(CHECKS, "image", lambda cohort: seen.append(cohort.labels))
    monkeypatch.setattr("scanfield.tasks.training.LABELLED", "image")  # as if the method learned from label maps
    assert main([*command, "--labels", str(table)]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["request"]["labels"] == str(table) and facts["inputs"][1]["path"] == "labels.csv"
    assert [labels.names for labels in seen] == [("background", "hippocampus")]
    (out / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    table.write_text("value,name\n1,amygdala\n")
    assert main(["train", "--resume", str(out)]) == 2
    assert "has changed since the run was started" in capsys.readouterr().err


def test_bad_cohorts_leave_nothing_behind(folder, tmp_path, capsys):
    (folder / "bad.csv").write_text("path,subject,split\n0.nii.gz,ann,train\n1.nii.gz,ann,test\n")
    assert main(["train", "coinpp", "--cohort", str(folder / "bad.csv"), "-o", str(tmp_path / "m"), *SMALL]) == 2
    assert "'ann' is in two splits" in capsys.readouterr().err and not (tmp_path / "m").exists()
    assert main(["train", "sci", "--cohort", str(folder / "cohort.csv"), "-o", str(tmp_path / "m")]) == 2
    assert "nothing to train" in capsys.readouterr().err and not (tmp_path / "m").exists()


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Images with label maps, values 0, 2 and 5."""
    rows = ["path,label,subject,split"]
    for k, split in enumerate(("train", "train", "validation")):
        image(tmp_path / f"{k}.nii.gz", 0.2 + 0.1 * k, 0.3 - 0.1 * k)
        values = torch.zeros(GRID.shape, dtype=torch.uint8)
        values[2 + k : 9, 2:9], values[12 + k : 20, 10:18] = 2, 5
        write_nifti(tmp_path / f"{k}_label.nii.gz", values, GRID)
        rows.append(f"{k}.nii.gz,{k}_label.nii.gz,p{k},{split}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    (tmp_path / "labels.csv").write_text("value,name\n2,white\n5,grey\n")
    return tmp_path


def spoil(folder: Path, how: str) -> None:
    """Makes one thing wrong with a labelled cohort."""
    table, labels = folder / "cohort.csv", torch.zeros(GRID.shape, dtype=torch.uint8)
    text = table.read_text()
    match how:
        case "missing image":
            (folder / "1.nii.gz").unlink()
        case "missing label":
            (folder / "1_label.nii.gz").unlink()
        case "no label":
            table.write_text(text.replace("1_label.nii.gz", ""))
        case "value":
            labels[0, 0, 0], labels[5, 5, 0] = 2, 9
            write_nifti(folder / "1_label.nii.gz", labels, GRID)
        case "grid":
            write_nifti(folder / "1_label.nii.gz", labels, Grid.centred(GRID.shape, (1.0, 1.1, 2.0)))
        case "empty class":
            (folder / "labels.csv").write_text("value,name\n2,white\n5,grey\n7,spots\n")
        case "one subject":
            table.write_text(text.replace(",p1,", ",p0,").replace(",p2,validation", ",p0,train"))
        case "two splits":
            table.write_text(text.replace(",p2,", ",p1,"))
        case "same image":
            table.write_text(text.replace("2.nii.gz,", "1.nii.gz,", 1))


@pytest.mark.parametrize(
    ("how", "said", "where"),
    [
        ("missing image", "there is no image '1.nii.gz'", "row 2"),
        ("missing label", "there is no label map '1_label.nii.gz'", "row 2"),
        ("no label", "the image '1.nii.gz' has no label map", "row 2"),
        ("value", "label values outside the table: 9; it has 0, 2, 5", "row 2"),
        ("grid", "are not on the same grid: spacings differ", "row 2"),
        ("empty class", "no image of the split 'train' shows the class 'spots' (value 7)", "cohort.csv"),
        ("one subject", "all images show one subject, 'p0'", "cohort.csv"),
        ("two splits", "subject 'p1' is in two splits", "cohort.csv"),
        ("same image", "the same image is listed twice", "cohort.csv"),
    ],
)
def test_labelled_cohorts_that_are_wrong_are_one_message_before_the_training(labelled, capsys, how, said, where):
    spoil(labelled, how)
    out = labelled / "model"
    cohort, labels = str(labelled / "cohort.csv"), str(labelled / "labels.csv")
    command = ["train", "iosnet", "--cohort", cohort, "--labels", labels, "-o", str(out), "--preset", "tiny"]
    assert main([*command, "--device", "cpu", "--quiet"]) == 2
    message = capsys.readouterr().err
    assert said in message and where in message and "Traceback" not in message and not out.exists()


def test_the_method_comes_first(capsys):
    assert main(["train", "--help"]) == 0
    assert "--cohort" in capsys.readouterr().out
    assert main(["train", "--cohort", "c.csv", "-o", "m"]) == 2
    assert "METHOD" in capsys.readouterr().err
