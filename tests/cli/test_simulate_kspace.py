"""`scanfield simulate kspace`, as typed."""

import json
import shlex

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.data.rawmri import read_kspace, read_truth
from scanfield.space.grid import Grid

pytest.importorskip("finufft")
SIZE = ["--frames", "3", "--spokes-per-frame", "4", "--coils", "2"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    grid = Grid.centred((20, 16, 3), (3.0, 3.0, 5.0))
    values = torch.exp(-(((grid.points()[:, :2] / 16) ** 2).sum(-1) ** 2)).reshape(grid.shape)
    write_nifti(tmp_path / "volume.nii.gz", values, grid)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(*arguments):
    return main(["simulate", "kspace", "volume.nii.gz", *SIZE, *arguments])


@pytest.mark.parametrize("trajectory", ["radial", "spiral", "cartesian"])
def test_the_file_is_a_scan_with_its_truth(work, capsys, trajectory):
    options = ["--trajectory", trajectory, "--motion", "both", "--noise-percent", "2", "--seed", "3"]
    assert simulate("-o", "scan.npz", *options, "--matrix", "10", "8", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    scan = read_kspace("scan.npz")
    assert scan.acquisition.shape == (12, 2, facts["samples"]) and scan.acquisition.frame_count == 3
    assert scan.acquisition.volume.shape == (10, 8, 1) and scan.sensitivities is not None
    assert scan.acquisition.time_s[1] == pytest.approx(0.005) and scan.noise.level == facts["noise_sigma"] > 0
    assert read_truth("scan.npz").shape == (3, 10, 8, 1)
    assert facts["trajectory"] == trajectory and facts["duration_s"] == pytest.approx(0.06)


def test_the_same_command_gives_the_same_file(work):
    assert simulate("-o", "scan.npz", "--noise-percent", "2", "--quiet") == 0
    with np.load("scan.npz") as file:
        facts = json.loads(str(file["provenance"]))
    command = shlex.split(facts["command"])[1:]
    command[command.index("-o") + 1] = "again.npz"
    assert facts["options"]["noise_percent"] == 2 and main(command) == 0
    assert torch.equal(read_kspace("again.npz").values, read_kspace("scan.npz").values)


def test_text_and_left_out_sensitivities(work, capsys):
    assert simulate("-o", "scan.npz", "--without-sensitivities") == 0
    text = capsys.readouterr().out
    assert "12 spokes of 40 samples, 2 coils" in text and "left out" in text and "20 x 16 x 1 voxels" in text
    assert read_kspace("scan.npz").sensitivities is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "scan.h5"], "ends in .npz"),
        (["-o", "scan.npz", "--trajectory", "radal"], "did you mean 'radial'"),
        (["-o", "scan.npz", "--motion", "walk"], "'walk' is not one of none, beating"),
        (["-o", "scan.npz", "--motion", "beating", "--motion-mm", "90"], "fold a region"),
        (["-o", "scan.npz", "--slice-index", "7"], "slice 7 does not exist"),
        (["-o", "scan.npz", "--coils", "0"], "coils"),
        (["-o", "scan.npz", "--spoke-per-frame", "3"], "did you mean '--spokes-per-frame'"),
    ],
)
def test_what_is_refused(work, capsys, arguments, message):
    assert simulate(*arguments) == 2
    assert message in capsys.readouterr().err and not (work / "scan.npz").exists()


def test_simulate_lists_it(capsys):
    assert main(["simulate", "--help"]) == 0
    assert "kspace" in capsys.readouterr().out
