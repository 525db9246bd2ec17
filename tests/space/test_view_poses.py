"""Motion between views: conventions against moved phantoms, gradients, and a known motion found again."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.fields.image import ImageField
from scanfield.operators.base import predict
from scanfield.operators.rays import LineIntegral
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.pose import spatial_directions
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.space.view_poses import ViewPoses

VIEWS = 12


def scanner(beam, grid, rows=1, bins=40, frame=None):
    sizes = {} if beam == "parallel" else {"source_to_axis_mm": 200.0, "source_to_detector_mm": 300.0}
    pitch = 3.0 if beam == "parallel" else 4.5
    angles = np.arange(VIEWS) * (180.0 if beam == "parallel" else 360.0) / VIEWS
    extra = {} if frame is None else {"frame": frame}
    return ProjectionGeometry(beam, angles, Detector("flat", (rows, bins), (3.0, pitch)), grid, **sizes, **extra)


def moved(ellipsoid, centre, angle, shift):
    """The ellipsoid turned about `centre` (about z) and shifted."""
    c, s = math.cos(angle), math.sin(angle)
    offset = np.asarray(ellipsoid.centre_mm) - centre
    place = np.array([c * offset[0] - s * offset[1], s * offset[0] + c * offset[1], offset[2]]) + centre + shift
    return replace(ellipsoid, centre_mm=tuple(place), rotation_deg=ellipsoid.rotation_deg + math.degrees(angle))


@pytest.mark.parametrize("beam", ["parallel", "fan", "cone"])
def test_rays_with_poses_see_the_moved_object(beam):
    """Exact: line integrals through a moved phantom are those of the resting one along posed rays."""
    geometry = scanner(beam, Grid.centred((24, 24, 6), 3.0), rows=6)
    body = Ellipsoid((6.0, -4.0, 1.0), (14.0, 8.0, 6.0), rotation_deg=20.0)
    poses = ViewPoses(VIEWS, centre_mm=(3.0, 2.0, 0.0))
    draws = np.random.default_rng(0)
    angles, shifts = draws.uniform(-0.2, 0.2, VIEWS), draws.uniform(-5, 5, (VIEWS, 3))
    with torch.no_grad():
        poses.rotation[:, 2] = torch.tensor(angles)
        poses.translation.copy_(torch.tensor(shifts))
    each = geometry.count // VIEWS
    for view in range(VIEWS):
        index = torch.arange(view * each, (view + 1) * each)
        there = Phantom((moved(body, np.array([3.0, 2.0, 0.0]), angles[view], shifts[view]),))
        expected = there.line_integrals(geometry.rays(index, dtype=torch.float64))
        found = Phantom((body,)).line_integrals(geometry.rays(index, dtype=torch.float64, pose=poses()))
        assert float(expected.max()) > 0.2
        assert torch.allclose(found, expected, atol=1e-4)


def test_no_motion_changes_nothing():
    geometry = scanner("cone", Grid.centred((8, 8, 8), 3.0), rows=5)
    index = torch.arange(geometry.count)
    plain, posed = geometry.rays(index), geometry.rays(index, pose=ViewPoses(VIEWS)())
    assert torch.equal(plain.origin, posed.origin) and torch.equal(plain.direction, posed.direction)


def test_gradients_with_respect_to_poses():
    grid = Grid.centred((10, 10, 10), 4.0)
    geometry = scanner("cone", grid, rows=8)
    smooth = torch.exp(-grid.points().square().sum(-1) / 200).reshape(grid.shape)
    field = ImageField(smooth, grid, order=3)
    index = torch.tensor([15, 330, 1000, 2111])
    generator = torch.Generator().manual_seed(0)
    w = 0.05 * torch.randn(VIEWS, 3, dtype=torch.float64, generator=generator)
    t = torch.randn(VIEWS, 3, dtype=torch.float64, generator=generator)

    def integrals(rotation, translation):
        poses = ViewPoses(VIEWS).double()
        matrix = torch.func.functional_call(poses, {"rotation": rotation, "translation": translation}, ())
        rays = geometry.rays(index, dtype=torch.float64, pose=matrix)
        place = torch.linspace(150, 250, 40, dtype=torch.float64)
        return field(rays.origin[:, None] + place[:, None] * rays.direction[:, None]).sum(dim=(1, 2))

    assert torch.autograd.gradcheck(integrals, (w.requires_grad_(), t.requires_grad_()))


def test_views_of_a_group_share_a_pose_and_a_slice_has_three_numbers():
    frame = np.eye(4)
    frame[:3, :3] = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    grid = Grid.centred((8, 8, 1), 2.0).moved(frame)
    group = torch.arange(VIEWS) // 3
    poses = ViewPoses(VIEWS, directions=spatial_directions(Domain.of_grid(grid)), group=group)
    assert poses.rotation.shape == (4, 1) and poses.translation.shape == (4, 2)
    with torch.no_grad():
        poses.rotation.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
        poses.translation.uniform_(-3, 3, generator=torch.Generator().manual_seed(2))
    matrices = poses()
    assert matrices.shape == (VIEWS, 4, 4)
    assert torch.equal(matrices[0], matrices[2]) and not torch.equal(matrices[2], matrices[3])
    normal = torch.tensor(frame[:3, 2], dtype=torch.float32)
    assert torch.allclose(matrices[:, :3, :3] @ normal, normal.expand(VIEWS, 3), atol=1e-6)
    assert torch.allclose(matrices[:, :3, 3] @ normal, torch.zeros(VIEWS), atol=1e-5)


@pytest.mark.parametrize(("beam", "planar"), [("fan", True), ("cone", False)])
def test_a_known_motion_is_found_by_descent_on_the_residual(beam, planar):
    """The field is known; every view of a cone moved by up to 3 degrees and 3 mm, views of a fan in groups: a single
    line of detector pixels may fit another pose as well."""
    depth = 1 if planar else 12
    grid = Grid.centred((32, 32, depth), 3.0)
    x = grid.points()
    blobs = torch.tensor([[12.0, 5.0, 4.0], [-9.0, 14.0, -6.0], [-6.0, -15.0, 3.0], [18.0, -12.0, -5.0]])
    blobs = blobs * torch.tensor([1.0, 1.0, 0.0 if planar else 1.0])
    values = torch.exp(-(x[:, None] - blobs).square().sum(-1) / 80).sum(dim=1)
    field = ImageField(0.02 * values.reshape(grid.shape), grid)
    geometry = replace(scanner(beam, grid, rows=depth, bins=48), source_to_axis_mm=120.0, source_to_detector_mm=180.0)
    directions = spatial_directions(Domain.of_grid(grid)) if planar else None
    if not planar:
        geometry = geometry.subset(np.arange(0, VIEWS, 4))
    group = torch.arange(VIEWS) % 4 if planar else None
    true, poses = (ViewPoses(geometry.views, directions=directions, group=group) for _ in range(2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        true.rotation.uniform_(-math.radians(3), math.radians(3), generator=generator)
        true.translation.uniform_(-3, 3, generator=generator)
    domain, index = Domain.of_grid(grid, margin_mm=6.0), torch.arange(0, geometry.count, 1 if planar else 2)
    with torch.no_grad():
        measured = predict(field, LineIntegral(geometry, domain, 40, poses=true), index)
    rays = LineIntegral(geometry, domain, 40, poses=poses)

    def residual():
        poses.zero_grad()
        loss = 1e4 * (predict(field, rays, index) - measured).square().mean()
        loss.backward()
        return loss

    # Adam first: the first step of L-BFGS is long enough to turn a view into a wrong optimum.
    near = torch.optim.Adam([{"params": [poses.rotation], "lr": 2e-3}, {"params": [poses.translation], "lr": 0.1}])
    for _ in range(60):
        near.step(residual)
    exact = torch.optim.LBFGS(poses.parameters(), max_iter=80, line_search_fn="strong_wolfe", tolerance_change=1e-12)
    exact.step(residual)
    with torch.no_grad():
        turned, shifted = torch.rad2deg(poses.rotation - true.rotation), poses.translation - true.translation
        before = torch.rad2deg(true.rotation).abs().max(), true.translation.abs().max()
    assert min(map(float, before)) > 2
    assert float(turned.abs().max()) < 0.1
    assert float(shifted.abs().max()) < 0.1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="orthonormal"):
        ViewPoses(3, directions=np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    with pytest.raises(ValueError, match="without a gap"):
        ViewPoses(3, group=torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="without a gap"):
        ViewPoses(3, group=torch.tensor([0, 1]))
