from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid
from scanfield.space.rays import Rays, clip, march


def turned_frame() -> np.ndarray:
    """A left-handed orthogonal frame with an offset."""
    matrix, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    frame = np.eye(4)
    frame[:3, :3] = matrix if np.linalg.det(matrix) < 0 else -matrix
    frame[:3, 3] = (4.0, -7.0, 1.0)
    return frame


BOX = (Axis("x", "mm", -10, 6), Axis("y", "mm", -3, 5), Axis("z", "mm", 0, 12))


def random_rays(count: int, seed: int = 0) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    origin = 30 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    target = 8 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    direction = target - origin
    return Rays(origin, direction / direction.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("frame", [None, turned_frame()], ids=["axis-aligned", "turned, left-handed"])
def test_clip_against_brute_force(frame):
    box = Domain(BOX, frame=frame)
    rays = random_rays(200)
    if frame is not None:
        aim = torch.tensor((np.array([-2.0, 1, 6]) - frame[:3, 3]) @ frame[:3, :3])  # the box's middle in the world
        rays = Rays(rays.origin + aim, rays.direction)
    near, far = clip(rays, box)
    t = torch.linspace(0, 150, 15001, dtype=torch.float64)
    x = rays.origin[:, None] + t[:, None] * rays.direction[:, None]
    inside = box.inside(x)
    hits = 0
    for k in range(200):
        found = t[inside[k]]
        if len(found) == 0:
            assert far[k] - near[k] < 0.011  # at most a corner grazed between two brute-force samples
        else:
            hits += 1
            assert abs(found[0] - near[k]) < 0.011 and abs(found[-1] - far[k]) < 0.011
    assert hits > 50


def test_a_source_inside_the_box_starts_at_zero():
    rays = Rays(torch.tensor([[0.0, 0, 5]]), torch.tensor([[1.0, 0, 0]]))
    near, far = clip(rays, Domain(BOX))
    assert near.item() == 0 and far.item() == 6


def test_a_box_behind_the_source_is_not_hit():
    rays = Rays(torch.tensor([[20.0, 0, 5]]), torch.tensor([[1.0, 0, 0]]))
    near, far = clip(rays, Domain(BOX))
    assert near.item() == far.item() == 0


@pytest.mark.parametrize(("y", "length"), [(4.9, 16.0), (5.0, 16.0), (5.1, 0.0), (-3.0, 16.0), (-3.1, 0.0)])
def test_rays_parallel_to_two_faces(y, length):
    rays = Rays(torch.tensor([[-50.0, y, 6]]), torch.tensor([[1.0, 0, 0]]))
    near, far = clip(rays, Domain(BOX))
    assert far.item() - near.item() == pytest.approx(length, abs=1e-5)


def test_directions_that_are_almost_parallel_stay_finite():
    for tilt in (0.0, -0.0, 1e-38, 1e-12, 1e-8, 1e-6):
        rays = Rays(torch.tensor([[-50.0, 0, 6]]), torch.tensor([[1.0, tilt, -tilt]]))
        near, far = clip(rays, Domain(BOX))
        assert far.item() - near.item() == pytest.approx(16.0, abs=1e-4)


def test_a_two_dimensional_box_is_endless_along_its_third_axis_and_never_infinite():
    flat = Domain(BOX[:2])
    along_z = Rays(torch.tensor([[0.0, 0, -50]]), torch.tensor([[0.0, 0, 1]]))
    near, far = clip(along_z, flat)
    assert near.item() == far.item() == 0
    slanted = Rays(torch.tensor([[-40.0, 0, -40]]), torch.tensor([[0.5**0.5, 0, 0.5**0.5]]))
    near, far = clip(slanted, flat)
    assert far.item() - near.item() == pytest.approx(16 * 2**0.5, rel=1e-5)


def test_march_is_the_midpoint_rule_in_mm():
    rays = Rays(torch.tensor([[-50.0, 0, 6], [-50.0, 99, 6]]), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    samples = march(rays, Domain(BOX), 4)
    torch.testing.assert_close(samples.x[0, :, 0], torch.tensor([-8.0, -4, 0, 4]))
    torch.testing.assert_close(samples.weight, torch.tensor([[4.0] * 4, [0.0] * 4]))
    assert torch.isfinite(samples.x).all()


def test_march_with_a_generator_is_stratified_and_unbiased():
    rays = Rays(torch.tensor([[-50.0, 0, 6]]).expand(4000, 3), torch.tensor([[1.0, 0, 0]]).expand(4000, 3))
    samples = march(rays, Domain(BOX), 4, torch.Generator().manual_seed(0))
    for k in range(4):
        low = -10 + 4 * k
        assert low <= samples.x[:, k, 0].min() and samples.x[:, k, 0].max() <= low + 4
    # integral of x^2 over -10..6 = (6^3 + 10^3) / 3; the midpoint rule with 4 samples would give 384
    integral = (samples.x[..., 0].square() * samples.weight).sum(-1)
    error = integral.std() / 4000**0.5
    assert abs(integral.mean() - 1216 / 3) < 4 * error


def test_the_length_of_a_ray_is_differentiable_in_its_pose():
    origin = torch.tensor([[-40.0, 1, 3]], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([[0.9, 0.1, 0.05]], dtype=torch.float64, requires_grad=True)

    def length(o, d):
        near, far = clip(Rays(o, d / d.norm(dim=-1, keepdim=True)), Domain(BOX, frame=None))
        return far - near

    assert torch.autograd.gradcheck(length, (origin, direction))


def gaussian_line_integral(rays: Rays, centre: torch.Tensor, sigma: float) -> torch.Tensor:
    """Integral of exp(-|x - c|^2 / (2 sigma^2)) along whole lines: sqrt(2 pi) sigma exp(-distance^2 / (2 sigma^2))."""
    to = centre - rays.origin
    distance2 = to.square().sum(-1) - (to * rays.direction).sum(-1).square()
    return (2 * np.pi) ** 0.5 * sigma * torch.exp(-distance2 / (2 * sigma**2))


@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
@pytest.mark.parametrize("count", [200, 333, 1000])
@pytest.mark.parametrize("left_handed", [False, True])
def test_the_line_integral_is_in_mm_whatever_the_box_its_scaling_and_the_count(scaling, count, left_handed):
    affine = np.eye(4)
    affine[:3, :3] = turned_frame()[:3, :3] * (1 if left_handed else -1) @ np.diag([1.0, 2.0, 4.0])
    affine[:3, 3] = (5.0, 6.0, -200.0)
    lattice = Grid((60, 50, 17), affine)
    box = Domain.of_grid(lattice, scaling=scaling, margin_mm=3.0)
    centre = torch.tensor(lattice.centre_mm)
    rays = random_rays(50)
    rays = Rays(rays.origin * 3 + centre, rays.direction)
    rays = Rays(
        rays.origin, torch.nn.functional.normalize(centre + random_rays(50, 1).direction * 4 - rays.origin, dim=-1)
    )
    samples = march(rays, box, count)
    values = torch.exp(-(samples.x - centre).square().sum(-1) / (2 * 5.0**2))
    found = (values * samples.weight).sum(-1)
    torch.testing.assert_close(found, gaussian_line_integral(rays, centre, 5.0), rtol=1e-3, atol=1e-4)
