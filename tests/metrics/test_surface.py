"""Surface distances between concentric spheres."""

import numpy as np
import pytest
import torch
from skimage.measure import marching_cubes

from scanfield.metrics.surface import surface_distance
from scanfield.space.mesh import Mesh


def sphere(radius: float) -> Mesh:
    axis = np.linspace(-12, 12, 49)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    vertices, faces, _, _ = marching_cubes(np.sqrt(x**2 + y**2 + z**2) - radius, 0.0, spacing=(0.5,) * 3)
    return Mesh(vertices - 12, faces)


def test_concentric_spheres_are_their_difference_of_radii_apart() -> None:
    found = surface_distance(sphere(9.0), sphere(10.0), torch.Generator().manual_seed(0))
    assert found.chamfer_mm == pytest.approx(1.0, abs=0.02)
    assert found.hausdorff95_mm == pytest.approx(1.0, abs=0.05)
    assert found.hausdorff_mm == pytest.approx(1.0, abs=0.1)
    assert found.to_reference_mm == pytest.approx(found.from_reference_mm, abs=0.02)


def test_equal_surfaces_are_as_far_apart_as_two_samplings() -> None:
    found = surface_distance(sphere(10.0), sphere(10.0), torch.Generator().manual_seed(0))
    expected = 0.5 * np.sqrt(
        4 * np.pi * 100 / 50_000
    )  # mean distance to the nearest of random points: 1 / (2 sqrt(density))
    assert found.chamfer_mm == pytest.approx(expected, rel=0.05)
    assert found.floor_mm == pytest.approx(expected, rel=0.05)


def test_a_missing_part_shows_in_one_direction() -> None:
    whole = sphere(10.0)
    half = Mesh(whole.vertices, whole.faces[(whole.vertices[whole.faces][..., 2] > 0).all(axis=1)])
    found = surface_distance(half, whole, torch.Generator().manual_seed(0))
    assert found.to_reference_mm < 0.1 < 1.0 < found.from_reference_mm
