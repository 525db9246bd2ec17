"""The cone-beam benchmark on tiny data: its scan, its rows and its checks."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.bench.protocols import cone as protocol
from scanfield.data.nifti import write_nifti
from scanfield.data.phantoms import shepp_logan
from scanfield.methods.reconstruction.nerp import Config
from scanfield.run import Run
from scanfield.space.grid import Grid


@pytest.fixture
def trunk(tmp_path, monkeypatch):
    """A head phantom in HU in place of the trunk, and settings of seconds."""
    monkeypatch.setenv("SCANFIELD_DATA", str(tmp_path))
    grid = Grid.centred((40, 40, 30), (5.0, 5.0, 5.0))
    values = shepp_logan(90.0, volume=True).values(grid.points()).reshape(grid.shape)
    (tmp_path / "ct").mkdir()
    write_nifti(tmp_path / "ct/totalseg_example_ct.nii.gz", (values / 0.01929 - 1) * 1000, grid, unit="HU")
    monkeypatch.setattr(protocol, "FIELD", Config.tiny())
    monkeypatch.setattr(protocol, "SPACING_MM", 10.0)
    monkeypatch.setattr(protocol, "VIEWS", 16)
    monkeypatch.setattr(protocol, "BASELINES", "fast")


def test_rows_and_checks(trunk):
    result = protocol.run(Run(seed=0))
    rows = [(row["scan"], row["image"]) for row in result.table]
    assert rows == [
        ("full turn, 1e5 photons", "NeRP"),
        ("full turn, 1e5 photons", "FDK"),
        ("360 degrees, noise-free", "FDK"),
        ("212 degrees, noise-free", "FDK"),
    ]
    assert all(np.isfinite(row["psnr_db"]) and row["seconds"] > 0 for row in result.table)
    names = [check.name for check in result.checks]
    assert len(set(names)) == len(names) == 3
    by_row = {row["image"]: row["psnr_db"] for row in result.table[:2]}
    gain = next(check for check in result.checks if "NeRP without a prior over FDK" in check.name)
    assert gain.value == pytest.approx(by_row["NeRP"] - by_row["FDK"], abs=0.02)
