"""Slices find their way back to a volume."""

import numpy as np
import pytest
import torch

from scanfield.baselines.slice_registration import predicted_pixels, register_slices, slice_ncc
from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.data.stacks import Stack
from scanfield.metrics.poses import pose_errors
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.pose import rotation_matrix


def volume():
    grid = Grid.centred((24, 24, 24), 2.0)
    x = grid.points().reshape(*grid.shape, 3)
    inside = ((x / torch.tensor([20.0, 16.0, 14.0])) ** 2).sum(-1) < 1
    return (2 + torch.sin(x[..., 0] / 3) + torch.cos(x[..., 1] / 3 + x[..., 2] / 4)) * inside, grid


def slices_of(values, grid):
    """Axial slices of 4 mm as the volume itself shows them."""
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    affine[:3, 3] = (-20.0, -16.0, -10.0)
    lattice = Grid((21, 17, 6), affine)
    data = slice_set([Stack(Scan(torch.ones(lattice.shape), lattice), 4.0)])
    seen = predicted_pixels(values, grid, data, data.initial[:, :3].float())
    from dataclasses import replace

    return replace(data, pixels=seen)


def test_moved_slices_come_back():
    values, grid = volume()
    data = slices_of(values, grid)
    generator = torch.Generator().manual_seed(0)
    move = torch.eye(4, dtype=torch.float64).repeat(data.count, 1, 1)
    move[:, :3, :3] = rotation_matrix(0.06 * torch.randn(data.count, 3, generator=generator, dtype=torch.float64))
    move[:, :3, 3] = 1.5 * torch.randn(data.count, 3, generator=generator, dtype=torch.float64)
    away = data.with_initial(data.initial @ move)
    found = register_slices(values, grid, away, Run(seed=1), steps=60)
    before, after = (pose_errors(p, data.initial).displacement_mm for p in (away.initial, found.matrices()))
    assert after.median() < 0.3 * before.median()
    again = register_slices(values, grid, away, Run(seed=1), steps=60)
    assert torch.equal(found.matrices(), again.matrices())


def test_a_slice_at_its_place_stays():
    values, grid = volume()
    data = slices_of(values, grid)
    found = register_slices(values, grid, data, Run(), steps=20)
    assert pose_errors(found.matrices(), data.initial).displacement_mm.median() < 0.6


def test_correlation_of_every_slice_for_itself():
    generator = torch.Generator().manual_seed(0)
    of = torch.tensor([0] * 50 + [2] * 40 + [3] * 10)
    y = torch.randn(100, generator=generator)
    p = torch.cat([3 * y[:50] + 1, -y[50:90], torch.ones(10)])
    assert slice_ncc(p, y, of, 4).tolist() == pytest.approx([1.0, 0.0, -1.0, 0.0], abs=1e-4)
    noisy = y + 0.5 * torch.randn(100, generator=generator)
    expected = np.corrcoef(noisy[:50], y[:50])[0, 1]
    assert slice_ncc(noisy, y, of, 4)[0] == pytest.approx(expected, abs=1e-4)


def test_correlation_of_a_constant_slice_has_a_gradient():
    p = torch.ones(10, requires_grad=True)
    slice_ncc(p, torch.randn(10), torch.zeros(10, dtype=torch.long), 1).sum().backward()
    assert torch.isfinite(p.grad).all()


def test_a_constant_volume_predicts_itself():
    grid = Grid.centred((20, 20, 20), 2.0)
    data = slices_of(*volume())
    seen = predicted_pixels(torch.full(grid.shape, 3.0), grid, data, data.initial[:, :3].float())
    assert torch.allclose(seen, torch.full_like(seen, 3.0))
