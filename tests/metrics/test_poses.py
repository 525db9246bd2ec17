"""Pose errors of known perturbations, and that the gauge does not count."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.metrics.poses import gauge, pose_errors


def rigid(rotvec, shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = shift
    return torch.from_numpy(matrix)


def poses(n=20, seed=0):
    draws = np.random.default_rng(seed)
    return torch.stack([rigid(draws.normal(0, 0.8, 3), draws.normal(0, 30, 3)) for _ in range(n)])


def test_moving_everything_together_is_no_error():
    truth, g = poses(), rigid([0.4, -1.1, 0.3], [100.0, -50, 20])
    errors = pose_errors(g @ truth, truth)
    assert torch.allclose(errors.gauge, g, atol=1e-9)
    assert max(errors.summary().values()) < 1e-6
    assert list(errors.summary()) == ["rotation_deg", "translation_mm", "displacement_mm"]


def test_errors_do_not_depend_on_the_gauge():
    draws = np.random.default_rng(3)
    truth = poses()
    noisy = torch.stack([t @ rigid(draws.normal(0, 0.05, 3), draws.normal(0, 2, 3)) for t in truth])
    a = pose_errors(noisy, truth)
    b = pose_errors(rigid([0.2, 0.5, -2.0], [9.0, 8, 7]) @ noisy, rigid([-1.0, 0.5, 0.1], [1.0, 2, 3]) @ truth)
    for name in a.summary():
        assert torch.allclose(vars(a)[name], vars(b)[name], atol=1e-9)


def test_two_opposite_errors_are_what_they_are():
    """Half of the slices turned by +5 degrees about the normal, half by -5: nothing of it is a common motion."""
    truth = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    truth[:, 2, 3] = torch.tensor([-10.0, 10, 0, 0, -10, 10])
    turn = np.radians(5.0)
    sign = [1, 1, 1, -1, -1, -1]
    estimated = torch.stack([t @ rigid([0, 0, s * turn]) for t, s in zip(truth, sign, strict=True)])
    errors = pose_errors(estimated, truth, radius_mm=30.0)
    assert torch.allclose(errors.rotation_deg, torch.full((6,), 5.0, dtype=torch.float64))
    assert float(errors.translation_mm.max()) < 1e-9
    expected = 2 * np.sin(turn / 2) * 30.0 * np.sqrt(4 / 5)  # four of five points move
    assert torch.allclose(errors.displacement_mm, torch.full((6,), expected, dtype=torch.float64))


def test_one_lost_slice_of_many_has_nearly_all_of_the_error():
    truth = poses(200)
    estimated = truth.clone()
    estimated[7] = estimated[7] @ rigid([0, 0, 0], [0.0, 3, 4])
    errors = pose_errors(estimated, truth)
    assert float(errors.translation_mm[7]) == pytest.approx(5.0, rel=0.02)
    assert float(errors.translation_mm.median()) < 0.1


def test_small_and_large_angles():
    for degrees in (1e-6, 0.5, 90.0, 179.9):
        # about the normal at opposite slices, so that the gauge stays the identity
        truth = torch.stack([rigid([0, 0, 0], [0, 0, z]) for z in (-1.0, 1.0)])
        half = np.radians(degrees) / 2
        estimated = torch.stack([truth[0] @ rigid([0, 0, half]), truth[1] @ rigid([0, 0, -half])])
        found = pose_errors(estimated, truth).rotation_deg.tolist()
        assert found == pytest.approx([degrees / 2] * 2, rel=1e-4)


def test_what_is_refused():
    with pytest.raises(InputError, match="got 0 and 0"):
        gauge(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4))
    with pytest.raises(InputError, match="radius"):
        gauge(poses(), poses(), radius_mm=0.0)
