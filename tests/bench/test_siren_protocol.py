"""The protocol's data and rows, with fits too short to mean anything."""

from dataclasses import replace

import pytest
import torch

from scanfield.bench.protocols import siren as protocol
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.run import Run
from scanfield.space.grid import Grid


def test_the_slice_is_the_sample_in_blocks_of_16_pixels() -> None:
    full, small = sample("ct_chest_slice"), protocol.slice_128()
    assert small.grid.shape == (128, 128, 1) and small.unit == "HU"
    assert small.grid.spacing_mm[0] == pytest.approx(4 * full.grid.spacing_mm[0])
    assert small.grid.centre_mm == pytest.approx(full.grid.centre_mm)
    assert float(small.values[10, 20, 0]) == pytest.approx(float(full.values[40:44, 80:84].mean()), abs=1e-3)


def test_every_row_and_check_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.centred((14, 14, 12), 2.0)
    ball = (grid.points().norm(dim=-1) < 9).reshape(grid.shape).to(torch.uint8)
    monkeypatch.setattr(protocol, "organ_mask", lambda label: Scan(ball, grid, "1"))
    monkeypatch.setattr(protocol, "STEPS", 2)
    monkeypatch.setattr(
        protocol, "SURFACE", replace(protocol.SURFACE, steps=40, width=16, points_per_step=200, first_omega=5.0)
    )
    result = protocol.run(Run())
    rows = [(row["fitted"], row["row"]) for row in result.table]
    assert rows.count(("values", "sine")) == 1 and ("values", "cubic interpolation") in rows
    assert ("gradient", "Poisson equation from the gradient") in rows and ("laplacian", "relu") not in rows
    assert len(result.checks) == 7 and {check.unit for check in result.checks} == {"dB", "mm"}
    assert not result.checks[0].passed  # two steps fit nothing: the check can fail
