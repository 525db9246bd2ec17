"""Signed distances to meshes of known shapes, and round trips mask -> distance -> mesh -> distance -> mask."""

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.mesh_distance import MeshDistance, check_closed, mesh_mask, mesh_signed_distance
from scanfield.fields.shape import field_mesh, mask_mesh, signed_distance, volume_mesh
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh


def grids() -> list[Grid]:
    turn = np.array([[1, 0, 0], [0, np.cos(0.5), -np.sin(0.5)], [0, np.sin(0.5), np.cos(0.5)]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn @ np.diag([1.2, -0.8, 1.0])
    oblique[:3, 3] = [-400, 110, 250]
    return [
        Grid((22, 24, 20), np.eye(4)),
        Grid((22, 24, 14), np.diag([-1.0, 1.0, 2.0, 1.0])),
        Grid((22, 30, 22), oblique),
    ]


def box() -> Mesh:
    """2 x 4 x 6 mm around the origin."""
    grid = Grid.centred((2, 2, 2), (2.0, 4.0, 6.0))
    index = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return Mesh(index @ grid.affine[:3, :3].T + grid.affine[:3, 3], faces)


def test_the_distance_to_a_box_is_exact() -> None:
    assert box().closed and box().volume_mm3 == pytest.approx(48.0)
    x = 8 * torch.rand(3000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 4
    beyond = x.abs() - torch.tensor([1.0, 2.0, 3.0])
    exact = beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0)
    torch.testing.assert_close(MeshDistance(box())(x), exact, rtol=0, atol=1e-12)


def test_the_sign_is_the_winding_number_on_a_bent_and_hollow_shape() -> None:
    """A torus around a ball: concave edges, two parts."""
    grid = Grid.centred((30, 30, 16), 1.0)
    x = grid.points().reshape(*grid.shape, 3)
    torus = ((x[..., :2].norm(dim=-1) - 10).square() + x[..., 2].square()).sqrt() - 3
    mesh = volume_mesh(torch.minimum(torus, x.norm(dim=-1) - 4), grid)
    assert (mesh.closed, mesh.components, mesh.genus) == (True, 2, 1)
    points = 28 * torch.rand(1500, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 14
    found = MeshDistance(mesh)(points)
    assert torch.equal(found < 0, torch.from_numpy(winding_number(mesh, points.numpy()) > 0.5))


def winding_number(mesh: Mesh, x: np.ndarray) -> np.ndarray:
    """Solid angles of all faces over 4 pi (van Oosterom and Strackee 1983)."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]][None] - x[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=-1) for v in (a, b, c))
    top = (a * np.cross(b, c)).sum(-1)
    bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return (2 * np.arctan2(top, bottom)).sum(axis=1) / (4 * np.pi)


@pytest.mark.parametrize("grid", grids())
def test_a_sphere_keeps_its_distance_through_its_mesh(grid: Grid) -> None:
    centre = torch.tensor(grid.centre_mm + 0.17, dtype=torch.float32)

    class Sphere(torch.nn.Module):
        def forward(self, x):
            return (x - centre).norm(dim=-1, keepdim=True) - 7.0

    mesh = field_mesh(Sphere(), grid)
    exact = Sphere()(grid.points()).reshape(grid.shape)
    found = mesh_signed_distance(mesh, grid)
    # A chord of the sphere lies up to h^2 / 8 R below it, h the diagonal of a cell.
    sagitta = float(np.square(grid.spacing_mm).sum()) / (8 * 7)
    assert float((found - exact).abs().max()) < 1.2 * sagitta


@pytest.mark.parametrize("grid", grids())
def test_a_mask_survives_the_way_through_distance_and_mesh(grid: Grid) -> None:
    """Blobs of half-resolved detail: the mesh of a mask, and of its signed distance, have the mask inside."""
    noise = torch.rand(1, 1, *(n // 4 + 1 for n in grid.shape), generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(noise, size=grid.shape, mode="trilinear")[0, 0]
    mask = smooth > 0.5
    mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    direct = mask_mesh(mask, grid)
    assert direct.closed
    assert torch.equal(mesh_mask(direct, grid), mask)
    distance = signed_distance(mask, grid)
    again = volume_mesh(distance, grid)
    check_closed(again)
    assert torch.equal(mesh_mask(again, grid), mask)
    # and the distance to that mesh is again the distance the mesh was made from, to half a voxel
    assert float((mesh_signed_distance(again, grid) - distance).abs().mean()) < 0.25 * max(grid.spacing_mm)


def test_the_precision_and_shape_of_the_points_are_kept() -> None:
    distance = MeshDistance(box())
    x = torch.zeros(2, 5, 3)
    assert distance(x).shape == (2, 5) and distance(x).dtype == torch.float32
    torch.testing.assert_close(distance(x), torch.full((2, 5), -1.0))


def test_what_is_not_closed_is_refused_with_the_reason() -> None:
    whole = box()
    with pytest.raises(InputError, match="3 of its edges belong to one face only"):
        MeshDistance(Mesh(whole.vertices, whole.faces[1:]))
    flipped = whole.faces.copy()
    flipped[0] = flipped[0, ::-1]
    with pytest.raises(InputError, match="disagree on their outer side"):
        check_closed(Mesh(whole.vertices, flipped))
    with pytest.raises(InputError, match="no faces"):
        check_closed(Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int)))
