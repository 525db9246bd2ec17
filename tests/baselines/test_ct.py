"""The rivals on one noisy scan of few views: each must run, decrease its own measure, and earn its place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.baselines import iterative, tv
from scanfield.baselines.ct import BASELINES
from scanfield.data.measurement import Measurement, Noise
from scanfield.operators.noise import gaussian_noise, poisson_noise
from scanfield.operators.siddon import project_voxels
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((64, 64, 1), (3.0, 3.0, 4.0))


def discs(grid: Grid) -> torch.Tensor:
    x = grid.points()
    total = torch.zeros(grid.size)
    for cx, cy, radius, mu in ((0, 0, 85, 0.02), (35, 10, 20, 0.006), (-40, 25, 16, -0.015), (8, -45, 12, 0.02)):
        total += mu * ((radius - torch.hypot(x[:, 0] - cx, x[:, 1] - cy)) / 3 + 0.5).clamp(0, 1)
    return total.reshape(grid.shape)


TRUTH = discs(GRID)


def scan(beam: str, views: int, grid: Grid = GRID, rows: int = 1) -> ProjectionGeometry:
    turn = 180 if beam == "parallel" else 360
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        np.arange(views) * turn / views,
        Detector("flat", (rows, 95), (4.0, 3.0 if beam == "parallel" else 4.5)),
        grid,
        source_to_axis_mm=400.0,
        source_to_detector_mm=600.0,
    )


def noisy(beam: str, views: int = 30, photons: float = 3e4) -> Measurement[ProjectionGeometry]:
    geometry = scan(beam, views)
    exact = project_voxels(TRUTH, GRID, geometry, subsamples=(1, 3))
    values, _ = poisson_noise(exact, photons, torch.Generator().manual_seed(7))
    return Measurement(values, geometry, Noise("poisson", photons))


def psnr(image: torch.Tensor) -> float:
    return 10 * math.log10(float(TRUTH.max()) ** 2 / float(((image - TRUTH) ** 2).mean()))


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_iterative_rivals_beat_fbp_on_thirty_noisy_views(beam):
    measurement = noisy(beam)
    score = {n: psnr(b.reconstruct(measurement, GRID)) for n, b in BASELINES.items() if beam in b.beams}
    assert min(score[name] for name in ("sirt", "sart", "cgls")) > score["fbp"] + 0.5, score
    assert score["tv"] > max(score[name] for name in ("sirt", "sart", "cgls")) + 2.0, score


@pytest.mark.parametrize("name", BASELINES)
def test_every_rival_takes_the_beams_it_names_and_returns_a_finite_volume(name):
    """Three slices of an anisotropic, left-handed, shifted grid; two-dimensional scans are one row of it."""
    grid = Grid((20, 18, 3), np.array([[-6.0, 0, 0, 55], [0, 6.5, 0, -60], [0, 0, 4.0, -4], [0, 0, 0, 1]]))
    volume = discs(grid)
    for beam in BASELINES[name].beams:
        geometry = scan(beam, 12, grid, rows=9 if beam == "cone" else 3)  # a cone has to cover the outer slices
        measurement = Measurement(project_voxels(volume, grid, geometry), geometry)
        image = BASELINES[name].reconstruct(measurement, grid)
        assert image.shape == grid.shape and image.dtype == torch.float32
        assert bool(torch.isfinite(image).all())
        inside = volume > 0.019
        assert float(image[inside].mean()) == pytest.approx(float(volume[inside].mean()), rel=0.15)


def test_labels_and_notes_are_for_people():
    assert len({baseline.label for baseline in BASELINES.values()}) == len(BASELINES)
    assert all(baseline.note.endswith(".") and baseline.note.count(".") < 3 for baseline in BASELINES.values())
    assert {"fbp", "fdk", "linear-fbp", "cubic-fbp"} == {name for name, baseline in BASELINES.items() if baseline.fast}


def test_sirt_and_cgls_decrease_their_residual_at_every_iteration():
    measurement = replace(noisy("fan"), noise=Noise())
    for run in (iterative.sirt(measurement, GRID, iterations=30), iterative.cgls(measurement, GRID, iterations=30)):
        assert all(after < before for before, after in zip(run.residuals, run.residuals[1:], strict=False))
        assert run.residuals[-1] < 0.05 * run.residuals[0]
    assert float(iterative.sirt(measurement, GRID, iterations=3).volume.min()) >= 0


def test_sart_is_quicker_than_sirt_per_pass_over_the_data():
    measurement = replace(noisy("parallel"), noise=Noise())
    sart = iterative.sart(measurement, GRID, sweeps=3, relaxation=0.5)
    projector = VoxelProjector(measurement.acquisition, GRID)
    sirt = iterative.sirt(measurement, GRID, iterations=3).volume
    assert sart.residuals[-1] == pytest.approx(
        float((projector.apply(sart.volume) - measurement.values).norm()), rel=1e-3
    )
    assert sart.residuals[-1] < 0.5 * float((projector.apply(sirt) - measurement.values).norm())


def test_cgls_is_least_squares_and_all_stop_at_the_noise():
    """Run to the end it solves the normal equations; with the noise known all stop where the residual reaches it."""
    grid = Grid.centred((8, 8, 1), 3.0)
    geometry = ProjectionGeometry("parallel", np.arange(16) * 11.25, Detector("flat", (1, 15), (3.0, 2.0)), grid)
    truth = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    projector = VoxelProjector(geometry, grid)
    exact = projector.apply(truth)
    found = iterative.cgls(Measurement(exact, geometry), grid, iterations=100).volume
    assert torch.allclose(found, truth, atol=2e-5)

    sigma = 0.02
    values = gaussian_noise(exact, sigma, torch.Generator().manual_seed(1))
    measurement = Measurement(values, geometry, Noise("gaussian", sigma))
    level = sigma * math.sqrt(values.numel())
    for stopped in (
        iterative.cgls(measurement, grid, iterations=100),
        iterative.sirt(measurement, grid, iterations=500),
        iterative.sart(measurement, grid, sweeps=300, relaxation=0.1),
    ):
        assert stopped.residuals[-1] <= level < stopped.residuals[-2]


def test_noise_norm_is_that_of_the_simulated_noise():
    geometry = scan("parallel", 30)
    exact = project_voxels(TRUTH, GRID, geometry)
    values, _ = poisson_noise(exact, 1e5, torch.Generator().manual_seed(0))
    expected = float((values - exact).norm())
    assert iterative.noise_norm(Measurement(values, geometry, Noise("poisson", 1e5))) == pytest.approx(
        expected, rel=0.05
    )
    assert iterative.noise_norm(Measurement(values, geometry)) == 0.0


def test_tv_objective_falls_to_the_minimum_a_general_solver_finds():
    """The general solver (L-BFGS-B) minimises the same objective with |d| smoothed to sqrt(d^2 + e^2)."""
    from scipy.optimize import minimize

    grid = Grid.centred((10, 9, 2), (3.0, 3.0, 6.0))
    geometry = ProjectionGeometry("parallel", np.arange(9) * 20.0, Detector("flat", (2, 15), (6.0, 3.0)), grid)
    truth = torch.zeros(grid.shape)
    truth[3:7, 2:6] = 0.02
    truth[5:9, 4:8, 1] += 0.01
    projector = VoxelProjector(geometry, grid)
    y = gaussian_noise(projector.apply(truth), 0.02, torch.Generator().manual_seed(0))
    weight = 0.3

    def objective(x: torch.Tensor, smoothing: float) -> torch.Tensor:
        square = torch.zeros_like(x)
        for axis, scale in ((0, 1.0), (1, 1.0), (2, 0.5)):  # slices are twice as far apart as pixels
            n = x.shape[axis] - 1
            difference = (x.narrow(axis, 1, n) - x.narrow(axis, 0, n)) * scale
            square = square + torch.cat([difference, torch.zeros_like(x.narrow(axis, 0, 1))], dim=axis) ** 2
        return ((projector.apply(x) - y.double()) ** 2).sum() / 2 + weight * (square + smoothing**2).sqrt().sum()

    def for_scipy(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(flat.reshape(grid.shape), requires_grad=True)
        value = objective(x, 1e-6)
        value.backward()
        assert x.grad is not None
        return value.item(), x.grad.numpy().reshape(-1)

    limits = [(0.0, None)] * grid.size
    best = minimize(
        for_scipy, np.zeros(grid.size), jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 5000}
    )
    solution = tv.solve(Measurement(y, geometry), grid, weight, iterations=2000)
    reached = float(objective(solution.volume.double(), 0.0))
    assert reached == pytest.approx(best.fun, rel=2e-3)
    assert solution.objective[-1] == pytest.approx(reached, rel=1e-4)
    assert solution.objective[-1] < solution.objective[3] < solution.objective[0]


def test_the_tv_weight_is_chosen_without_the_truth_and_near_the_best_one():
    measurement = noisy("parallel")
    scale = float(VoxelProjector(measurement.acquisition, GRID).adjoint(measurement.values).max())
    weights = tuple(r * scale for r in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    chosen = tv.choose_weight(measurement, GRID, weights)
    score = {weight: psnr(tv.solve(measurement, GRID, weight).volume) for weight in weights}
    assert chosen in weights
    assert score[chosen] > max(score.values()) - 1.0
    two = measurement.subset(np.array([0, 15]))
    assert tv.choose_weight(two, GRID, weights) == min(weights)
