"""A polychromatic scan with metal, as typed: simulated, reconstructed, and what wrong input gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.projections import read_projections
from scanfield.space.grid import Grid

pytest.importorskip("xraydb")

GRID = Grid.centred((24, 24, 1), 6.0)
SIMULATE = ["simulate", "ct", "ct.nii.gz", "-o", "scan.npz", "--views", "24", "--quiet"]
METAL = ["--spectrum", "120kVp", "--insert", "titanium,20,12,0,11", "--metal-output", "metal.nii.gz"]
POLYNER = ["reconstruct", "scan.npz", "--method", "polyner", "--preset", "tiny", "--steps", "10", "--baselines", "none"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xrays")
    body = GRID.points().norm(dim=-1).reshape(GRID.shape) < 60
    write_nifti(folder / "ct.nii.gz", torch.where(body, 20.0, -1000.0), GRID, unit="HU")
    write_nifti(folder / "coarse.nii.gz", torch.ones(12, 12, 1), Grid.centred((12, 12, 1), 12.0), unit="1")
    write_nifti(folder / "empty.nii.gz", torch.zeros(GRID.shape), GRID, unit="1")
    (folder / "tube.txt").write_text("40 1\n60 3\n80 2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SIMULATE, *METAL]) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_the_scan_states_its_spectrum_and_the_mask_lies_on_its_grid(here: Path) -> None:
    scan = read_projections("scan.npz")
    assert scan.spectrum is not None
    assert 55 < scan.spectrum.mean_kev < 65
    mask = read_nifti("metal.nii.gz")
    assert mask.grid.same_as(scan.acquisition.volume)
    centre = (mask.values[..., None] * GRID.points().reshape(*GRID.shape, 3)).sum(dim=(0, 1, 2)) / mask.values.sum()
    assert centre.tolist() == pytest.approx([20, 12, 0], abs=1.0)


def test_mask_and_spectrum_reach_the_fit_and_a_resumed_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*POLYNER, "-o", "run", "--metal-mask", "metal.nii.gz", "--spectrum", "tube.txt", "--quiet"]) == 0
    record = (here / "run" / "run.json").read_text()
    assert "metal.nii.gz" in record and "tube.txt" in record
    assert torch.equal(read_nifti("run/metal.nii.gz").values > 0, read_nifti("metal.nii.gz").values > 0)
    assert '"energies_kev": [\n  40.0' in (here / "run" / "energies.json").read_text()
    assert main(["reconstruct", "--resume", "run"]) == 0
    assert "nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*POLYNER, "-o", "bad", "--metal-mask", "coarse.nii.gz"], "another grid"),
        ([*POLYNER, "-o", "bad", "--metal-mask", "empty.nii.gz"], "mask is empty"),
        ([*POLYNER, "-o", "bad", "--metal-mask", "gone.nii.gz"], "gone.nii.gz"),
        ([*POLYNER, "-o", "bad", "--spectrum", "500kVp"], "between 40 and 150"),
        ([*POLYNER, "-o", "bad", "--spectrum", "tube.txt", "--reference-kev", "90"], "covers 40 to 80 keV, not 90"),
        (["reconstruct", "ct.nii.gz", "--method", "siren", "-o", "bad", "--spectrum", "80kVp"], "CT projections"),
        ([*SIMULATE, "--insert", "titanium,0,0,0,9"], "needs the spectrum"),
        ([*SIMULATE, "--spectrum", "120kVp", "--insert", "lead"], "is no insert"),
        ([*SIMULATE, "--spectrum", "120kVp", "--metal-output", "m.nii.gz"], "no metal to write"),
    ],
)
def test_wrong_input_is_one_message(
    here: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert not (here / "bad" / "field.safetensors").exists()


def test_saturated_projections_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("scan.npz", allow_pickle=False) as file:
        content = dict(file)
    values = content["projections"].copy()
    values[values > 3] = np.inf
    np.savez("saturated.npz", **(content | {"projections": values}))
    assert main(["reconstruct", "saturated.npz", *POLYNER[2:], "-o", "bad"]) == 2
    assert "saturated or dead pixels" in capsys.readouterr().err
