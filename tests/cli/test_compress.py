"""`compress`, `decompress` and `inspect` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.space.grid import Grid

GRID = Grid.centred((24, 20, 8), (1.0, 1.0, 2.0))
TINY = ["--method", "sci", "--preset", "tiny", "--steps", "60", "--tuning-steps", "10", "--quiet"]


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    path = tmp_path_factory.mktemp("volume") / "ct.nii.gz"
    x = GRID.points().reshape(*GRID.shape, 3)
    write_nifti(path, (300 * torch.sin(x[..., 0] / 5) + 10 * x[..., 1]).to(torch.int16), GRID, unit="HU")
    return path


@pytest.fixture(scope="module")
def file(volume, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "ct.sfz"
    assert main(["compress", str(volume), "-o", str(path), *TINY, "--ratio", "6", "--no-baselines"]) == 0
    return path


def test_there_and_back(volume, file, tmp_path, capsys):
    assert 0.8 * GRID.size * 2 / 6 < file.stat().st_size <= GRID.size * 2 / 6
    assert main(["decompress", str(file), "-o", str(tmp_path / "back.nii.gz")]) == 0
    back, first = nib.load(tmp_path / "back.nii.gz"), nib.load(volume)
    assert back.get_data_dtype() == first.get_data_dtype() == np.int16
    assert np.allclose(back.affine, first.affine) and back.shape == first.shape
    assert "24 x 20 x 8 voxels, int16, in HU" in capsys.readouterr().out


def test_in_part_and_at_another_spacing(file, tmp_path, capsys):
    out = str(tmp_path / "a.nii.gz")
    assert main(["decompress", str(file), "-o", out, "--box", "2:6,0:20,3:4"]) == 0
    assert nib.load(out).shape == (4, 20, 1)
    assert main(["decompress", str(file), "-o", out, "--spacing-mm", "3", "--json"]) == 0
    assert nib.load(out).shape == (8, 7, 6)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["type"] == "int16"


def test_inspect_adds_up(file, capsys):
    assert main(["inspect", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(facts["parts"].values()) == facts["bytes"] == file.stat().st_size
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert "24 x 20 x 8 voxels, int16" in text and f"{facts['bytes']} bytes" in text and "weights" in text


def test_lossless_and_bits_a_voxel(volume, tmp_path, capsys):
    path = tmp_path / "a.sfz"
    command = ["compress", str(volume), "-o", str(path), *TINY[:-1], "--bpp", "3", "--lossless", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["table"]["rows"][0]["values"]["max_error"] == 0 and facts["type"] == "int16"
    assert facts["bytes"] == path.stat().st_size == sum(facts["parts"].values())
    main(["decompress", str(path), "-o", str(tmp_path / "a.nii.gz")])
    assert np.array_equal(nib.load(tmp_path / "a.nii.gz").dataobj, nib.load(volume).dataobj)


def test_the_table_is_printed(volume, tmp_path, capsys):
    assert (
        main(["compress", str(volume), "-o", str(tmp_path / "a.sfz"), *TINY[:-1], "--ratio", "5", "--no-baselines"])
        == 0
    )
    out = capsys.readouterr().out
    assert "SCI" in out and "peak" in out and "bits a voxel" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "9", "--psnr", "30"], "--ratio or from --psnr"),
        (["--bpp", "2", "--budget-bytes=900"], "--bpp or from --budget-bytes"),
        (["--lossless", "--max-error", "3"], "give one of them"),
        (["--ratio", "0.5"], "at least 1"),
        (["--ratio", "3000"], "too few"),
        (["--max-error", "-1"], "at least 0"),
    ],
)
def test_wrong_requests(volume, tmp_path, capsys, arguments, message):
    assert main(["compress", str(volume), "-o", str(tmp_path / "a.sfz"), *TINY, *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a.sfz").exists()


def test_wrong_files(volume, file, tmp_path, capsys):
    cases = [
        ["compress", str(volume), "-o", str(tmp_path / "a.zip"), *TINY],
        ["decompress", str(volume), "-o", str(tmp_path / "a.nii.gz")],
        ["decompress", str(file), "-o", str(tmp_path / "a.png")],
        ["decompress", str(file), "-o", str(tmp_path / "a.nii.gz"), "--box", "1:2,3"],
        ["decompress", str(file), "-o", str(tmp_path / "a.nii.gz"), "--box", "0:99,0:1,0:1"],
        ["decompress", str(file), "-o", str(tmp_path / "a.nii.gz"), "--box", "0:1,0:1,0:1", "--spacing-mm", "2"],
        ["inspect", str(tmp_path / "missing.sfz")],
    ]
    for command in cases:
        assert main(command) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bricks_there_and_in_part(volume, tmp_path, capsys):
    path, out = tmp_path / "a.sfz", str(tmp_path / "a.nii.gz")
    how = ["--bricks", "16", "--bpp", "8", "--lossless", "--no-baselines"]
    assert main(["compress", str(volume), "-o", str(path), *TINY, *how]) == 0
    assert main(["decompress", str(path), "-o", out]) == 0
    first = np.asarray(nib.load(volume).dataobj)
    assert np.array_equal(nib.load(out).dataobj, first)
    assert main(["decompress", str(path), "-o", out, "--box", "10:20,12:20,2:5"]) == 0
    assert np.array_equal(nib.load(out).dataobj, first[10:20, 12:20, 2:5])
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(facts["parts"].values()) == facts["bytes"] == path.stat().st_size


def test_killed_and_resumed_bricks_are_the_same_file(volume, tmp_path):
    """The process is killed outright after its first brick; the second call fits only the others."""
    how = ["--bricks", "16", "--bpp", "8", "--no-baselines"]
    plain, killed = tmp_path / "plain.sfz", tmp_path / "killed.sfz"
    assert main(["compress", str(volume), "-o", str(plain), *TINY, *how]) == 0
    command = ["compress", str(volume), "-o", str(killed), *TINY, *how]
    process = subprocess.Popen([sys.executable, "-m", "scanfield", *command])
    work = tmp_path / "killed.sfz.work"
    for _ in range(1200):
        if list(work.glob("[0-9]*.json")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert work.is_dir() and not killed.exists()
    kept = {part.name: part.stat().st_mtime_ns for part in work.glob("[0-9]*.brick")}
    assert kept
    assert main(command) == 2, "without --resume nothing is overwritten"
    assert {part.name: part.stat().st_mtime_ns for part in work.glob("[0-9]*.brick")} == kept
    assert main([*command, "--resume"]) == 0
    assert killed.read_bytes() == plain.read_bytes() and not work.exists()
