"""Deformation energies: zero where they must be, the published values elsewhere, and who they do not notice."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.losses import deformation

ON_JACOBIANS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    deformation.volume_change,
    deformation.folding,
    deformation.volume_barrier,
    deformation.hyperelastic,
    deformation.near_isometry,
    deformation.length_change,
    deformation.diffusion,
    deformation.divergence,
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(count: int, k: int) -> torch.Tensor:
    if k == 3:
        return torch.from_numpy(Rotation.random(count, random_state=0).as_matrix())
    angle = torch.linspace(0.1, 6.0, count, dtype=torch.float64)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2))


def identity(k: int, count: int = 5) -> torch.Tensor:
    return torch.eye(k, dtype=torch.float64).expand(count, k, k)


def near_identity(k: int, count: int = 6) -> torch.Tensor:
    return identity(k, count) + 0.2 * random(count, k, k)


@pytest.mark.parametrize("k", [2, 3])
def test_the_identity_costs_nothing(k: int) -> None:
    one = identity(k)
    for loss in (
        deformation.volume_change,
        deformation.folding,
        deformation.volume_barrier,
        deformation.hyperelastic,
        deformation.near_isometry,
    ):
        assert float(loss(one)) == 0.0
    for loss in (deformation.length_change, deformation.diffusion, deformation.divergence):
        assert float(loss(torch.zeros_like(one))) == 0.0
    assert float(deformation.area_change(identity(3))) == 0.0
    assert float(deformation.bending(torch.zeros(4, k, k, k))) == 0.0


@pytest.mark.parametrize("k", [2, 3])
def test_rotations_cost_nothing_but_length(k: int) -> None:
    turned = rotations(7, k)
    for loss in (deformation.volume_change, deformation.volume_barrier, deformation.near_isometry):
        assert float(loss(turned)) == pytest.approx(0.0, abs=1e-12)
    assert float(deformation.hyperelastic(turned, length=0.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(deformation.hyperelastic(turned)) > 0.1


@pytest.mark.parametrize("k", [2, 3])
def test_turning_the_result_or_the_world_changes_no_energy_that_says_so(k: int) -> None:
    j, r = near_identity(k, 7), rotations(7, k)
    turned_world = r @ j @ r.mT
    for loss in (deformation.volume_change, deformation.volume_barrier, deformation.near_isometry):
        torch.testing.assert_close(loss(r @ j), loss(j))
    for loss in ON_JACOBIANS:
        if loss is deformation.hyperelastic and k == 3:
            continue  # the area term sums over directions x_j, and the square of a positive part is no invariant
        torch.testing.assert_close(loss(turned_world), loss(j))
    if k == 3:
        torch.testing.assert_close(deformation.area_change(r @ j), deformation.area_change(j))
    second = random(7, k, k, k)
    turned = torch.einsum("nac,ncij,nbi,ndj->nabd", r, second, r, r)
    torch.testing.assert_close(deformation.bending(turned), deformation.bending(second))


def test_scaling_costs_what_the_equations_say() -> None:
    """phi(x) = s x: det = s^3, every face grows by s^2, |grad u|^2 = 3 (s - 1)^2."""
    for s in (0.5, 1.5):
        j = s * identity(3)
        v = s**3
        assert float(deformation.volume_change(j)) == pytest.approx(abs(v - 1))
        assert float(deformation.length_change(j - identity(3))) == pytest.approx(1.5 * (s - 1) ** 2)
        assert float(deformation.area_change(j)) == pytest.approx(3 * max(0.0, s**4 - 1) ** 2)
        assert float(deformation.volume_barrier(j)) == pytest.approx((v - 1) ** 4 / v**2)
        parts = (1.5 * (s - 1) ** 2, 3 * max(0.0, s**4 - 1) ** 2, (v - 1) ** 4 / v**2)
        total = 2 * parts[0] + 3 * parts[1] + 5 * parts[2]
        assert float(deformation.hyperelastic(j, length=2.0, area=3.0, volume=5.0)) == pytest.approx(total)
        assert float(deformation.near_isometry(j)) == pytest.approx(3 * (s**2 - 1) ** 2)
        assert float(deformation.diffusion(j - identity(3))) == pytest.approx(3 * (s - 1) ** 2)
        assert float(deformation.divergence(j - identity(3))) == pytest.approx(9 * (s - 1) ** 2)


def test_area_is_the_cofactors_columns() -> None:
    j = near_identity(3)
    cofactor = torch.linalg.det(j)[:, None, None] * torch.linalg.inv(j).mT
    expected = (cofactor.square().sum(1) - 1).clamp_min(0).square().sum(-1).mean()
    torch.testing.assert_close(deformation.area_change(j), expected)
    stretched = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))[None]  # faces grow to 6, 3 and 2
    assert float(deformation.area_change(stretched)) == pytest.approx(35**2 + 8**2 + 3**2)


def test_the_volume_barrier_is_symmetric_in_growth_and_shrinkage_and_steep_at_zero() -> None:
    def of(v: float) -> float:
        return float(deformation.volume_barrier(torch.diag(torch.tensor([v, 1.0, 1.0]))[None]))

    assert of(4.0) == pytest.approx(of(0.25))
    assert of(0.01) > 1e3 * of(0.5) and of(-0.01) > 1e3 * of(0.5)
    assert of(0.0) == pytest.approx(1e6, rel=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_only_folds_cost_a_hinge(k: int) -> None:
    mirrored = identity(k, 4).clone()
    mirrored[0, 0, 0] = -2.0
    mirrored[1, 0, 0] = 0.1
    assert float(deformation.folding(mirrored)) == pytest.approx(2.0 / 4)
    assert float(deformation.folding(mirrored, least=0.3)) == pytest.approx((2.3 + 0.2) / 4)


def test_bending_counts_mixed_derivatives_twice() -> None:
    """u = (a x^2 + b x y, c y z, 0): u_xx = 2a, u_xy = b, u_yz = c."""
    a, b, c = 0.3, 0.7, -0.2
    hessian = torch.zeros(1, 3, 3, 3)
    hessian[0, 0, 0, 0] = 2 * a
    hessian[0, 0, 0, 1] = hessian[0, 0, 1, 0] = b
    hessian[0, 1, 1, 2] = hessian[0, 1, 2, 1] = c
    assert float(deformation.bending(hessian)) == pytest.approx(4 * a**2 + 2 * b**2 + 2 * c**2)


def test_a_divergence_free_gradient_is_seen_as_such() -> None:
    swirl = torch.tensor([[[0.3, 2.0, 0.0], [-2.0, -0.5, 1.0], [0.0, 3.0, 0.2]]])
    assert float(deformation.divergence(swirl)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", [*ON_JACOBIANS, deformation.area_change], ids=lambda f: f.__name__)
def test_gradients(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for k in (2, 3):
        if loss is deformation.area_change and k == 2:
            continue
        j = near_identity(k)
        j[0, 0] = -j[0, 0]  # one fold
        j.requires_grad_()
        assert torch.autograd.gradcheck(loss, (j,))
        assert torch.autograd.gradgradcheck(loss, (j,))


def test_gradients_are_finite_where_everything_collapses_in_float32() -> None:
    for loss in ON_JACOBIANS:
        j = torch.zeros(4, 3, 3, requires_grad=True)
        value = loss(j)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(j.grad).all(), loss


def slice_axes() -> torch.Tensor:
    """Two orthonormal directions of an oblique slice."""
    return torch.from_numpy(Rotation.from_rotvec([0.4, -0.9, 0.2]).as_matrix())[:2].contiguous()


def test_derivatives_of_a_slice_are_taken_in_its_plane() -> None:
    """An in-plane Jacobian, put into the world where the normal stays, comes back; determinants agree either way."""
    p = slice_axes()
    normal = torch.linalg.cross(p[0], p[1])
    j = near_identity(2)
    world = p.mT @ j @ p + torch.outer(normal, normal)
    torch.testing.assert_close(deformation.in_plane(world, p, 1), j)
    for loss in (deformation.volume_change, deformation.volume_barrier, deformation.folding, deformation.near_isometry):
        torch.testing.assert_close(loss(world), loss(j))
    # Three dimensions see the sides of a slice grow as areas; a slice itself does not have that term.
    assert float(deformation.hyperelastic(world)) > float(deformation.hyperelastic(j))
    second = random(6, 2, 2, 2)
    in_world = torch.einsum("ac,naij,id,je->ncde", p, second, p, p)
    torch.testing.assert_close(deformation.in_plane(in_world, p, 2), second)
    torch.testing.assert_close(deformation.bending(in_world), deformation.bending(second))


def test_leading_axes_are_free_and_means_go_over_all_points() -> None:
    j = near_identity(3, 24)
    for loss in (*ON_JACOBIANS, deformation.area_change):
        torch.testing.assert_close(loss(j.reshape(2, 3, 4, 3, 3)), loss(j))
        torch.testing.assert_close(loss(torch.cat([j, j])), loss(j))
    second = random(24, 3, 3, 3)
    torch.testing.assert_close(deformation.bending(second.reshape(4, 6, 3, 3, 3)), deformation.bending(second))
    assert math.isclose(float(deformation.bending(torch.cat([second, second]))), float(deformation.bending(second)))


def test_other_shapes_are_refused() -> None:
    for loss in (deformation.volume_change, deformation.near_isometry, deformation.hyperelastic):
        with pytest.raises(ValueError, match="2x2 or 3x3"):
            loss(torch.ones(5, 4, 4))
    with pytest.raises(ValueError, match="world coordinates"):
        deformation.in_plane(torch.ones(5, 2, 2), slice_axes(), 1)
    with pytest.raises(ValueError, match="world coordinates"):
        deformation.in_plane(torch.ones(5, 3, 3), slice_axes(), 2)
