"""NIK: the loss, the four coordinates, the image behind the field, and what makes it binning-free."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from scanfield.baselines.mri import gridding
from scanfield.data.cardiac import cardiac_gated
from scanfield.data.rawmri import KSpace
from scanfield.data.samples import sample
from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.methods.reconstruction import nik
from scanfield.methods.reconstruction.nik import Config, build, fit, lattice, predict, render, series
from scanfield.operators.fourier import centred_fft
from scanfield.operators.simulate_kspace import KSpaceScanOptions, simulate_kspace, true_series
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.series import moments, series_spec

pytest.importorskip("finufft")
TINY = Config.tiny()
SCAN = KSpaceScanOptions(
    coils=3, frames=1, views_per_frame=80, samples=48, repetition_s=0.01, motion="beating", motion_mm=12.0
)


def plane():
    image = sample("mr_head_volume")
    index = image.grid.shape[2] // 2
    own = image.grid.slice(index)
    sizes = (own.shape[a] * own.spacing_mm[a] / 24 for a in range(2))
    return image, index, own.resampled((*sizes, own.spacing_mm[2]))


@cache
def beating() -> KSpace:
    """One beat of 0.8 s in eight phases."""
    image, index, grid = plane()
    return cardiac_gated(simulate_kspace(image, SCAN, slice_index=index, grid=grid).kspace, 8)


@cache
def fitted(config: Config = TINY) -> Reconstruction:
    return fit(config, beating(), Run(seed=1))


def test_every_moment_is_an_image_and_they_differ():
    result = fitted()
    places = moments(result.spec)
    found = series(result, result.spec.grid, places)
    assert found.shape == (8, *result.spec.grid.shape) and found.dtype == torch.complex64
    assert torch.allclose(series(result, result.spec.grid, places[2:3])[0], found[2], atol=1e-4)
    assert (found.abs().std(dim=0).max() / found.abs().max()) > 0.02
    assert torch.allclose(render(result, result.spec.grid), series(result, result.spec.grid, np.array([0.5]))[0].abs())


def test_phases_that_nobody_binned_follow_the_beat():
    """Between the frames of the rivals too: what changes most changes as the object does."""
    image, index, grid = plane()
    places = (np.arange(5) + 0.5) / 5
    truth = true_series(image, SCAN, 0.8 * places, slice_index=index, grid=grid).abs()
    found = series(fitted(replace(TINY, steps=800)), grid, places).abs()
    moving = truth.std(dim=0) > 0.3 * truth.std(dim=0).max()
    a, b = (x[:, moving] - x[:, moving].mean(dim=0) for x in (truth, found))
    assert float((a * b).sum() / (a.norm() * b.norm())) > 0.5


def test_a_circle_closes_the_beat_and_a_line_does_not():
    circle, line = fitted(), fitted(replace(TINY, time="line", steps=60))
    for result, closed in ((circle, True), (line, False)):
        first, last = series(result, result.spec.grid, np.array([0.0, 1.0]))
        assert torch.allclose(first, last, atol=1e-3 * float(first.abs().max())) == closed


def test_the_image_is_one_inverse_transform_of_the_field():
    """Frequencies of the lattice in the order of the voxels; none beyond the disc that was measured."""
    result = fitted()
    grid, maps = result.spec.grid, result.tensors["sensitivities"]
    k = lattice(grid)
    with torch.no_grad():
        values = result.field(torch.full((len(k),), 0.3), k.float())
    values[k.norm(dim=1) > result.spec.facts["reach_per_mm"] * 1.000001] = 0
    image = series(result, grid, np.array([0.3]))[0]
    expected = torch.linalg.lstsq(maps.flatten(1).T[:, :, None], _coil_images(values, grid)[:, :, None]).solution
    assert torch.allclose(image.flatten(), expected[:, 0, 0], atol=1e-2)
    assert int((values.abs().sum(dim=1) == 0).sum()) > 50, "the corners of k-space were not measured"


def _coil_images(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """By the definition of the transform, (voxels, coils)."""
    waves = centred_fft(torch.eye(grid.size, dtype=torch.complex64).reshape(-1, *grid.shape)).flatten(1)
    return waves.conj() @ values


def test_prediction_is_the_field_along_the_trajectory():
    result, data = fitted(), beating()
    found = predict(result, data)
    geometry = data.acquisition
    one = result.field(
        torch.tensor([geometry.when.view[5]]).float(), torch.from_numpy(geometry.trajectory[5, 7:8]).float()
    )
    assert torch.allclose(found[5, :, 7], one[0], rtol=1e-4, atol=1e-3)
    assert float((found - data.values).norm() / data.values.norm()) < 0.2


def test_the_losses_are_the_paper_s():
    """Of the first step, from the untrained field and the batch it draws."""
    data = beating()
    for config in (replace(TINY, steps=1, loss="hdr", filter_weight=0.5), replace(TINY, steps=1, coils="input")):
        run = Run(seed=4)
        log = fit(config, data, run).logs[0].history[-1]["loss"]
        again = Run(seed=4)
        scale = float(data.values.abs().max())
        spec = series_spec(data, scale, again, {"coils": 3, "reach_per_mm": 1.0})
        field = build(config, spec)
        moment, k, y = nik._samples(data, torch.device("cpu"))
        draws = again.generator("samples")
        if config.coils == "output":
            index = torch.randint(len(k), (config.samples_per_step // 3,), generator=draws)
            f, target = field(moment[index], k[index]).detach() / scale, y[index] / scale
        else:
            flat = torch.randint(y.numel(), (config.samples_per_step,), generator=draws)
            index = flat // 3
            f, target = field(moment[index], k[index], flat % 3)[:, 0].detach() / scale, y.flatten()[flat] / scale
        size = f.abs() + 0.01 if config.loss == "hdr" else 1.0
        assert log["k-space"] == pytest.approx(float(((f - target).abs() / size).square().mean()), rel=1e-4)
        if config.filter_weight:
            gauss = torch.exp(-(k[index].norm(dim=1) / nik.k_max(spec.grid)).square() / 2)[:, None]
            assert log["filter"] == pytest.approx(float(((1 - gauss) * f.abs() / size).square().mean()), rel=1e-4)


def test_published_setting_is_the_released_one():
    data = beating()
    spec = series_spec(data, 1.0, Run(), {"coils": 3, "reach_per_mm": 1.0})
    field = build(Config(), spec)
    assert [layer.out_features for layer in field.network.linears] == [512] * 8 + [2]
    assert isinstance(field.encoding, GaussianFourier) and field.encoding.frequencies.shape == (256, 4)
    assert float(field.encoding.frequencies.std()) == pytest.approx(1.0, rel=0.1) and field.encoding.factor == 1.0
    assert set(field.network.omegas) == {30.0}


def test_a_coil_as_a_coordinate_agrees_with_all_coils_at_once():
    spec = series_spec(beating(), 2.0, Run(), {"coils": 3, "reach_per_mm": 1.0})
    field = build(replace(TINY, coils="input"), spec)
    moment, k = torch.rand(5), 0.05 * torch.rand(5, 3)
    every = field(moment, k)
    assert every.shape == (5, 3)
    assert torch.allclose(every[:, 1:2], field(moment, k, torch.ones(5, dtype=torch.long)))


def test_one_coil_and_no_maps():
    data = beating()
    alone = KSpace(
        data.values[:, :1].clone(), replace(data.acquisition, coils=1), data.noise, data.unit, sensitivities=None
    )
    result = fit(replace(TINY, steps=5), alone, Run())
    assert result.tensors["sensitivities"].shape == (1, *result.spec.grid.shape)
    assert torch.isfinite(render(result, result.spec.grid)).all()


def test_cartesian_lines_fill_the_whole_box():
    image, index, grid = plane()
    made = simulate_kspace(
        image,
        KSpaceScanOptions(trajectory="cartesian", coils=2, frames=1, views_per_frame=24),
        slice_index=index,
        grid=grid,
    )
    result = fit(replace(TINY, steps=500), made.kspace, Run())
    assert result.spec.facts["reach_per_mm"] > np.hypot(*(0.499 / s for s in grid.spacing_mm[:2]))
    error = (render(result, grid) - made.truth[0].abs()).norm() / made.truth[0].norm()
    assert error < 0.35
    assert (gridding(made.kspace, grid)[0] - made.truth[0]).norm() / made.truth[0].norm() < 0.1


def test_empty_k_space_is_refused():
    data = beating()
    with pytest.raises(InputError, match="zero everywhere"):
        fit(TINY, replace(data, values=torch.zeros_like(data.values)), Run())
