"""Interpolated distances and principal subspaces: what they reproduce exactly."""

from __future__ import annotations

import pytest
import torch

from scanfield.baselines.shapes import ShapePca, interpolate_distances
from scanfield.fields.shape import signed_distance
from scanfield.space.grid import Grid

GRID = Grid.centred((24, 24, 24), 1.0)


def ball(radius: float) -> torch.Tensor:
    return GRID.points().norm(dim=1).reshape(GRID.shape) - radius


def test_a_growing_ball_is_interpolated_exactly():
    found = interpolate_distances(torch.stack([ball(4), ball(8)]), torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(found, torch.stack([ball(5), ball(6)]))


def test_frames_come_back_and_ends_are_kept():
    distances = torch.stack([signed_distance(ball(r) < 0, GRID) for r in (4.0, 6.0, 5.0)])
    times = torch.tensor([0.0, 1.0, 3.0])
    assert torch.equal(interpolate_distances(distances, times, times), distances)
    outside = interpolate_distances(distances, times, torch.tensor([-1.0, 9.0]))
    assert torch.equal(outside, distances[[0, 2]])
    assert interpolate_distances(distances[:1], times[:1], times).shape == (3, 24, 24, 24)


def test_times_must_rise():
    with pytest.raises(ValueError, match="as many rising times"):
        interpolate_distances(torch.zeros(3, 2), torch.tensor([0.0, 0.0, 1.0]), torch.zeros(1))


def test_all_modes_reproduce_the_samples_and_few_the_subspace():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(2, 50, generator=g)
    samples = 3 + torch.randn(8, 2, generator=g) @ base
    whole, two = ShapePca.of(samples), ShapePca.of(samples, 2)
    torch.testing.assert_close(whole.rebuilt(whole.coefficients(samples)), samples, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.rebuilt(two.coefficients(samples)), samples, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.modes @ two.modes.T, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(two.deviations.square().sum(), samples.var(dim=0).sum(), rtol=1e-4, atol=0)


def test_drawn_members_have_the_samples_mean_and_covariance():
    g = torch.Generator().manual_seed(1)
    samples = torch.randn(40, 3, generator=g) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.5]]) + 4
    drawn = ShapePca.of(samples).draw(40_000, g)
    torch.testing.assert_close(drawn.mean(dim=0), samples.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), samples.T.cov(), atol=0.1, rtol=0)


@pytest.mark.parametrize("modes", [0, 3])
def test_there_are_fewer_modes_than_samples(modes):
    with pytest.raises(ValueError, match="have 1 to 2 modes"):
        ShapePca.of(torch.randn(3, 5), modes)
