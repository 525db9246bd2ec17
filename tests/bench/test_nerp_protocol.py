"""The protocol's change, rows and checks, with fits too short to mean anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.bench.protocols import nerp as protocol
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction.nerp import Config
from scanfield.run import Run
from scanfield.space.grid import Grid


def test_the_change_is_a_small_motion_and_a_lesion() -> None:
    grid = Grid.centred((120, 120, 1), (3.0, 3.0, 3.0))
    x = grid.points()
    ramp = Scan((0.0001 * x[:, 0]).reshape(grid.shape), grid, "1/mm")
    lesion = (-30.0, 24.0, 0.0)
    change = protocol.follow_up(ramp, lesion, 12.0).values - ramp.values
    away = protocol.distance_mm(grid, lesion) > 12.0 + 8
    away[:6] = away[-6:] = False  # an image is constant beyond its border
    moved_mm = (change / 0.0001)[away].abs()
    assert 1.0 < float(moved_mm.max()) < protocol.DEFORMATION_MM + 0.1
    flat = protocol.follow_up(Scan(torch.full(grid.shape, 0.02), grid, "1/mm"), lesion, 12.0).values - 0.02
    middle = flat[protocol.distance_mm(grid, lesion) < 0.5 * 12.0]
    assert float(middle.mean()) == pytest.approx(protocol.LESION_HU / 1000 * MU_WATER_PER_MM, rel=0.01)


def test_every_row_and_check_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "ct").mkdir()
    column, row = np.meshgrid(np.arange(512), np.arange(512))
    hu = np.full((8, 512, 512), -1000, dtype=np.int16)
    hu[7][(column - 256) ** 2 + (row - 256) ** 2 < 180**2] = 30
    hu[1][(column - 256) ** 2 + (row - 300) ** 2 < 150**2] = 40
    np.savez(tmp_path / "ct" / "slices_512.npz", hu=hu, pixel_mm=np.full(8, 1.0))
    monkeypatch.setenv("SCANFIELD_DATA", str(tmp_path))
    monkeypatch.setattr(protocol, "CASES", (replace(protocol.CASES[0], spacing_mm=(16.0, 16.0, 3.0), views=10),))
    monkeypatch.setattr(Config, "fast", staticmethod(lambda: replace(Config.tiny(), steps=3, prior_steps=3)))
    result = protocol.run(Run())
    rows = [row["image"] for row in result.table]
    assert {protocol.WITH, protocol.WITHOUT, protocol.WRONG_PRIOR, "FBP", "TV", "PICCS"} <= set(rows)
    assert rows.count("prior image") == 1 and len(set(rows)) == len(rows)
    prior = next(row for row in result.table if row["image"] == "prior image")
    assert prior["change_percent"] == 0 and prior["lesion_percent"] == 0
    assert [check.unit for check in result.checks] == ["dB", "dB", "%", "dB"]
    assert not all(check.passed for check in result.checks)  # three steps fit nothing: the checks can fail
