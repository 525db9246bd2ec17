import json

import numpy as np
import pytest

from scanfield.data.measurement import Acquisition
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry, consecutive_frames

VOLUME = Grid.centred((8, 6, 1), (2.0, 2.5, 5.0))


def trajectory(views=4, samples=5):
    k = np.random.default_rng(0).uniform(-0.19, 0.19, (views, samples, 3))
    k[..., 2] = 0
    return k


def test_shape_and_frames():
    geometry = KSpaceGeometry(trajectory(), 3, VOLUME)
    assert isinstance(geometry, Acquisition)
    assert geometry.shape == (4, 3, 5) and geometry.views == 4
    assert geometry.frame_of_view.tolist() == [0] * 4 and geometry.frame_count == 1
    assert KSpaceGeometry(trajectory(), 3, VOLUME, frame=np.array([0, 0, 2, 2])).frame_count == 3


def test_subset_keeps_the_numbers_of_frames():
    geometry = KSpaceGeometry(
        trajectory(), 1, VOLUME, time_s=np.arange(4.0), dwell_s=0.1, frame=np.array([0, 0, 1, 2]), frames=5
    )
    part = geometry.subset(np.array([2, 0]))
    assert part.frame_count == 5 and part.frame_of_view.tolist() == [1, 0] and part.time_s.tolist() == [2, 0]
    assert np.array_equal(part.trajectory, geometry.trajectory[[2, 0]])


def test_json_round_trip():
    geometry = KSpaceGeometry(trajectory(), 2, VOLUME, time_s=np.arange(4.0), frame=np.array([0, 0, 1, 1]), frames=4)
    again = KSpaceGeometry.from_json(json.loads(json.dumps(geometry.to_json())))
    assert np.array_equal(again.trajectory, geometry.trajectory) and again.to_json() == geometry.to_json()
    with pytest.raises(InputError, match="no complete k-space geometry"):
        KSpaceGeometry.from_json({"coils": 2})


def test_times_of_samples():
    geometry = KSpaceGeometry(trajectory(), 1, VOLUME, time_s=np.array([0.0, 1, 2, 3]), dwell_s=0.01)
    np.testing.assert_allclose(geometry.sample_times_s()[2], 2 + 0.01 * np.arange(5))
    with pytest.raises(InputError, match="when its views were taken"):
        KSpaceGeometry(trajectory(), 1, VOLUME).sample_times_s()


def test_world_axes_and_phase_centre():
    """The phase is zero at the centre of voxel n // 2, and turns with the volume."""
    turn = np.array([[0.0, -1, 0, 30], [1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
    geometry = KSpaceGeometry(trajectory(), 1, VOLUME.moved(turn))
    np.testing.assert_allclose(geometry.world_trajectory()[..., 1], geometry.trajectory[..., 0], atol=1e-12)
    np.testing.assert_allclose(geometry.world_trajectory()[..., 0], -geometry.trajectory[..., 1], atol=1e-12)
    centre = VOLUME.affine[:3, :3] @ [4, 3, 0] + VOLUME.affine[:3, 3]
    np.testing.assert_allclose(geometry.phase_centre_mm(), turn[:3, :3] @ centre + turn[:3, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajectory": trajectory()[0]}, "shape \\(views, samples, 3\\)"),
        ({"trajectory": trajectory() * np.nan}, "NaN"),
        ({"trajectory": trajectory() * 1.5}, "beyond the Nyquist frequency"),
        ({"trajectory": trajectory() + np.array([0, 0, 0.01])}, "single voxel"),
        ({"coils": 0}, "at least one coil"),
        ({"time_s": np.arange(3.0)}, "each of 4 views"),
        ({"dwell_s": 0.0}, "positive number of seconds"),
        ({"frame": np.array([0, 1])}, "each of 4 views"),
        ({"frame": np.array([0.5, 1, 2, 3])}, "whole number"),
        ({"frame": np.array([0, 1, 2, 3]), "frames": 3}, "frames 0..2"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(InputError, match=message):
        KSpaceGeometry(**{"trajectory": trajectory(), "coils": 2, "volume": VOLUME} | change)


def test_consecutive_frames():
    assert consecutive_frames(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.bincount(consecutive_frames(160, 20)).tolist() == [8] * 20
    with pytest.raises(InputError, match="cannot be cut"):
        consecutive_frames(3, 4)
