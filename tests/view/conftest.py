"""A finished run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanfield.data.scan import Scan
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.shortcuts import reconstruct
from scanfield.space.grid import Grid


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reconstruction of a slice with its folder complete."""
    grid = Grid.centred((48, 40, 1), (2.0, 2.0, 3.0))
    x = grid.points()
    values = 0.02 * (x[:, :2].norm(dim=-1) < 30).float().reshape(grid.shape)
    scan = simulate_ct(Scan(values, grid, unit="1/mm"), CtScanOptions(views=24, bins=48))
    folder = tmp_path_factory.mktemp("runs") / "first run"
    reconstruct(scan, "scope", preset="tiny", folder=folder, baselines="fast")
    return folder
