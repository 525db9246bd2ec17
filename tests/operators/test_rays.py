from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.operators.base import predict, predict_all
from scanfield.operators.rays import LineIntegral
from scanfield.operators.stored_rays import StoredLineIntegral
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.space.view_poses import ViewPoses

VOLUME = Grid.centred((20, 20, 1), 2.0)
GEOMETRY = ProjectionGeometry("parallel", np.array([0.0, 45.0, 90.0]), Detector("flat", (1, 9), (2.0, 4.0)), VOLUME)


def constant(x: torch.Tensor) -> torch.Tensor:
    return torch.full((*x.shape[:-1], 1), 0.02)


@pytest.mark.parametrize("count", [1, 2, 17, 400])
def test_a_constant_field_measures_the_chord_of_the_box_exactly(count):
    """0.02 per mm times 40 mm across the square; 2 (20 sqrt(2) - |s|) along its diagonal at distance s."""
    found = predict_all(constant, LineIntegral(GEOMETRY, Domain.of_grid(VOLUME), count))
    s = (torch.arange(9) - 4) * 4.0
    straight = torch.full((9,), 0.8)
    torch.testing.assert_close(found[0, 0], straight, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1, 0], 0.02 * 2 * (20 * 2**0.5 - s.abs()), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2, 0], straight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("points", [1, 250, 27 * 50, 10**6])
def test_predict_all_is_in_the_shape_of_the_scan_whatever_the_chunks(points):
    operator = LineIntegral(GEOMETRY, Domain.of_grid(VOLUME), 50)

    def field(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :1], x[..., 1:2] ** 2], dim=-1)

    found = predict_all(field, operator, points=points)
    assert found.shape == (3, 1, 9, 2) and not found.requires_grad
    torch.testing.assert_close(found.reshape(27, 2), predict(field, operator, torch.arange(27)), atol=1e-3, rtol=1e-5)


def test_one_channel_gives_a_number_per_ray_and_several_a_vector():
    operator = LineIntegral(GEOMETRY, Domain.of_grid(VOLUME), 4)
    samples = operator.samples(torch.tensor([0, 5]))
    assert operator.reduce(torch.ones(2, 4, 1), samples).shape == (2,)
    assert operator.reduce(torch.ones(2, 4, 3), samples).shape == (2, 3)


def test_gradients_reach_the_field():
    weight = torch.tensor(0.02, requires_grad=True)
    operator = LineIntegral(GEOMETRY, Domain.of_grid(VOLUME), 8)
    predict(lambda x: weight.expand(*x.shape[:-1], 1), operator, torch.tensor([4])).sum().backward()
    assert weight.grad.item() == pytest.approx(40.0, rel=1e-5)


def test_poses_are_asked_anew_for_every_batch_and_cannot_be_stored():
    """A square of 40 mm moved by 30 mm across the first view: half of its detector sees air."""
    poses = ViewPoses(3)
    domain = Domain.of_grid(VOLUME)
    operator = LineIntegral(GEOMETRY, domain, 64, poses=poses)
    torch.testing.assert_close(
        predict_all(constant, operator), predict_all(constant, LineIntegral(GEOMETRY, domain, 64))
    )
    with torch.no_grad():
        poses.translation[0, 0] = 30.0
    moved = predict_all(constant, operator)[0, 0]
    s = (torch.arange(9) - 4) * 4.0
    torch.testing.assert_close(moved, torch.where(s > 10.0, 0.8, 0.0), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="follow poses"):
        StoredLineIntegral.make(operator)
