"""What fits of images have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.fitting.regimes.image import held_out_error
from scanfield.space.grid import Grid


def test_the_error_counts_where_the_mask_is() -> None:
    grid = Grid.centred((4, 3, 2), 1.0)
    values = torch.arange(24.0).reshape(grid.shape)
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[1] = True
    field = lambda x: torch.zeros(len(x), 1)  # noqa: E731
    scan = Scan(values, grid)
    device = torch.device("cpu")
    assert held_out_error(field, scan, device)() == pytest.approx(float(values.square().mean().sqrt()))
    masked = held_out_error(field, replace(scan, mask=mask), device)()
    assert masked == pytest.approx(float(values[1].square().mean().sqrt()))
    exact = held_out_error(lambda x: (x @ torch.tensor([6.0, 2.0, 1.0]))[:, None] + 11.5, scan, device)()
    assert exact == pytest.approx(0.0, abs=1e-4)
