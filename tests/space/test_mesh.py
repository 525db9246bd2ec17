"""Facts about meshes whose answers are known: a cube, a torus, spheres."""

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.space.mesh import Mesh


def cube(side: float = 2.0) -> Mesh:
    corners = side * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Mesh(corners, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]))


def torus(major: float = 10.0, minor: float = 3.0, n: int = 60, m: int = 40) -> Mesh:
    u, v = np.meshgrid(np.arange(n) * 2 * np.pi / n, np.arange(m) * 2 * np.pi / m, indexing="ij")
    ring = major + minor * np.cos(v)
    vertices = np.stack([ring * np.cos(u), ring * np.sin(u), minor * np.sin(v)], axis=-1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
    a, b = (i * m + j).ravel(), ((i + 1) % n * m + j).ravel()
    c, d = ((i + 1) % n * m + (j + 1) % m).ravel(), (i * m + (j + 1) % m).ravel()
    return Mesh(vertices, np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]))


def test_area_volume_and_topology_of_a_cube_and_a_torus() -> None:
    assert cube().area_mm2 == pytest.approx(24.0)
    assert cube().volume_mm3 == pytest.approx(8.0)
    assert (cube().closed, cube().euler_number, cube().components, len(cube().edges)) == (True, 2, 1, 18)
    ring = torus()
    assert ring.area_mm2 == pytest.approx(4 * np.pi**2 * 10 * 3, rel=0.01)
    assert ring.volume_mm3 == pytest.approx(2 * np.pi**2 * 10 * 9, rel=0.01)
    assert (ring.closed, ring.euler_number, ring.components) == (True, 0, 1)
    assert (cube().genus, ring.genus) == (0, 1)


def _edges_of(face: np.ndarray) -> np.ndarray:
    return np.stack([face, np.roll(face, -1)], axis=1)


def test_open_and_inconsistent_meshes_are_not_closed() -> None:
    whole = cube()
    opened = Mesh(whole.vertices, whole.faces[1:])
    assert not opened.closed
    assert sorted(map(tuple, opened.open_edges)) == sorted(map(tuple, np.sort(_edges_of(whole.faces[0]), axis=1)))
    assert len(whole.open_edges) == 0
    with pytest.raises(InputError, match="closed mesh has a genus"):
        _ = opened.genus
    flipped = whole.faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not Mesh(whole.vertices, flipped).closed
    assert not Mesh(whole.vertices, np.zeros((0, 3), dtype=int)).closed


def test_volume_does_not_depend_on_the_place_and_survives_reflection() -> None:
    transform = np.eye(4)
    transform[:3, :3] = np.diag([-1.0, 2.0, 1.0])
    transform[:3, 3] = [1e4, -2e4, 5.0]
    moved = cube().moved(transform)
    assert moved.volume_mm3 == pytest.approx(16.0, rel=1e-6)
    assert moved.closed


def test_parts_are_counted_and_the_largest_is_found() -> None:
    small, large = cube(1.0), cube(3.0)
    both = Mesh(np.concatenate([small.vertices, large.vertices + 10]), np.concatenate([small.faces, large.faces + 8]))
    assert both.components == 2 and both.euler_number == 4
    assert both.largest_component().volume_mm3 == pytest.approx(27.0)
    assert len(both.largest_component().vertices) == 8


def test_samples_are_uniform_by_area_and_normals_point_outwards() -> None:
    transform = np.diag([1.0, 1.0, 5.0, 1.0])
    box = cube().moved(transform)  # 2 x 2 x 10
    points, normals = box.sample(40_000, torch.Generator().manual_seed(0))
    assert points.shape == normals.shape == (40_000, 3)
    share = float((normals[:, 2].abs() > 0.5).float().mean())
    assert share == pytest.approx(8 / 88, abs=0.01)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(40_000))
    assert bool((((points - torch.tensor([1.0, 1.0, 5.0])) * normals).sum(-1) > 0.9).all())
    top = points[(normals[:, 2] > 0.5)]
    assert top[:, 0].mean() == pytest.approx(1.0, abs=0.05) and top[:, 0].var() == pytest.approx(4 / 12, abs=0.03)
    again, _ = box.sample(40_000, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)


def test_wrong_meshes_are_refused() -> None:
    with pytest.raises(InputError, match="refer to vertices"):
        Mesh(np.zeros((3, 3)), np.array([[0, 1, 3]]))
    with pytest.raises(InputError, match="NaN"):
        Mesh(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="needs vertices"):
        Mesh(np.zeros((3, 2)), np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="without area"):
        Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])).sample(5, torch.Generator())
