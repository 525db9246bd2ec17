"""Slices: moments of the point spread, poses that turn as they should, and boxes around what was measured."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.data.stacks import Stack
from scanfield.operators.base import SampledOperator, predict
from scanfield.operators.slices import (
    POSE_UNIT_MM,
    SliceOperator,
    SlicePoses,
    SliceState,
    box_grid,
    coverage,
    coverage_grid,
    normal_lattice,
    psf_sigma_mm,
)
from scanfield.space.grid import Grid


def poses(seed=0, count=3):
    matrices = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    turns = Rotation.random(count, random_state=seed).as_matrix()
    matrices[:, :3, :3] = torch.from_numpy(turns)
    matrices[:, :3, 3] = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * 50
    return matrices


def operator(count=64, draws="lattice", sigma=(0.6, 0.5, 1.7)):
    pose = SlicePoses(poses())
    generator = torch.Generator().manual_seed(1)
    local = torch.randn(12, 3, generator=generator) * torch.tensor([8.0, 8.0, 0.0])
    of = torch.arange(12) % 3
    return SliceOperator(of, local, torch.tensor(sigma).expand(3, 3), pose, count, draws), pose


def test_widths_are_those_of_the_scanner():
    sigma = psf_sigma_mm(torch.tensor([[1.0, 1.2]]), torch.tensor([4.0]))
    half = 2 * math.sqrt(2 * math.log(2)) * sigma[0]
    assert half.tolist() == pytest.approx([1.2067, 1.2067 * 1.2, 4.0], rel=1e-6)


@pytest.mark.parametrize("count", [6, 7, 16, 33, 256])
def test_the_lattice_has_the_moments_of_a_normal_distribution(count):
    u = normal_lattice(count).double()
    assert u.shape == (count, 3)
    assert u.mean(0).abs().max() < 1e-6
    assert torch.allclose(u.T @ u / count, torch.eye(3, dtype=torch.float64), atol=1e-5)
    third = torch.einsum("ni,nj,nk->ijk", u, u, u) / count
    assert third.abs().max() < 1e-5
    assert normal_lattice(1).eq(0).all()


def test_the_mean_over_a_fixed_lattice_is_exact_for_quadratics():
    """E (w x)^2 = (w m)^2 + w^T C w with the slice's covariance turned into the world."""
    op, pose = operator()
    assert isinstance(op, SampledOperator) and op.shape == (12,)
    w = torch.tensor([0.3, -0.7, 0.2])
    found = predict(lambda x: (x @ w).square()[..., None], op, torch.arange(12))
    matrix = pose()[op.slice_index]
    middle = torch.einsum("mij,mj->mi", matrix[:, :, :3], op.local_mm) + matrix[:, :, 3]
    covariance = matrix[:, :, :3] @ torch.diag(torch.tensor([0.36, 0.25, 2.89])) @ matrix[:, :, :3].mT
    assert torch.allclose(found, (middle @ w).square() + w @ covariance @ w, rtol=1e-4)


@pytest.mark.parametrize("draws", ["lattice", "independent"])
def test_random_points_have_the_mean_of_the_fixed_ones(draws):
    op, _ = operator(count=4096, draws=draws)
    index = torch.arange(12)
    f = lambda x: torch.cos(x.sum(-1, keepdim=True) / 5)  # noqa: E731
    fixed, random = predict(f, op, index), predict(f, op, index, torch.Generator().manual_seed(3))
    assert (fixed - random).abs().max() < (0.01 if draws == "lattice" else 0.05)


def test_a_shifted_lattice_varies_less_than_independent_points():
    f = lambda x: torch.cos(x.sum(-1, keepdim=True) / 5)  # noqa: E731
    spread = {}
    for draws in ("lattice", "independent"):
        op, _ = operator(count=16, draws=draws)
        found = [predict(f, op, torch.arange(12), torch.Generator().manual_seed(k)) for k in range(40)]
        spread[draws] = float(torch.stack(found).detach().std(dim=0).mean())
    assert spread["lattice"] < 0.35 * spread["independent"]


