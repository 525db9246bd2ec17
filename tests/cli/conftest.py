"""A small CT volume, its scan, and a finished run, made by the commands themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.space.grid import Grid

TINY = ("--method", "scope", "--preset", "tiny", "--steps", "20", "--device", "cpu")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """ct.nii.gz (HU, off centre, flipped), truth.nii.gz (its middle slice), scan.npz and run/."""
    folder = tmp_path_factory.mktemp("made")
    values = torch.full((24, 20, 3), -1000.0)
    values[5:19, 4:16] = 40.0
    values[9:13, 8:12] = 300.0
    affine = np.diag([-4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = [100.0, -50.0, 7.0]
    grid = Grid((24, 20, 3), affine)
    write_nifti(folder / "ct.nii.gz", values, grid, unit="HU")
    write_nifti(folder / "truth.nii.gz", values[:, :, 1:2], grid.slice(1), unit="HU")
    scan = str(folder / "scan.npz")
    simulate = ["simulate", "ct", str(folder / "ct.nii.gz"), "-o", scan, "--slice-index", "1", "--views", "16"]
    assert main([*simulate, "--photons", "1e6", "--quiet"]) == 0
    reference = ["--reference", str(folder / "truth.nii.gz")]
    assert main(["reconstruct", scan, *TINY, "-o", str(folder / "run"), *reference, "--quiet"]) == 0
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    """A copy of the files of `made` as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


REGISTER = ("--method", "idir", "--preset", "tiny", "--steps", "30", "--device", "cpu")


@pytest.fixture(scope="session")
def aligned(tmp_path_factory) -> Path:
    """fixed.nii.gz and moving.nii.gz (the same body 4 mm further along y, on another grid), mask.nii.gz, the points
    fixed.csv and moving.csv, the labels fixed_labels.nii.gz and moving_labels.nii.gz, and run/."""
    folder = tmp_path_factory.mktemp("aligned")
    affine = np.diag([-3.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [40.5, -30.5, 11.0]
    fixed = Grid((20, 18, 9), affine)
    moving = fixed.resampled(3.4)
    shift = torch.tensor([0.0, 4.0, 0.0])

    def body(x):
        d = (x - torch.tensor([11.0, -5.0, 27.0])) / torch.tensor([16.0, 14.0, 10.0])
        return 100 * torch.exp(-(d**2).sum(-1)) + 4 * torch.sin(x / 5).sum(-1)

    for name, grid, offset in (("fixed", fixed, 0 * shift), ("moving", moving, shift)):
        values = body(grid.points() - offset).reshape(grid.shape)
        write_nifti(folder / f"{name}.nii.gz", values, grid)
        write_nifti(folder / f"{name}_labels.nii.gz", (values > 40).to(torch.uint8), grid)
        points = (fixed.points()[fixed.size // 2 :: 191] + offset)[:6]
        rows = [f"{x:.5f},{y:.5f},{z:.5f},p{k}" for k, (x, y, z) in enumerate(points.tolist())]
        (folder / f"{name}.csv").write_text("\n".join(["x,y,z,name", *rows, ""]))
    mask = torch.zeros(fixed.shape, dtype=torch.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    write_nifti(folder / "mask.nii.gz", mask, fixed)
    command = ["register", str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), *REGISTER]
    for side in ("fixed", "moving"):
        command += [f"--{side}-points", str(folder / f"{side}.csv")]
        command += [f"--{side}-labels", str(folder / f"{side}_labels.nii.gz")]
    command += ["--fixed-mask", str(folder / "mask.nii.gz"), "--baselines", "none", "--quiet"]
    assert main([*command, "-o", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def pair(aligned, tmp_path, monkeypatch) -> Path:
    """A copy of the files of `aligned` as the current folder."""
    shutil.copytree(aligned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
