from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from scanfield.baselines.mri import BASELINES, cg_sense, choose_iterations, choose_weight, gridding, solve, temporal_tv
from scanfield.data.measurement import Noise
from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.operators.coils import analytic_sensitivities
from scanfield.operators.density import density_weights
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.fourier import centred_ifft
from scanfield.operators.trajectories import cartesian, golden_angle_radial
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry, consecutive_frames

pytest.importorskip("finufft")
GRID = Grid.centred((20, 16, 1), (3.0, 3.0, 5.0))


def series(frames):
    """An ellipse with a spot that brightens in steps: piecewise constant in time."""
    x = GRID.points()
    body = ((x[:, :2] / torch.tensor([24.0, 18.0])).square().sum(-1) < 1).float()
    spot = ((x[:, :2] - torch.tensor([6.0, 0.0])).square().sum(-1) < 40).float()
    steps = torch.tensor([0.0, 1.0])[(torch.arange(frames) * 2 // frames)]
    phase = torch.exp(0.4j * x[:, 0] / 30)
    return ((body + steps[:, None] * spot) * phase).reshape(frames, *GRID.shape)


def scan(trajectory, frames=1, coils=4, sigma=0.0):
    truth = series(frames)
    views = len(trajectory)
    geometry = KSpaceGeometry(trajectory, coils, GRID, frame=consecutive_frames(views, frames), frames=frames)
    maps = analytic_sensitivities(GRID, coils)
    values = KSpaceEncoding(geometry, GRID, maps).apply(truth)
    noise = torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(0)) * 2**0.5
    known = Noise("gaussian", sigma) if sigma else Noise("none")
    return KSpace(values + sigma * noise, geometry, known, sensitivities=maps), truth


def error(found, truth):
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", BASELINES)
def test_a_full_cartesian_scan_is_inverted(name):
    kspace, truth = scan(cartesian(GRID, np.arange(16)))
    assert error(BASELINES[name].reconstruct(kspace, GRID), truth) < 0.03


def test_gridding_of_a_full_cartesian_scan_is_the_inverse_transform():
    kspace, _ = scan(cartesian(GRID, np.arange(16)), coils=1)
    expected = centred_ifft(kspace.values[:, 0].T[..., None]) / kspace.sensitivities[0]
    torch.testing.assert_close(gridding(kspace, GRID)[0], expected, atol=1e-3, rtol=1e-3)


def test_cg_sense_unfolds_what_gridding_aliases():
    """Every second line, four coils."""
    kspace, truth = scan(cartesian(GRID, np.arange(0, 16, 2)))
    assert error(cg_sense(kspace, GRID), truth) < 0.02 < 0.3 < error(gridding(kspace, GRID), truth)


def test_cg_sense_solves_the_weighted_normal_equations():
    """Written out as a matrix, for a scan with more data than voxels."""
    grid = Grid.centred((6, 5, 1), (3.0, 3.0, 5.0))
    geometry = KSpaceGeometry(golden_angle_radial(grid, 4), 3, grid)
    maps = analytic_sensitivities(grid, 3)
    columns = torch.eye(30, dtype=torch.complex64).reshape(30, 1, 6, 5, 1)
    operator = KSpaceEncoding(geometry, grid, maps)
    matrix = torch.stack([operator.apply(c).flatten() for c in columns], dim=1)
    y = torch.randn(4, 3, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    back = matrix.conj().T * density_weights(geometry)[:, None].expand(4, 3, 12).flatten()
    found = cg_sense(KSpace(y, geometry, sensitivities=maps), grid, iterations=60).flatten()
    assert (back @ (matrix @ found - y.flatten())).norm() / (back @ y.flatten()).norm() < 1e-3


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_cg_sense_finds_how_long_to_iterate(sigma):
    """As good as the best number of iterations, which depends on the noise and is found without the truth."""
    kspace, truth = scan(golden_angle_radial(GRID, 24), sigma=sigma)
    errors = [error(cg_sense(kspace, GRID, iterations=n), truth) for n in (1, 2, 3, 5, 8, 12, 20, 40, 60)]
    found = error(cg_sense(kspace, GRID), truth)
    assert found < 1.06 * min(errors) and found < 0.8 * max(errors)


def test_more_noise_needs_fewer_iterations():
    counts = []
    for sigma in (0.02, 0.3):
        kspace, _ = scan(golden_angle_radial(GRID, 24), sigma=sigma)
        counts.append(choose_iterations(kspace, GRID, kspace.sensitivities))
    assert counts[1] < counts[0]


def test_frames_are_solved_on_their_own():
    kspace, _ = scan(golden_angle_radial(GRID, 12), frames=2)
    one = kspace.subset(np.arange(6, 12))
    alone = replace(one, acquisition=replace(one.acquisition, frame=None, frames=None))
    for reconstruct in (gridding, partial(cg_sense, iterations=20)):
        torch.testing.assert_close(reconstruct(kspace, GRID)[1], reconstruct(alone, GRID)[0], atol=1e-3, rtol=1e-2)


def test_temporal_tv_beats_frames_alone_when_they_starve():
    kspace, truth = scan(golden_angle_radial(GRID, 24), frames=8, sigma=0.02)
    found = temporal_tv(kspace, GRID)
    assert error(found, truth) < 0.6 * error(cg_sense(kspace, GRID), truth)
    assert error(cg_sense(kspace, GRID), truth) < error(gridding(kspace, GRID), truth)


def test_temporal_tv_descends_and_averages_in_the_limit():
    kspace, _ = scan(golden_angle_radial(GRID, 16), frames=4, sigma=0.02)
    solution = solve(kspace, GRID, kspace.sensitivities, 0.05, iterations=40)
    assert solution.objective[-1] < solution.objective[0]
    assert np.ptp(solution.objective[-5:]) < 0.01 * solution.objective[-1]
    even = solve(kspace, GRID, kspace.sensitivities, 1e3, iterations=40).series
    assert (even - even.mean(0)).abs().max() < 1e-3 * even.abs().max()


def test_a_frame_without_views_follows_from_its_neighbours():
    kspace, truth = scan(golden_angle_radial(GRID, 24), frames=4)
    kept = kspace.subset(np.flatnonzero(kspace.acquisition.frame_of_view != 0))
    found = temporal_tv(kept, GRID, weight=0.02)
    assert error(found[0], truth[0]) < 0.2
    assert not gridding(kept, GRID)[0].any() and not cg_sense(kept, GRID)[0].any()


def test_the_weight_follows_the_data():
    """A static series is best averaged; one that changes in every frame is not."""
    kspace, _ = scan(golden_angle_radial(GRID, 24), frames=8, sigma=0.05)
    still = KSpaceEncoding(kspace.acquisition, GRID, kspace.sensitivities).apply(series(1).expand(8, *GRID.shape))
    flicker = torch.tensor([1.0, -1.0] * 4).repeat_interleave(3)[:, None, None]
    weights = [
        choose_weight(replace(kspace, values=values), GRID, kspace.sensitivities) / float(values.abs().max())
        for values in (still, flicker * still)
    ]
    assert weights[0] > weights[1]


def test_two_views_leave_nothing_to_hold_out():
    kspace, _ = scan(golden_angle_radial(GRID, 2))
    assert choose_iterations(kspace, GRID, kspace.sensitivities) == 10
    assert choose_weight(kspace, GRID, kspace.sensitivities) > 0


def test_sensitivities_are_estimated_where_there_are_none():
    kspace, truth = scan(golden_angle_radial(GRID, 40))
    blind = replace(kspace, sensitivities=None)
    body = truth.abs() > 0
    scale = kspace.sensitivities.abs().square().sum(0).sqrt()  # estimated maps have a root sum of squares of one
    for name, baseline in BASELINES.items():
        found = baseline.reconstruct(blind, GRID)
        assert error((found / scale)[body].abs(), truth[body].abs()) < 0.15, name


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_twice(name):
    kspace, _ = scan(golden_angle_radial(GRID, 8), frames=2)
    once, twice = (BASELINES[name].reconstruct(kspace, GRID) for _ in range(2))
    assert torch.equal(once, twice) and once.shape == (2, *GRID.shape)


def test_refuses():
    kspace, _ = scan(golden_angle_radial(GRID, 4))
    with pytest.raises(InputError, match="at least one iteration"):
        cg_sense(kspace, GRID, iterations=0)
    with pytest.raises(InputError, match="must be finite and not negative"):
        temporal_tv(kspace, GRID, weight=-1.0)
    with pytest.raises(InputError, match="not on the same grid"):
        gridding(kspace, GRID.resampled((1.5, 1.5, 5.0)))


def test_labels_are_distinct():
    assert len({b.label for b in BASELINES.values()}) == len(BASELINES)
    assert all(b.note.endswith(".") for b in BASELINES.values())
