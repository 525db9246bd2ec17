"""Distances, points and meshes of shapes with known answers, on oblique, anisotropic and left-handed grids."""

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError, ScanfieldError
from scanfield.fields import shape
from scanfield.space.grid import Grid

RADIUS = 10.0


def grids() -> list[Grid]:
    angle = 0.5
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affines = [np.eye(4), np.diag([-1.0, 1.0, 2.0, 1.0]), np.eye(4)]
    affines[2][:3, :3] = turn @ np.diag([1.2, -0.8, 1.0])
    affines[2][:3, 3] = [-40, 10, 25]
    return [Grid((30, 36, 30), affine) for affine in affines]


def sphere(grid: Grid) -> torch.Tensor:
    """Signed distance to a sphere in the middle of the grid, off the lattice."""
    centre = torch.tensor(grid.centre_mm + 0.17)
    return ((grid.points().double() - centre).norm(dim=-1) - RADIUS).reshape(grid.shape).float()


class Sphere(torch.nn.Module):
    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(grid.centre_mm + 0.17, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.centre).norm(dim=-1, keepdim=True) - RADIUS


@pytest.mark.parametrize("grid", grids())
def test_signed_distance_of_a_sphere_is_right_within_half_a_voxel(grid: Grid) -> None:
    truth = sphere(grid)
    found = shape.signed_distance(truth < 0, grid)
    assert torch.equal(found < 0, truth < 0)
    near = truth.abs() < 6
    error = (found - truth)[near]
    assert float(error.square().mean().sqrt()) < 0.35 * max(grid.spacing_mm)
    assert abs(float(error.mean())) < 0.2 * max(grid.spacing_mm)


def test_signed_distance_beside_a_flat_face_is_half_a_voxel() -> None:
    grid = Grid((6, 6, 6), np.diag([3.0, 1.0, 1.0, 1.0]))
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[:3] = True
    distance = shape.signed_distance(mask, grid)
    torch.testing.assert_close(distance[:, 3, 3], torch.tensor([-1.5, -2.5, -1.5, 1.5, 4.5, 7.5]))
    slice_ = Grid((5, 5, 1), np.diag([2.0, 2.0, 9.0, 1.0]))
    flat = torch.zeros(slice_.shape, dtype=torch.bool)
    flat[2, 2, 0] = True
    assert float(shape.signed_distance(flat, slice_)[2, 2, 0]) == pytest.approx(-1.0)  # not through the slice


@pytest.mark.parametrize("grid", grids())
def test_meshes_of_a_sphere_are_closed_and_face_outwards(grid: Grid) -> None:
    truth = sphere(grid)
    for mesh, tolerance in ((shape.mask_mesh(truth < 0, grid), 0.03), (shape.field_mesh(Sphere(grid), grid), 0.015)):
        assert (mesh.closed, mesh.euler_number, mesh.components) == (True, 2, 1)
        assert mesh.volume_mm3 == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=tolerance)
    smooth = shape.field_mesh(Sphere(grid), grid)
    assert smooth.area_mm2 == pytest.approx(4 * np.pi * RADIUS**2, rel=0.02)
    radius = np.linalg.norm(smooth.vertices - (grid.centre_mm + 0.17), axis=1)
    assert np.abs(radius - RADIUS).max() < 0.1
    bigger = shape.field_mesh(Sphere(grid), grid, level=2.0)
    assert bigger.volume_mm3 == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.015)


def normal_error_deg(mesh, centre: np.ndarray) -> float:
    """Mean angle between faces and the sphere's own normals."""
    vectors = mesh.face_vectors_mm2
    outwards = mesh.vertices[mesh.faces].mean(axis=1) - centre
    cosine = (vectors * outwards).sum(1) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(outwards, axis=1) + 1e-12)
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean())


@pytest.mark.parametrize("grid", grids())
def test_smooth_meshes_of_masks_have_no_staircase_and_stay_where_they_are(grid: Grid) -> None:
    mask = sphere(grid) < 0
    rough, smooth = shape.mask_mesh(mask, grid), shape.smooth_mask_mesh(mask, grid)
    assert (smooth.closed, smooth.euler_number, smooth.components) == (True, 2, 1)
    centre = grid.centre_mm + 0.17
    assert normal_error_deg(smooth, centre) < 0.5 * normal_error_deg(rough, centre)
    assert normal_error_deg(smooth, centre) < 8
    moved = grid.to_voxel(torch.from_numpy(smooth.vertices - rough.vertices) + torch.tensor(grid.affine[:3, 3]))
    assert float(moved.abs().max()) <= 0.4 + 1e-9
    assert smooth.volume_mm3 == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03)
    assert smooth.area_mm2 == pytest.approx(4 * np.pi * RADIUS**2, rel=0.03)
    assert abs(smooth.area_mm2 / rough.area_mm2 - 1) > 0.03  # the staircase's area is too large


