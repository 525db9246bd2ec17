"""`scanfield reconstruct` with stacks of slices, and `scanfield resimulate`."""

import json

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.operators.smooth import smoothed
from scanfield.space.grid import Grid


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three orthogonal stacks and their masks, without motion."""
    folder = tmp_path_factory.mktemp("stacks")
    clouds = smoothed(
        torch.rand((24, 24, 24), generator=torch.Generator().manual_seed(0)), Grid.centred((24,) * 3, 2.0), 4.0
    )
    names, masks = [], []
    for axis in range(3):
        values = clouds.unfold(axis, 2, 2).mean(-1)
        spacing = [2.0, 2.0, 2.0]
        spacing[axis] = 4.0
        grid = Grid.centred(tuple(values.shape), tuple(spacing))
        x = grid.points().reshape(*grid.shape, 3)
        names.append(str(folder / f"stack{axis}.nii.gz"))
        masks.append(str(folder / f"mask{axis}.nii.gz"))
        write_nifti(names[-1], 500 * values, grid)
        write_nifti(masks[-1], ((x / 18) ** 2).sum(-1).lt(1).to(torch.uint8), grid)
    return names, masks


QUICK = ["--method", "nesvor", "--preset", "tiny", "--steps", "20", "--registration", "none", "--baselines", "fast"]


@pytest.fixture(scope="module")
def run_folder(files, tmp_path_factory):
    names, masks = files
    folder = tmp_path_factory.mktemp("run") / "run"
    code = main(
        ["reconstruct", *names, "--stack-masks", *masks, "--thickness-mm", "4", *QUICK, "-o", str(folder), "--quiet"]
    )
    assert code == 0
    return folder


def test_a_run_says_how_it_was_made(run_folder, files):
    facts = json.loads((run_folder / "run.json").read_text())
    assert facts["request"]["stacks"] == files[0] and len(facts["inputs"]) == 6
    assert facts["request"]["options"]["thickness_mm"] == [4.0]
    assert [row["name"] for row in facts["table"]["rows"]] == ["nesvor", "mean"]


def test_the_volume_renders_on_any_grid(run_folder, tmp_path):
    assert main(["render", str(run_folder), "-o", str(tmp_path / "v.nii.gz"), "--spacing-mm", "3", "--quiet"]) == 0
    assert read_nifti(tmp_path / "v.nii.gz").grid.spacing_mm == pytest.approx((3.0, 3.0, 3.0))


def test_resimulate_writes_predictions_on_the_stacks_grids(run_folder, files, capsys):
    assert main(["resimulate", str(run_folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["stack"] for row in facts["stacks"]] == ["stack0.nii.gz", "stack1.nii.gz", "stack2.nii.gz"]
    for k, name in enumerate(files[0]):
        predicted = read_nifti(run_folder / "resimulated" / f"predicted_{k}.nii.gz")
        assert predicted.grid.same_as(read_nifti(name).grid)
        assert np.isfinite(predicted.values.numpy()).all() and predicted.values.max() > 0


def test_a_stopped_run_is_resumed(files, tmp_path, capsys):
    names, masks = files
    folder = tmp_path / "run"
    line = ["reconstruct", *names, "--stack-masks", *masks, *QUICK, "--baselines", "none", "-o", str(folder), "--quiet"]
    assert main(line) == 0
    record = folder / "run.json"
    record.write_text(record.read_text().replace('"status": "complete"', '"status": "interrupted"'))
    before = (folder / "nesvor.nii.gz").read_bytes()
    assert main(["reconstruct", "--resume", str(folder), "--quiet"]) == 0
    assert (folder / "nesvor.nii.gz").read_bytes() == before
    assert main(["reconstruct", "--resume", str(folder)]) == 0
    assert "nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--thickness-mm", "0"], "must be a positive number"),
        (["--thickness-mm", "400"], "thicker than the field of view"),
        (["--thickness-mm", "1", "2"], "give one number for all stacks"),
        (["--holdout-stack", "7"], "stack 7 cannot be held out"),
        (["--holdout-slices", "999"], "cannot be held out"),
        (["--reference", "x.nii.gz"], "--reference is for other data"),
        (["--holdout-views", "3"], "--holdout-views is for other data"),
    ],
)
def test_bad_options_get_one_message_and_leave_nothing(more, message, files, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["reconstruct", *files[0], *QUICK, *more, "-o", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_one_orientation_is_refused_unless_accepted(files, tmp_path, capsys):
    line = ["reconstruct", files[0][0], *QUICK, "-o", str(tmp_path / "run"), "--quiet"]
    assert main(line) == 2 and "there is one stack" in capsys.readouterr().err
    assert main([*line, "--allow-parallel", "--baselines", "none"]) == 0


def test_other_methods_have_no_stack_options(files, tmp_path, capsys):
    line = ["reconstruct", files[0][0], "--method", "siren", "--otsu", "-o", str(tmp_path / "run")]
    assert main(line) == 2
    assert "--otsu is for stacks of slices; siren takes none" in capsys.readouterr().err


def test_resimulate_refuses_other_runs(tmp_path, capsys):
    assert main(["resimulate", str(tmp_path)]) == 2
    assert "not a RUN folder" in capsys.readouterr().err
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "method": "siren", "request": {}}))
    assert main(["resimulate", str(tmp_path)]) == 2
    assert "not made from stacks" in capsys.readouterr().err
