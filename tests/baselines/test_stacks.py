"""The rivals of slice-to-volume reconstruction: values at their place, weights, and an operator with its adjoint."""

from dataclasses import replace

import pytest
import torch

from scanfield.baselines import slice_registration
from scanfield.baselines import stacks as rivals
from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.errors import InputError
from scanfield.metrics.poses import pose_errors
from scanfield.operators.simulate_stacks import StackScanOptions, simulate_stacks
from scanfield.operators.slices import SlicePoses, box_grid
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.grid import Grid


def body(size=30, spacing=2.0):
    """An ellipsoid filled with random clouds: every slice has its place."""
    grid = Grid.centred((size, size, size), spacing)
    x = grid.points().reshape(*grid.shape, 3)
    inside = ((x / torch.tensor([25.0, 20.0, 17.0])) ** 2).sum(-1) < 1
    clouds = smoothed(torch.randn(grid.shape, generator=torch.Generator().manual_seed(4)), grid, 4.0)
    return Scan((200 + 80 * clouds / clouds.std()).clamp(min=20) * inside, grid, mask=inside)


def scanned(**options):
    parts = simulate_stacks(
        body(), StackScanOptions(thickness_mm=5.0, in_plane_mm=2.0, seed=2, margin_mm=4.0, **options)
    )
    slices = slice_set([part.stack for part in parts])
    names = list(zip(slices.stack_index.tolist(), slices.number.tolist(), strict=True))
    truth = torch.stack([torch.from_numpy(parts[stack].poses[number]) for stack, number in names])
    return slices, truth, torch.tensor([number in parts[stack].outliers for stack, number in names])


def grid_of(slices):
    return box_grid(slices.world(), 2.0, 6.0)


def error(image, slices, grid):
    from scanfield.fields.image import ImageField

    volume = body()
    x = volume.grid.points()[volume.mask.flatten()]
    truth = volume.values.flatten()[volume.mask.flatten()] / float(slices.scale.mean())
    return float((ImageField(image, grid)(x)[:, 0] - truth).square().mean().sqrt())


@pytest.fixture(scope="module")
def still():
    return scanned()[0]


def system(slices, grid):
    return rivals._System(slices, grid, SlicePoses(slices.initial))


def test_the_operator_and_its_adjoint_agree(still):
    grid = grid_of(still)
    equations = system(still, grid)
    generator = torch.Generator().manual_seed(0)
    v, y = torch.randn(grid.shape, generator=generator), torch.randn(len(still.pixels), generator=generator)
    seen = rivals.predicted_pixels(v, grid, still, equations.matrices())
    assert float(seen.double() @ y.double()) == pytest.approx(
        float((equations.adjoint(y).double() * v.double()).sum()), rel=1e-3
    )


def test_smoothing_is_the_gradient_of_its_energy():
    v = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edges = [torch.rand_like(v.diff(dim=k)).detach() for k in range(3)]
    energy = sum((q * v.diff(dim=k).square()).sum() / 2 for k, q in enumerate(edges))
    assert torch.allclose(torch.autograd.grad(energy, v)[0], rivals._smoothing(v.detach(), edges))


def test_super_resolution_lowers_its_residual_and_beats_the_mean(still):
    grid = grid_of(still)
    equations, one = system(still, grid), torch.ones(still.count)
    weight = torch.ones_like(still.pixels)
    start = equations.average(still.pixels, weight)
    solved = equations.solve(start, still.pixels, weight, one)
    left = [
        (rivals.predicted_pixels(v, grid, still, equations.matrices()) - still.pixels).square().mean()
        for v in (start, solved)
    ]
    assert left[1] < 0.3 * left[0]
    mean, state = rivals.mean_of_stacks(still, grid, Run())
    assert error(solved, still, grid) < error(mean, still, grid)
    assert torch.equal(state.poses, still.initial) and state.weight.eq(1).all() and state.scale.eq(1).all()


def test_the_mean_shows_stacks_with_missing_slices(still):
    grid = grid_of(still)
    gaps = still.subset(still.number % 5 != 2)
    assert error(rivals.mean_of_stacks(gaps, grid, Run())[0], still, grid) < 0.25
    one = still.subset((still.stack_index == 0) & (still.number == still.number[still.stack_index == 0][3]))
    with pytest.raises(InputError, match="at least two slices"):
        rivals.mean_of_stacks(one, grid, Run())


def test_classical_brings_slices_back_and_ignores_spoilt_ones(monkeypatch):
    monkeypatch.setattr(slice_registration, "MOTION", 2.0)  # small slices of a small body: little holds them
    slices, truth, spoilt = scanned(motion_deg=4.0, motion_mm=2.0, outliers=0.15)
    grid = grid_of(slices)
    volume, state = rivals.classical(slices, grid, Run(seed=1))
    large = (torch.bincount(slices.slice_index) > 60) & ~spoilt
    before = pose_errors(slices.initial[large], truth[large]).displacement_mm.mean()
    after = pose_errors(state.poses[large], truth[large]).displacement_mm.mean()
    assert after < 0.8 * before
    assert state.weight[spoilt].mean() < state.weight[large].mean() - 0.2
    assert volume.shape == grid.shape and torch.isfinite(volume).all() and volume.min() >= 0


def test_pixel_weights_tell_a_normal_distribution_from_the_rest():
    residual = torch.cat([0.02 * torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.full((50,), 0.8)])
    weight = rivals._pixel_weights(residual)
    assert weight[:1000].median() > 0.95 and weight[1000:].max() < 0.01


def test_scales_are_found_and_have_mean_one(still):
    factor = torch.linspace(0.8, 1.2, still.count)
    dimmed = replace(still, pixels=still.pixels * factor[still.slice_index])
    scale = rivals._scales(still.pixels, dimmed, torch.ones_like(still.pixels))
    assert torch.allclose(scale, factor / factor.mean(), atol=1e-4)


def test_slices_that_are_all_good_all_count(still):
    residual = 0.02 * torch.randn(len(still.pixels), generator=torch.Generator().manual_seed(0))
    good = rivals._slice_weights(residual, torch.ones_like(residual), still)
    assert good.eq(1).all()
