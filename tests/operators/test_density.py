import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.operators.density import density_weights
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.trajectories import cartesian, golden_angle_radial, spiral
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

pytest.importorskip("finufft")
GRID = Grid.centred((24, 24, 1), (2.0, 2.0, 5.0))


def test_a_full_cartesian_scan_has_weights_of_one():
    geometry = KSpaceGeometry(cartesian(GRID, np.arange(24)), 1, GRID)
    torch.testing.assert_close(density_weights(geometry), torch.ones(24, 24), atol=1e-4, rtol=0)


def test_samples_taken_twice_count_half():
    lines = np.concatenate([np.arange(24), np.arange(12)])
    weights = density_weights(KSpaceGeometry(cartesian(GRID, lines), 1, GRID))
    torch.testing.assert_close(weights[:12], torch.full((12, 24), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights[12:24], torch.ones(12, 24), atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", [lambda: golden_angle_radial(GRID, 40), lambda: spiral(GRID, 13, 300, full=8)])
def test_they_add_up_to_the_covered_area(make):
    """The disc of radius k_max, in units of one over the field of view squared."""
    weights = density_weights(KSpaceGeometry(make(), 1, GRID))
    assert (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(math.pi * 12**2, rel=0.12)


def test_radial_weights_are_a_ramp():
    k = golden_angle_radial(GRID, 60)
    weights = density_weights(KSpaceGeometry(k, 1, GRID)).mean(0)
    middle = weights[28:44]  # samples 4 to 20 of 24 from the centre
    slope = middle / torch.arange(4, 20)
    assert float(slope.max() / slope.min()) < 1.1


def test_the_weighted_adjoint_is_nearly_the_inverse():
    k = golden_angle_radial(GRID, 60)
    x = GRID.points() - torch.tensor([4.0, -3.0, 0.0])
    image = torch.exp(-x.square().sum(-1) / 50).reshape(1, *GRID.shape).to(torch.complex64)
    geometry = KSpaceGeometry(k, 1, GRID)
    operator = KSpaceEncoding(geometry, GRID, None)
    back = operator.adjoint(operator.apply(image) * density_weights(geometry)[:, None])
    assert (back - image).norm() / image.norm() < 0.03


def test_frames_are_weighted_on_their_own():
    k = golden_angle_radial(GRID, 30)
    frame = np.repeat([0, 3], 15)
    together = density_weights(KSpaceGeometry(k, 1, GRID, frame=frame, frames=5))
    torch.testing.assert_close(together[15:], density_weights(KSpaceGeometry(k[15:], 1, GRID)))


def test_refuses_no_iteration():
    with pytest.raises(InputError, match="at least one iteration"):
        density_weights(KSpaceGeometry(golden_angle_radial(GRID, 3), 1, GRID), 0)
