"""What makes it NeSVoR: poses, outliers and point spread are found together, on a body of known shape and motion."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.methods.reconstruction import nesvor
from scanfield.metrics.poses import pose_errors
from scanfield.metrics.stacks import detection_auc
from scanfield.operators.simulate_stacks import StackScanOptions, simulate_stacks
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction

SHORT = replace(
    nesvor.Config.tiny(), steps=200, pixels_per_step=512, learning_rate=2e-2, pose_learning_rate=1e-2, log2_table=16
)


def body(size=30, spacing=2.0):
    """An ellipsoid filled with random clouds: every slice has its place."""
    grid = Grid.centred((size, size, size), spacing)
    x = grid.points().reshape(*grid.shape, 3)
    inside = ((x / torch.tensor([25.0, 20.0, 17.0])) ** 2).sum(-1) < 1
    clouds = smoothed(torch.randn(grid.shape, generator=torch.Generator().manual_seed(4)), grid, 4.0)
    return Scan((200 + 80 * clouds / clouds.std()).clamp(min=20) * inside, grid, mask=inside)


def scanned(**options):
    volume = body()
    parts = simulate_stacks(
        volume, StackScanOptions(thickness_mm=5.0, in_plane_mm=2.0, seed=2, margin_mm=4.0, **options)
    )
    slices = slice_set([part.stack for part in parts])
    names = list(zip(slices.stack_index.tolist(), slices.number.tolist(), strict=True))
    poses = torch.stack([torch.from_numpy(parts[stack].poses[number]) for stack, number in names])
    spoilt = torch.tensor([number in parts[stack].outliers for stack, number in names])
    return volume, slices, poses, spoilt


def error(result, volume, gauge=None):
    """Root mean square in the body, in percent of its brightest voxel."""
    x = volume.grid.points()[volume.mask.flatten()].double()
    if gauge is not None:
        x = x @ gauge[:3, :3].T + gauge[:3, 3]
    with torch.no_grad():
        seen = result.field(x.float())[:, 0]
    truth = volume.values.flatten()[volume.mask.flatten()]
    return 100 * float((seen - truth).square().mean().sqrt() / truth.max())


@pytest.fixture(scope="module")
def moving():
    return scanned(motion_deg=5.0, motion_mm=2.0)


@pytest.fixture(scope="module")
def found(moving):
    return nesvor.fit(SHORT, moving[1], Run(seed=1))


def test_poses_come_back_and_the_volume_with_them(moving, found):
    volume, slices, truth, _ = moving
    fixed = nesvor.fit(replace(SHORT, optimise_poses=False), slices, Run(seed=1))
    large = torch.bincount(slices.slice_index) > 60
    before = pose_errors(slices.initial[large], truth[large])
    after = pose_errors(nesvor.slices(found).poses[large], truth[large])
    assert after.displacement_mm.mean() < 0.5 * before.displacement_mm.mean()
    assert error(found, volume, after.gauge) < 0.85 * error(fixed, volume, before.gauge)
    assert torch.allclose(nesvor.slices(fixed).poses, slices.initial, atol=1e-4)


def test_the_point_spread_sharpens_the_volume():
    volume, slices, _, _ = scanned()
    still = replace(SHORT, optimise_poses=False)
    on, off = (error(nesvor.fit(replace(still, psf=psf), slices, Run(seed=1)), volume) for psf in ("gaussian", "point"))
    assert on < off


def test_spoilt_slices_lose_their_weight():
    _, slices, _, spoilt = scanned(outliers=0.2)
    assert 2 <= int(spoilt.sum()) <= 10
    weight = nesvor.slices(nesvor.fit(SHORT, slices, Run(seed=1))).weight
    assert ((weight > 0) & (weight <= 1)).all()
    assert weight[spoilt].mean() < 0.7 * weight[~spoilt].mean()
    assert detection_auc(1 - weight, spoilt) > 0.75


def test_scales_of_slices_are_found():
    _, slices, _, _ = scanned()
    factor = torch.where(torch.arange(slices.count) % 5 == 2, 0.7, 1.0)
    dimmed = replace(slices, pixels=slices.pixels * factor[slices.slice_index])
    scale = nesvor.slices(nesvor.fit(replace(SHORT, optimise_poses=False), dimmed, Run(seed=1))).scale
    large = torch.bincount(slices.slice_index) > 60
    assert scale.mean() == pytest.approx(1.0, abs=1e-4)
    assert scale[large & (factor < 1)].mean() / scale[large & (factor == 1)].mean() == pytest.approx(0.7, abs=0.1)
    plain = nesvor.fit(replace(SHORT, slice_scale=False, steps=5), dimmed, Run(seed=1))
    assert torch.equal(nesvor.slices(plain).scale, torch.ones(slices.count))


def test_the_first_gradients_are_those_of_the_likelihood(moving):
    """The data terms against Gaussian likelihoods computed from the predictions."""
    _, slices, _, _ = moving
    model = nesvor.build(SHORT, nesvor.spec_of(SHORT, slices, Run(seed=1)))
    index, count = torch.arange(0, len(slices.pixels), 50), 8
    terms = nesvor.fit_terms(SHORT, model, slices)(index, count, torch.Generator().manual_seed(0))
    assert set(terms) == {"data", "variance", "poses", "image"} == set(nesvor.weights(SHORT)) | {"data", "variance"}
    assert float(terms["poses"]) == 0
    total = terms["data"] + terms["variance"]
    total.backward()
    assert model.poses.rotation.grad.abs().sum() > 0 and model.encoding.table.grad.abs().sum() > 0
    assert model.log_variance.grad.abs().sum() > 0 and model.log_scale.grad.abs().sum() > 0


def test_variance_does_not_pull_at_scale_and_bias(moving):
    """c and b carry no gradient from the variance: a slice cannot become certain by becoming dark."""
    _, slices, _, _ = moving
    config = replace(SHORT, bias_levels=1)
    model = nesvor.build(config, nesvor.spec_of(config, slices, Run(seed=1)))
    x = slices.world().float()[::40][:, None].expand(-1, 4, 3)
    nesvor.simulate(model, x, slices.slice_index[::40]).variance.sum().backward()
    assert model.log_scale.grad is None
    assert all(p.grad is None for p in model.bias.parameters())
    assert model.log_variance.grad.abs().sum() > 0 and model.encoding.table.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"bias_levels": 1},
        {"deformable": True},
        {"image_prior": "tv"},
        {"image_prior": "l2"},
        {"image_prior": "none"},
        {"pixel_variance": False, "slice_variance": False},
        {"draws": "independent", "early_points": 4},
        {"coarse_to_fine": 0.5},
        {"psf": "point"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_variant_fits_and_returns_from_its_file(change, moving, tmp_path):
    _, slices, _, _ = moving
    config = replace(SHORT, steps=12, deformation_mm=(32.0, 16.0), **change)
    result = nesvor.fit(config, slices, Run(seed=1))
    first, last = (sum(result.logs[0].history[k]["loss"].values()) for k in (0, -1))
    assert np.isfinite([first, last]).all()
    assert set(result.logs[0].history[0]["loss"]) == set(nesvor.weights(config)) | {"data", "variance"}
    result.save(tmp_path / "field.safetensors")
    back = Reconstruction.load(tmp_path / "field.safetensors")
    assert torch.equal(back.predict(slices), result.predict(slices))
    grid = result.spec.grid.resampled(4.0)
    assert torch.equal(nesvor.deviation(back, grid), nesvor.deviation(result, grid))
    assert torch.equal(back.render(grid), result.render(grid))


def test_all_grid_levels_are_on_after_a_fit_from_coarse_to_fine(moving):
    result = nesvor.fit(replace(SHORT, steps=4, coarse_to_fine=1.0), moving[1], Run(seed=1))
    assert torch.equal(result.field.encoding.level_weight, torch.ones_like(result.field.encoding.level_weight))


def test_the_volume_is_in_the_unit_of_the_stacks_and_lies_at_its_place(moving, found):
    volume = moving[0]
    image = found.render(volume.grid)
    inside = volume.mask & nesvor.mask(found, volume.grid)
    assert inside.sum() > 0.8 * volume.mask.sum()
    assert image[inside].median() == pytest.approx(float(volume.values[inside].median()), rel=0.15)
    assert (image[~nesvor.mask(found, volume.grid)] == 0).all()
    deviation = nesvor.deviation(found, volume.grid)
    assert (deviation[nesvor.mask(found, volume.grid)] > 0).all() and deviation.max() < 2 * volume.values.max()


def test_a_finer_grid_shows_the_same_volume(found):
    coarse, fine = found.render(spacing_mm=4.0), found.render(spacing_mm=2.0)
    grids = [found.spec.grid.resampled(s) for s in (4.0, 2.0)]
    x = grids[0].points()[nesvor.mask(found, grids[0]).flatten()]
    a, b = (ImageField(image, grid)(x)[:, 0] for image, grid in zip((coarse, fine), grids, strict=True))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.95


def test_unknown_slices_are_predicted_from_the_volume_alone(moving, found):
    """With its scale a fitted slice looks different from the same slice under another name."""
    _, slices, _, _ = moving
    renamed = replace(slices, number=slices.number + 1000)
    alone, own = found.predict(renamed), found.predict(slices)
    assert alone.shape == own.shape and not torch.allclose(alone, own)
    assert (own - slices.pixels).square().mean() < (alone - slices.pixels).square().mean()
    keep = torch.arange(slices.count) % 3 == 0
    assert torch.allclose(found.predict(slices.subset(keep)), own[keep[slices.slice_index]], atol=1e-5)


def test_poses_that_start_elsewhere_stay_where_data_put_them(moving):
    """The whole world turned and moved: everything turns and moves with it."""
    volume, slices, _, _ = moving
    move = torch.eye(4, dtype=torch.float64)
    move[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    move[:3, 3] = torch.tensor([400.0, -200.0, 90.0])
    away = slices.with_initial(move @ slices.initial)
    result = nesvor.fit(replace(SHORT, optimise_poses=False), away, Run(seed=1))
    here = nesvor.fit(replace(SHORT, optimise_poses=False), slices, Run(seed=1))
    assert error(result, volume, move) == pytest.approx(error(here, volume), rel=0.1)


@pytest.mark.parametrize("bad", [{"points_per_pixel": 1}, {"early_points": 1}, {"pixels_per_step": 0}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(InputError, match="a step needs at least one pixel"):
        nesvor.Config(**bad)
