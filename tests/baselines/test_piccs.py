"""PICCS: its minimum, its limits, and what a prior is worth to it."""

from functools import cache

import numpy as np
import pytest
import torch

from scanfield.baselines import piccs, tv
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.operators.siddon import project_voxels
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((20, 18, 1), (3.0, 3.0, 5.0))
GEOMETRY = ProjectionGeometry("parallel", np.arange(8) * 22.5, Detector("flat", (1, 28), (5.0, 3.0)), GRID)


@cache
def scene():
    """The object before and now, and the scan of now."""
    before = torch.zeros(GRID.shape)
    before[3:17, 3:15] = 0.02
    before[6:8, 5:12] = 0.03
    before[10:14, 9:11] = 0.025
    now = before.clone()
    now[12:15, 4:7] += 0.008
    return before, now, Measurement(project_voxels(now, GRID, GEOMETRY), GEOMETRY)


def rms(x, y):
    return float((x - y).square().mean().sqrt())


def test_without_a_share_of_the_prior_it_is_tv():
    before, _, data = scene()
    assert torch.equal(
        piccs.solve(data, GRID, before, 0.3, 0.0, iterations=50).volume, tv.solve(data, GRID, 0.3, iterations=50).volume
    )


def test_a_general_solver_finds_the_same_minimum():
    """L-BFGS-B on the same objective with |d| smoothed to sqrt(d^2 + e^2)."""
    from scipy.optimize import minimize

    before, _, data = scene()
    weight, alpha = 0.2, 0.7
    projector = VoxelProjector(GEOMETRY, GRID)

    def variation(x, smoothing):
        down = torch.cat([x[1:] - x[:-1], torch.zeros_like(x[:1])])
        across = torch.cat([x[:, 1:] - x[:, :-1], torch.zeros_like(x[:, :1])], dim=1)
        return (down**2 + across**2 + smoothing**2).sqrt().sum()

    def objective(x, smoothing):
        fit = ((projector.apply(x) - data.values.double()) ** 2).sum() / 2
        own = weight * (1 - alpha) * variation(x, smoothing)
        return fit + own + weight * alpha * variation(x - before.double(), smoothing)

    def for_scipy(flat):
        x = torch.tensor(flat.reshape(GRID.shape), requires_grad=True)
        value = objective(x, 1e-6)
        value.backward()
        return value.item(), x.grad.numpy().reshape(-1)

    limits = [(0.0, None)] * GRID.size
    best = minimize(
        for_scipy, np.zeros(GRID.size), jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 5000}
    )
    solution = piccs.solve(data, GRID, before, weight, alpha, iterations=2000)
    assert float(objective(solution.volume.double(), 0.0)) == pytest.approx(best.fun, rel=5e-3)
    assert solution.objective[-1] < solution.objective[0] and solution.weight == pytest.approx(weight)


def test_the_prior_helps_and_does_not_hide_what_is_new():
    before, now, data = scene()
    prior = Scan(before, GRID, "1/mm")
    found, plain = piccs.reconstruct(data, GRID, prior), tv.reconstruct(data, GRID)
    assert rms(found, now) < 0.7 * rms(plain, now)
    shown = (found - before)[12:15, 4:7].mean() / (now - before)[12:15, 4:7].mean()
    assert 0.6 < float(shown) < 1.2


def test_a_prior_on_another_grid_is_resampled():
    before, _, data = scene()
    fine = Grid.centred((60, 54, 1), (1.0, 1.0, 5.0))
    prior = Scan(before.repeat_interleave(3, 0).repeat_interleave(3, 1), fine, "1/mm")
    assert rms(piccs.reconstruct(data, GRID, prior), piccs.reconstruct(data, GRID, Scan(before, GRID))) < 1e-5


def test_a_share_of_one_is_refused():
    before, _, data = scene()
    with pytest.raises(ValueError, match="alpha"):
        piccs.solve(data, GRID, before, 0.3, 1.0)
