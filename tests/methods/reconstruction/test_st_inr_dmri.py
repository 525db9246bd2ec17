"""ST-INR on a small slice of a real head that beats and brightens: its terms, its annealing, its frames."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from scanfield.data.rawmri import KSpace
from scanfield.data.samples import sample
from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.methods.reconstruction import st_inr_dmri
from scanfield.methods.reconstruction.st_inr_dmri import Config, ScaledTime, build, fit, nuclear_norm, predict, series
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.simulate_kspace import KSpaceScanOptions, SimulatedKSpace, simulate_kspace
from scanfield.run import Run
from scanfield.space.domain import Axis
from scanfield.space.timing import Timing
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.series import series_spec

pytest.importorskip("finufft")
SMALL = replace(Config.tiny(), levels=5, steps=150, loss="l2", temporal_weight=0.1, low_rank_weight=0.0)


@cache
def simulated(frames: int = 6) -> SimulatedKSpace:
    image = sample("ct_chest_slice")
    image = replace(image, values=image.values.float() + 1024)
    edge = image.grid.spacing_mm[0] * image.grid.shape[0] / 32
    grid = image.grid.slice(0).resampled((edge, edge, image.grid.spacing_mm[2]))
    options = KSpaceScanOptions(
        coils=3, frames=frames, views_per_frame=6, samples=48, motion="brightening", brightening_percent=100.0
    )
    return simulate_kspace(image, options, grid=grid)


def scan() -> KSpace:
    return simulated().kspace


@cache
def fitted(config: Config = SMALL) -> Reconstruction:
    return fit(config, scan(), Run(seed=1))


def images(result: Reconstruction) -> torch.Tensor:
    return series(result, result.spec.grid, scan().acquisition.frame_moments())


def error(result: Reconstruction) -> float:
    truth = simulated().truth
    return float((images(result) - truth).norm() / truth.norm())


def variation(result: Reconstruction) -> float:
    x = images(result)
    return float((x[1:] - x[:-1]).abs().mean() / x.abs().mean())


def test_the_nuclear_norm_is_the_sum_of_the_singular_values():
    x = torch.randn(5, 40, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(nuclear_norm(x), torch.linalg.svdvals(x).sum())
    assert torch.autograd.gradcheck(nuclear_norm, x)
    ours, theirs = torch.autograd.grad(nuclear_norm(x), x), torch.autograd.grad(torch.linalg.svdvals(x).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_the_nuclear_norm_of_equal_frames_has_a_finite_gradient():
    x = torch.ones(4, 9, dtype=torch.complex64).requires_grad_()
    norm = nuclear_norm(x)
    norm.backward()
    assert float(norm.detach()) == pytest.approx(6.0, abs=1e-3)  # sqrt(4 * 9), one singular value
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


def test_the_relative_loss_divides_by_the_prediction_and_stops_its_gradient():
    predicted = torch.tensor([3.0 + 0.5j, 0.0 - 2.0j], requires_grad=True)
    measured = torch.tensor([2.0 + 0.5j, 0.1 - 1.0j])
    found = st_inr_dmri._data_term(Config(epsilon=0.01), predicted, measured)
    parts = [1 / 9.01, 0.0, 0.01 / 0.01, 1 / 4.01]
    assert float(found.detach()) == pytest.approx(sum(parts) / 2, rel=1e-5)
    found.backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([1 / 9.01 + 0.0j, -0.1 / 0.01 - 1j / 4.01]))
    plain = st_inr_dmri._data_term(Config(loss="l2"), predicted.detach(), measured)
    assert float(plain) == pytest.approx(100 * 2.01 / 2, rel=1e-5)


@pytest.mark.parametrize(("time_scale", "step"), [(1.0, 2 / 32), (2.0, 4 / 32), (100.0, 2 / 6)])
def test_a_frame_is_a_voxel_long(time_scale, step):
    """In the encoding's coordinates, from -1 to 1 along the larger side; never longer than the field of view."""
    config = replace(SMALL, time_scale=time_scale)
    field = build(config, series_spec(scan(), 1.0, Run()))
    seen = []
    field.encoding.grid.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    low, high = field.domain.axes[-1].low, field.domain.axes[-1].high
    frame = (high - low) / 6
    x = torch.zeros(2, 4)
    x[:, 3] = torch.tensor([low, low + frame])
    field(x)
    assert float(seen[0][0, -1]) == pytest.approx(-1, abs=1e-5)
    assert float(seen[0][1, -1] - seen[0][0, -1]) == pytest.approx(step, rel=1e-3)