def test_points_are_drawn_by_the_generator_alone():
    op, _ = operator()
    a, b, c = (op.samples(torch.arange(12), torch.Generator().manual_seed(k)).x for k in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_corrections_translate_before_they_rotate():
    """T = T_0 E, E(p) = exp(w) (p + t): NeSVoR's order."""
    initial = poses()
    pose = SlicePoses(initial).double()
    assert torch.allclose(pose.matrices(), initial, atol=1e-5)
    w, t = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([4.0, 1.0, -2.0], dtype=torch.float64)
    with torch.no_grad():
        pose.rotation += w
        pose.shift += t / POSE_UNIT_MM
    turn = torch.from_numpy(Rotation.from_rotvec(w.numpy()).as_matrix())
    p = torch.tensor([3.0, 5.0, 0.0], dtype=torch.float64)
    expected = initial[:, :3, :3] @ (turn @ (p + t)) + initial[:, :3, 3]
    found = pose.matrices()[:, :3, :3] @ p + pose.matrices()[:, :3, 3]
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(pose.correction()[1], t.expand(3, 3))


def test_poses_are_found_by_gradient():
    op, pose = operator()
    x = op.samples(torch.arange(12)).x
    (x * torch.linspace(-1, 1, 3)).sum().backward()
    assert pose.rotation.grad.abs().sum() > 0 and pose.shift.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(
        lambda w, t: _moved(w, t),
        (torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 3).double().requires_grad_()),
    )


def _moved(w, t):
    from torch.func import functional_call

    pose = SlicePoses(poses(count=2)).double()
    return functional_call(pose, {"rotation": w, "shift": t}, ())


@pytest.mark.parametrize("bad", [torch.diag(torch.tensor([-1.0, 1, 1, 1])), torch.diag(torch.tensor([2.0, 2, 2, 1]))])
def test_mirrored_or_scaled_poses_are_a_programming_error(bad):
    with pytest.raises(ValueError, match="rigid and proper"):
        SlicePoses(bad[None])


def stack(shape=(10, 12, 6), spacing=(1.0, 1.5, 4.0), thickness=4.0):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (20.0, -30.0, 5.0)
    values = torch.zeros(shape)
    values[2:-2, 3:-3, 1:-1] = 1.0
    return Stack(Scan(values, Grid(shape, affine), mask=values > 0), thickness)


def test_coverage_is_the_volume_of_the_slices():
    data = slice_set([stack()])
    grid = box_grid(data.world(), 1.0, 6.0)
    assert grid.spacing_mm == (1.0, 1.0, 1.0)
    covered = coverage(data, data.initial[:, :3].float(), grid)
    volume = float(covered.sum()) * grid.voxel_volume_mm3
    assert volume == pytest.approx(6 * 1.0 * 6 * 1.5 * 4 * 4.0, rel=0.25)
    centre = grid.to_world(covered.nonzero().double()).mean(0)
    assert torch.allclose(centre, data.world().double().mean(0), atol=0.5)


def test_boxes_hold_all_points_and_their_margin():
    x = torch.tensor([[0.0, 0, 0], [10.3, 4.0, 0.0]])
    grid = box_grid(x, 0.8, 3.0)
    corners = grid.corners_mm()
    assert (corners.min(0) <= -3.0 + 1e-9).all() and (corners.max(0) >= np.array([13.3, 7.0, 3.0]) - 1e-5).all()
    large = Grid((400, 300, 200), np.diag([0.5, 0.5, 0.5, 1.0]))
    assert coverage_grid(grid) is grid and coverage_grid(large).size < 1.2e6


def test_a_slice_is_unsound_by_its_weight_or_by_its_scale():
    eye = torch.eye(4).double().repeat(4, 1, 1)
    state = SliceState(eye, torch.tensor([1.2, 0.36, 1.2, 2.4]), torch.tensor([1.0, 1.0, 0.1, 0.5]))
    torch.testing.assert_close(state.soundness(), torch.tensor([1.0, 0.3, 0.1, 0.25]))
