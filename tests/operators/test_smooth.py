"""Smoothing in millimetres."""

import torch

from scanfield.operators.smooth import smoothed
from scanfield.space.grid import Grid


def test_the_width_is_in_millimetres_along_every_axis():
    grid = Grid.centred((61, 61, 61), (1.0, 0.5, 2.0))
    spike = torch.zeros(grid.shape)
    spike[30, 30, 30] = 1
    weight = smoothed(spike, grid, 3.0).reshape(-1).double()
    x = (grid.points() - grid.points(30 * 61 * 61 + 30 * 61 + 30, 30 * 61 * 61 + 30 * 61 + 31)).double()
    spread = (weight[:, None] * x**2).sum(0) / weight.sum()
    torch.testing.assert_close(spread.sqrt(), torch.full((3,), 3.0, dtype=torch.float64), rtol=0.02, atol=0)


def test_a_slice_is_smoothed_within_itself_and_constants_stay():
    grid = Grid.centred((8, 9, 1), (1.0, 1.0, 0.1))
    assert torch.allclose(smoothed(torch.full(grid.shape, 7), grid, 2.0), torch.full(grid.shape, 7.0))
    values = torch.randn(grid.shape)
    assert torch.equal(smoothed(values, grid, 0.0), values)
    assert smoothed(values, grid, 2.0).std() < values.std()