def test_scaled_time_leaves_space_alone():
    grid = MultiresolutionGrid(
        3, levels=2, features=2, base=4, growth=2.0, log2_table=10, generator=torch.Generator().manual_seed(0)
    )
    u = torch.rand(20, 3) * 2 - 1
    v = u.clone()
    v[:, 2] = (u[:, 2] + 1) * 0.25 - 1
    torch.testing.assert_close(ScaledTime(grid, 0.25)(u), grid(v))


def test_it_finds_the_images():
    assert error(fitted()) < 0.25


def test_temporal_variation_is_what_its_weight_asks():
    loose, stiff = (fitted(replace(SMALL, temporal_weight=w)) for w in (0.0, 5.0))
    assert variation(stiff) < 0.3 * variation(loose)


def test_a_cycle_ends_where_it_begins():
    """In a periodic series the last frame is a neighbour of the first."""
    geometry = scan().acquisition
    phase = (geometry.frame_of_view + 0.5) / geometry.frame_count
    periodic = replace(geometry, timing=Timing(Axis("t", "cycle", 0.0, 1.0), phase, 0.8))
    config = replace(SMALL, temporal_weight=1.0)
    result = fit(config, replace(scan(), acquisition=periodic), Run(seed=1))
    cycle, line = series(result, result.spec.grid, periodic.frame_moments()), images(fitted(config))
    assert (cycle[0] - cycle[-1]).abs().mean() < 0.75 * (line[0] - line[-1]).abs().mean()


def test_low_rank_lowers_the_rank():
    def tail(result: Reconstruction) -> float:
        s = torch.linalg.svdvals(images(result).flatten(1))
        return float(s[2:].sum() / s.sum())

    low = fitted(replace(SMALL, temporal_weight=0.0, low_rank_weight=0.05))
    assert tail(low) < 0.5 * tail(fitted(replace(SMALL, temporal_weight=0.0)))


def test_levels_come_in_from_coarse_to_fine(monkeypatch):
    shown = []
    real = MultiresolutionGrid.show_levels
    monkeypatch.setattr(MultiresolutionGrid, "show_levels", lambda self, n: shown.append(n) or real(self, n))
    result = fit(replace(SMALL, steps=10), scan(), Run(seed=1))
    assert shown == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert (result.field.encoding.grid.level_weight == 1).all()
    shown.clear()
    fit(replace(SMALL, steps=2, coarse_to_fine=False), scan(), Run(seed=1))
    assert shown == [5]


def test_prediction_is_the_operator_on_the_frames():
    result = fitted()
    geometry = scan().acquisition
    found = predict(result, scan())
    expected = KSpaceEncoding(geometry, geometry.volume, scan().sensitivities).apply(images(result))
    torch.testing.assert_close(found, expected)
    assert (found - scan().values).norm() < 0.2 * scan().values.norm()
    some = scan().subset(np.array([3, 20, 33]))
    assert predict(result, some).shape == some.acquisition.shape


def test_a_frame_held_out_follows_from_the_others():
    """Better than the mean of all frames."""
    kept = np.flatnonzero(scan().acquisition.frame_of_view != 3)
    held = scan().subset(np.flatnonzero(scan().acquisition.frame_of_view == 3))
    result = fit(SMALL, scan().subset(kept), Run(seed=1), held_out=held)
    truth = simulated().truth
    moment = scan().acquisition.frame_moments()[3:4]
    found = series(result, result.spec.grid, moment)[0]
    assert (found - truth[3]).norm() / truth[3].norm() < 0.25
    assert result.logs[0].best_held_out < 0.3


def test_images_between_frames_and_voxels():
    result = fitted()
    moments = scan().acquisition.frame_moments()
    edge, _, thickness = result.spec.grid.spacing_mm
    finer = result.spec.grid.resampled((edge / 2, edge / 2, thickness))
    between = series(result, finer, (moments[:-1] + moments[1:]) / 2)
    assert between.shape == (5, *finer.shape) and between.dtype == torch.complex64
    away = result.spec.grid.moved(np.array([[1, 0, 0, 1000], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    assert not series(result, away, moments[:1]).any()


def test_refuses_silence():
    quiet = replace(scan(), values=torch.zeros_like(scan().values))
    with pytest.raises(InputError, match="zero everywhere"):
        fit(SMALL, quiet, Run())
