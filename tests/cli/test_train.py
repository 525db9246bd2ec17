"""`train`, and the files that its models make, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.space.grid import Grid

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


def test_bad_cohorts_leave_nothing_behind(folder, tmp_path, capsys):
    (folder / "bad.csv").write_text("path,subject,split\n0.nii.gz,ann,train\n1.nii.gz,ann,test\n")
    assert main(["train", "coinpp", "--cohort", str(folder / "bad.csv"), "-o", str(tmp_path / "m"), *SMALL]) == 2
    assert "'ann' is in two splits" in capsys.readouterr().err and not (tmp_path / "m").exists()
    assert main(["train", "sci", "--cohort", str(folder / "cohort.csv"), "-o", str(tmp_path / "m")]) == 2
    assert "nothing to train" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_the_method_comes_first(capsys):
    assert main(["train", "--help"]) == 0
    assert "--cohort" in capsys.readouterr().out
    assert main(["train", "--cohort", "c.csv", "-o", "m"]) == 2
    assert "METHOD" in capsys.readouterr().err
