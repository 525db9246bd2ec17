import math

import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.operators.trajectories import cartesian, golden_angle_radial, k_max, random_lines, spiral
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

GRID = Grid.centred((16, 12, 1), (2.0, 2.5, 5.0))


def test_spokes_pass_the_centre_a_golden_angle_apart():
    k = golden_angle_radial(GRID, 5)
    assert k.shape == (5, 32, 3) and not k[:, 16].any() and not k[..., 2].any()
    angle = np.degrees(np.arctan2(k[:, -1, 1], k[:, -1, 0]))
    step = np.mod(np.diff(angle), 360)
    np.testing.assert_allclose(step, 111.246, atol=1e-3)
    assert np.linalg.norm(k, axis=-1).max() == pytest.approx(k_max(GRID)) == pytest.approx(0.2)
    assert golden_angle_radial(GRID, 2, 9).shape == (2, 9, 3)


@pytest.mark.parametrize("make", [lambda: golden_angle_radial(GRID, 7), lambda: spiral(GRID, 7, 200)])
def test_they_stay_within_the_nyquist_box(make):
    KSpaceGeometry(make(), 1, GRID)


def test_spirals_reach_from_the_centre_to_k_max_with_turns_one_field_of_view_apart():
    k = spiral(GRID, 4, 400)
    radius = np.linalg.norm(k[0], axis=-1)
    assert radius[0] == 0 and radius[-1] == pytest.approx(k_max(GRID)) and (np.diff(radius) > 0).all()
    winding = np.unwrap(np.arctan2(k[0, 1:, 1], k[0, 1:, 0]))
    per_turn = (radius[-1] - radius[1]) / ((winding[-1] - winding[0]) / (2 * math.pi))
    assert per_turn == pytest.approx(4 / 32.0)  # one of four interleaves, field of view 32 mm
    speed = np.linalg.norm(np.diff(k[0], axis=0), axis=-1)[50:]
    assert speed.max() < 1.2 * speed.min()
    assert np.array_equal(spiral(GRID, 2, 400, full=4), k[:2])


def test_cartesian_lines_lie_on_the_lattice():
    k = cartesian(GRID, np.array([6, 0]))
    np.testing.assert_allclose(k[0, :, 0] * 32, np.arange(16) - 8, atol=1e-12)
    np.testing.assert_allclose(k[:, 0, 1] * 30, [0, -6], atol=1e-12)


def test_random_lines_hold_the_centre_and_are_denser_there():
    counts = np.zeros(64)
    for seed in range(200):
        lines = random_lines(64, 16, np.random.default_rng(seed))
        assert len(np.unique(lines)) == 16 and {30, 31, 32, 33} <= set(lines.tolist())
        counts[lines] += 1
    assert counts[20:44].mean() > 3 * counts[[*range(10), *range(54, 64)]].mean() > 0
    assert random_lines(8, 8, np.random.default_rng(0)).tolist() == list(range(8))
    assert random_lines(8, 1, np.random.default_rng(0)).tolist() == [4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: golden_angle_radial(GRID, 0),
        lambda: golden_angle_radial(GRID, 3, 1),
        lambda: spiral(GRID, 0, 100),
        lambda: spiral(GRID, 3, 100, full=0),
        lambda: cartesian(GRID, np.array([12])),
        lambda: cartesian(GRID, np.array([], dtype=int)),
        lambda: random_lines(8, 9, np.random.default_rng(0)),
        lambda: random_lines(8, 0, np.random.default_rng(0)),
    ],
)
def test_refuses(make):
    with pytest.raises(InputError):
        make()