def test_a_single_voxel_and_a_thin_line_survive_smoothing() -> None:
    grid = Grid((7, 7, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[1, 1, 1] = mask[4, 4, 1:6] = True
    mesh = shape.smooth_mask_mesh(mask, grid)
    assert (mesh.closed, mesh.components, mesh.euler_number) == (True, 2, 4)
    assert mesh.volume_mm3 > 0


def test_objects_at_the_border_are_closed() -> None:
    grid = Grid((5, 5, 5), np.eye(4))
    mesh = shape.mask_mesh(torch.ones(grid.shape, dtype=torch.bool), grid)
    assert mesh.closed and mesh.volume_mm3 == pytest.approx(125.0, rel=0.07)
    assert shape.signed_distance(torch.ones(grid.shape, dtype=torch.bool), grid)[2, 2, 2] == -2.5


@pytest.mark.parametrize("grid", grids())
def test_oriented_points_lie_on_the_surface_with_outward_normals(grid: Grid) -> None:
    points, normals = shape.oriented_points(sphere(grid) < 0, grid, 5000, torch.Generator().manual_seed(0))
    offset = points.double() - torch.tensor(grid.centre_mm + 0.17)
    assert float((offset.norm(dim=-1) - RADIUS).abs().mean()) < 0.3 * max(grid.spacing_mm)
    cosine = (normals * offset / offset.norm(dim=-1, keepdim=True)).sum(-1)
    angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    assert float(angle.mean()) < 4.0  # the staircase's own faces are off by more than 20 degrees
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(5000))


def test_a_thin_sheet_keeps_normals() -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[2:10, 2:10, 5] = True
    _, normals = shape.oriented_points(mask, grid, 500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(500))


def test_crops_keep_the_world() -> None:
    grid = grids()[2]
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[0:4, 10:14, 20:22] = True
    part, small = shape.crop_to_object(mask, grid, margin_mm=3.0)
    assert int(part.sum()) == int(mask.sum())
    assert small.shape == (4 + 2 * 3, 4 + 2 * 4, 2 + 2 * 3)  # spacings 1.2, 0.8 and 1 mm
    whole, cropped = shape.mask_mesh(mask, grid), shape.mask_mesh(part, small)
    np.testing.assert_allclose(np.sort(cropped.vertices, axis=0), np.sort(whole.vertices, axis=0), atol=1e-4)


def test_the_nearest_voxel_is_found_also_beyond_the_grid() -> None:
    grid = grids()[2]
    values = torch.arange(grid.size, dtype=torch.float32).reshape(grid.shape)
    assert torch.equal(shape.at_nearest_voxel(values, grid, grid.points()), values.flatten())
    far = torch.tensor(grid.affine[:3] @ [-9.0, 3.3, 99.0, 1.0]).float()
    assert float(shape.at_nearest_voxel(values, grid, far)) == float(values[0, 3, 29])


def test_a_field_without_a_surface_says_its_range() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    with pytest.raises(ScanfieldError, match=r"does not cross 0 .* \[2, 5\]"):
        shape.volume_mesh(torch.linspace(2, 5, 64).reshape(4, 4, 4), grid)


def test_masks_that_are_none_are_refused() -> None:
    grid, flat = Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 1), np.eye(4))
    with pytest.raises(InputError, match="empty"):
        shape.signed_distance(torch.zeros(grid.shape, dtype=torch.bool), grid)
    with pytest.raises(InputError, match="does not fit"):
        shape.mask_mesh(torch.ones((4, 4, 5), dtype=torch.bool), grid)
    with pytest.raises(InputError, match="needs a volume"):
        shape.mask_mesh(torch.ones(flat.shape, dtype=torch.bool), flat)
    with pytest.raises(InputError, match="got 3 different values"):
        shape.object_mask(Scan((torch.arange(64) % 3).reshape(4, 4, 4), grid))
    values = torch.zeros(grid.shape)
    values[1:3, 1:3, 1:3] = 255
    assert int(shape.object_mask(Scan(values, grid)).sum()) == 8
