"""Nearest points of triangles against brute force over a dense sampling, and in every region around one."""

import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.space.triangles import Triangles, closest_points

RIGHT = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("x", "point", "feature"),
    [
        ((0.2, 0.3, 0.7), (0.2, 0.3, 0.0), 0),
        ((0.4, -2.0, 1.0), (0.4, 0.0, 0.0), 1),
        ((1.0, 1.0, -1.0), (0.5, 0.5, 0.0), 2),
        ((-3.0, 0.6, 0.0), (0.0, 0.6, 0.0), 3),
        ((-1.0, -1.0, 2.0), (0.0, 0.0, 0.0), 4),
        ((3.0, 0.5, 0.0), (1.0, 0.0, 0.0), 5),
        ((0.1, 4.0, 0.0), (0.0, 1.0, 0.0), 6),
    ],
)
def test_every_region_of_a_triangle(x, point, feature):
    found, where = closest_points(np.array(x), RIGHT)
    np.testing.assert_allclose(found, point, atol=1e-12)
    assert where == feature


def test_segments_and_points_are_triangles_too():
    segment = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    for x, point in (((1.0, 1.0, 0.0), (1.0, 0, 0)), ((-1.0, 1.0, 0.0), (0, 0, 0)), ((5.0, 0.0, 1.0), (2.0, 0, 0))):
        np.testing.assert_allclose(closest_points(np.array(x), segment)[0], point, atol=1e-12)
    dot = np.ones((3, 3))
    np.testing.assert_allclose(closest_points(np.array([3.0, 1.0, 0.0]), dot)[0], 1.0)


def test_the_nearest_triangle_is_that_of_brute_force_also_among_very_different_sizes():
    generator = np.random.default_rng(0)
    centre = generator.uniform(-10, 10, (300, 1, 3))
    size = 10.0 ** generator.uniform(-3, 1.2, (300, 1, 1))  # 1e-3 to 16 mm
    corners = centre + size * generator.normal(size=(300, 3, 3))
    x = generator.uniform(-30, 30, (400, 3))
    found = Triangles(corners).nearest(x)
    every = np.linalg.norm(closest_points(x[:, None], corners[None].repeat(400, 0))[0] - x[:, None], axis=2)
    np.testing.assert_allclose(found.distance_mm, every.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.point - x, axis=1), found.distance_mm, rtol=1e-12)
    np.testing.assert_allclose(every[np.arange(400), found.triangle], found.distance_mm, rtol=1e-12)


def test_the_closest_point_beats_a_dense_sampling_of_the_triangle():
    generator = np.random.default_rng(1)
    weights = generator.dirichlet(np.ones(3), 4000)
    for _ in range(20):
        corners, x = generator.normal(size=(3, 3)), 2 * generator.normal(size=3)
        distance = np.linalg.norm(closest_points(x, corners)[0] - x)
        sampled = np.linalg.norm(weights @ corners - x, axis=1).min()
        assert distance <= sampled + 1e-12 and sampled - distance < 0.1


def test_no_triangles_are_refused():
    with pytest.raises(InputError, match="need triangles"):
        Triangles(np.zeros((0, 3, 3)))
