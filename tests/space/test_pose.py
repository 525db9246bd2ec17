"""Poses against matrices, their inverses, and their derivatives, also at zero rotation."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.fields import calculus
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid
from scanfield.space.pose import Pose, centre_of_mass, rotation_matrix, spatial_directions


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oblique(shape: tuple[int, int, int], *, mirrored: bool = False) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix() @ np.diag([2.0, -1.0 if mirrored else 1.0, 3.0])
    affine[:3, 3] = (30.0, -80.0, 12.0)
    return Grid(shape, affine)


def disturbed(kind: str, directions: np.ndarray | None = None, seed: int = 3) -> Pose:
    pose = Pose(kind, centre_mm=(10.0, -20.0, 30.0), directions=directions).double()
    with torch.no_grad():
        for k, parameter in enumerate(pose.parameters()):
            parameter.copy_(random(len(parameter), seed=seed + k, scale=0.3))
    return pose


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-4, 0.0999, 0.1001, 1.0, 3.1, 7.0])
def test_rotations_equal_the_exponential_of_their_generator(size: float) -> None:
    vector = size * torch.nn.functional.normalize(random(4, 3), dim=-1)
    ours = rotation_matrix(vector)
    x, y, z = vector.unbind(-1)
    generator = torch.zeros(4, 3, 3, dtype=torch.float64)
    generator[:, 2, 1], generator[:, 0, 2], generator[:, 1, 0] = x, y, z
    torch.testing.assert_close(ours, torch.linalg.matrix_exp(generator - generator.mT), atol=1e-13, rtol=0)
    torch.testing.assert_close(ours @ ours.mT, torch.eye(3).double().expand(4, 3, 3), atol=1e-13, rtol=0)
    torch.testing.assert_close(rotation_matrix(vector.float()), ours.float(), atol=3e-6, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.0999, 0.1001, 2.0])
def test_rotations_have_two_derivatives_at_any_angle(size: float) -> None:
    vector = (size * torch.nn.functional.normalize(random(2, 3), dim=-1)).requires_grad_()
    assert torch.autograd.gradcheck(rotation_matrix, (vector,))
    assert torch.autograd.gradgradcheck(rotation_matrix, (vector,))


def test_a_new_pose_is_the_identity_bit_for_bit_and_learns_from_there() -> None:
    x = random(9, 3, scale=100.0).float()
    for kind in ("rigid", "similarity", "affine"):
        pose = Pose(kind)
        assert torch.equal(pose(x), x) and torch.equal(pose.matrix(), torch.eye(4))
        (pose(x) ** 2 * torch.tensor([1.0, 2, 3])).sum().backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in pose.parameters())
    far = Pose("affine", centre_mm=(500.0, -300.0, 200.0))
    torch.testing.assert_close(far(x), x, atol=1e-4, rtol=0)


def test_a_rigid_pose_keeps_distances_and_turns_about_its_centre() -> None:
    pose = disturbed("rigid")
    x = random(6, 3, scale=50.0)
    torch.testing.assert_close(torch.cdist(pose(x), pose(x)), torch.cdist(x, x))
    torch.testing.assert_close(pose(pose.centre), pose.centre + pose.translation)
    quarter = Pose("rigid", centre_mm=(1.0, 0.0, 0.0)).double()
    with torch.no_grad():
        quarter.rotation[2] = math.pi / 2
    expected = torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64)  # counterclockwise seen from +z
    torch.testing.assert_close(quarter(torch.tensor([2.0, 0.0, 5.0], dtype=torch.float64)), expected)


def test_a_similarity_scales_all_distances_alike_and_an_affine_map_by_rotation_scale_and_shear() -> None:
    x = random(6, 3, scale=50.0)
    pose = disturbed("similarity")
    factor = pose.log_scale.exp()
    torch.testing.assert_close(torch.cdist(pose(x), pose(x)), factor * torch.cdist(x, x))
    affine = disturbed("affine")
    shear = torch.eye(3, dtype=torch.float64)
    shear[0, 1], shear[0, 2], shear[1, 2] = affine.shear
    wanted = rotation_matrix(affine.rotation) @ torch.diag(affine.log_scale.exp()) @ shear
    torch.testing.assert_close(affine.linear(), wanted)
    assert float(torch.linalg.det(wanted).log().detach()) == pytest.approx(float(affine.log_scale.sum().detach()))


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("planar", [False, True])
def test_matrix_inverse_and_jacobian_agree_with_the_map(kind: str, planar: bool) -> None:
    directions = spatial_directions(Domain.of_grid(oblique((8, 8, 1)))) if planar else None
    pose = disturbed(kind, directions)
    x = random(5, 4, 3, scale=60.0)
    matrix = pose.matrix()
    torch.testing.assert_close(pose(x), x @ matrix[:3, :3].T + matrix[:3, 3])
    inverse = pose.inverse()
    torch.testing.assert_close(inverse(pose(x)), x)
    torch.testing.assert_close(inverse.matrix() @ matrix, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert inverse.inverse() is pose
    for part, linear in ((pose, matrix[:3, :3]), (inverse, torch.linalg.inv(matrix)[:3, :3])):
        value, first, second = calculus.hessian(part, x)
        torch.testing.assert_close(value, part(x))
        torch.testing.assert_close(first, linear.expand(5, 4, 3, 3))
        assert second.abs().max() == 0


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_gradients_in_parameters_and_points(kind: str) -> None:
    x = random(3, 3).requires_grad_()
    for pose in (disturbed(kind), Pose(kind, centre_mm=(1.0, 2.0, 3.0)).double()):
        names = [name for name, _ in pose.named_parameters()]

        def run(x: torch.Tensor, *values: torch.Tensor, pose: Pose = pose, names: list[str] = names) -> torch.Tensor:
            return torch.func.functional_call(pose, dict(zip(names, values, strict=True)), (x,))

        values = tuple(p.detach().clone().requires_grad_() for p in pose.parameters())
        assert torch.autograd.gradcheck(run, (x, *values))
        assert torch.autograd.gradgradcheck(run, (x, *values))


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_on_a_slice_points_stay_in_their_plane_and_the_normal_is_left_alone(kind: str, mirrored: bool) -> None:
    grid = oblique((8, 6, 1), mirrored=mirrored)
    directions = spatial_directions(Domain.of_grid(grid))
    pose = disturbed(kind, directions)
    counts = {name: len(p) for name, p in pose.named_parameters()}
    extra = {"rigid": {}, "similarity": {"log_scale": 1}, "affine": {"log_scale": 2, "shear": 1}}[kind]
    assert counts == {"rotation": 1, "translation": 2, **extra}
    normal = torch.tensor(np.cross(*directions))
    x = grid.points().double()
    torch.testing.assert_close((pose(x) - x) @ normal, torch.zeros(48).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(pose.linear() @ normal, normal, atol=1e-6, rtol=0)
    assert float((pose(x) - x).detach().norm(dim=-1).min()) > 0.1


def test_directions_of_a_domain_follow_its_scan() -> None:
    volume, plane = oblique((4, 5, 6)), oblique((4, 1, 6), mirrored=True)
    np.testing.assert_allclose(spatial_directions(Domain.of_grid(volume)), volume.directions.T, atol=1e-12)
    timed = Domain.of_grid(plane).with_axis(Axis("t", "s", 0, 1))
    np.testing.assert_allclose(spatial_directions(timed), plane.directions.T[[0, 2]], atol=1e-12)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("planar", [False, True])
def test_a_pose_continues_from_its_matrix(kind: str, planar: bool) -> None:
    directions = spatial_directions(Domain.of_grid(oblique((8, 8, 1)))) if planar else None
    pose = disturbed(kind, directions)
    again = Pose.of_matrix(pose.matrix().detach().numpy(), kind, centre_mm=(10.0, -20.0, 30.0), directions=directions)
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.double(), dict(pose.named_parameters())[name], atol=1e-5, rtol=0)
    elsewhere = Pose.of_matrix(pose.matrix().detach().numpy(), "affine", centre_mm=(-3.0, 0.0, 9.0))
    torch.testing.assert_close(elsewhere.double().matrix(), pose.matrix(), atol=1e-4, rtol=0)


def test_matrices_that_are_no_such_pose_are_refused() -> None:
    scale = np.diag([1.0, 1.1, 1.0, 1.0])
    with pytest.raises(InputError, match="not a rigid one"):
        Pose.of_matrix(np.diag([1.1, 1.1, 1.1, 1.0]), "rigid")
    with pytest.raises(InputError, match="not a similarity one"):
        Pose.of_matrix(scale, "similarity")
    with pytest.raises(InputError, match="mirrors or flattens"):
        Pose.of_matrix(np.diag([-1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="4x4 matrix"):
        Pose.of_matrix(np.full((4, 4), np.nan))
    shifted = np.eye(4)
    shifted[2, 3] = 1.0
    with pytest.raises(InputError, match="not an affine one within the slice"):
        Pose.of_matrix(shifted, directions=np.eye(3)[:2])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="three finite coordinates"):
        Pose(centre_mm=(0.0, np.inf, 0.0))
    for directions in (np.eye(3)[:1], 2 * np.eye(3), np.ones((2, 3)), np.eye(2)):
        with pytest.raises(InputError, match="orthonormal"):
            Pose(directions=directions)


def blob(grid: Grid, centre: torch.Tensor) -> torch.Tensor:
    square = (grid.points() - centre).square().sum(-1)
    return (-square / (2 * 3.0**2)).exp().reshape(grid.shape)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_centre_of_mass_is_in_the_world_and_ignores_the_background(mirrored: bool) -> None:
    grid = oblique((20, 40, 14), mirrored=mirrored)
    centre = torch.tensor(grid.centre_mm).float() + torch.tensor([1.0, -2.0, 0.5])
    image = blob(grid, centre)
    torch.testing.assert_close(centre_of_mass(image, grid).float(), centre, atol=0.05, rtol=0)
    hounsfield = 700 * image - 1000
    torch.testing.assert_close(centre_of_mass(hounsfield, grid).float(), centre, atol=0.05, rtol=0)
    hounsfield[0, 0, 0] = 3000.0
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[0, 0, 0] = False
    torch.testing.assert_close(centre_of_mass(hounsfield, grid, mask).float(), centre, atol=0.05, rtol=0)


def test_images_without_a_centre_of_mass_are_refused() -> None:
    grid = oblique((3, 4, 5))
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="constant"):
        centre_of_mass(torch.full((3, 4, 5), 7.0), grid)
    with pytest.raises(InputError, match="mask is empty"):
        centre_of_mass(values, grid, torch.zeros(3, 4, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="grid's shape"):
        centre_of_mass(values[:2], grid)


def test_aligning_takes_one_point_to_the_other_whatever_the_pose() -> None:
    fixed, moving = random(3, seed=1, scale=40.0), random(3, seed=2, scale=40.0)
    for pose in (Pose("rigid"), disturbed("affine")):
        pose.align(fixed, moving)
        torch.testing.assert_close(pose(fixed), moving, atol=1e-4, rtol=0)
    directions = spatial_directions(Domain.of_grid(oblique((8, 6, 1))))
    planar = disturbed("rigid", directions)
    planar.align(fixed, moving)
    torch.testing.assert_close(
        torch.tensor(directions) @ (planar(fixed) - moving), torch.zeros(2).double(), atol=1e-4, rtol=0
    )


def test_a_pose_registers_two_point_sets_by_gradient_descent() -> None:
    truth = disturbed("rigid")
    x = random(30, 3, scale=40.0) + truth.centre
    pose = Pose("rigid", centre_mm=(10.0, -20.0, 30.0)).double()
    optimiser = torch.optim.LBFGS(pose.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (pose(x) - truth(x).detach()).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(pose.matrix(), truth.matrix(), atol=1e-4, rtol=0)
