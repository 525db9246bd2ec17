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
