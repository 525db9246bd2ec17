"""Inverses: residuals that are true, convergence where it is promised, honesty where there is no solution."""

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.fields import calculus
from scanfield.fields.bspline import bspline_field
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.inverse import Inverse, invert
from scanfield.fields.motion import Composition, Displacement, VectorHead
from scanfield.fields.networks.siren import Siren
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.pose import Pose

DOMAIN = Domain.of_grid(Grid.centred((40, 50, 30), (2.0, 2.0, 3.0)))


def displacement(scale_mm: float, *, omega: float = 3.0, seed: int = 0) -> Displacement:
    network = Siren([3, 16, 16, 3], omegas=[omega, omega], generator=torch.Generator().manual_seed(seed))
    return Displacement(Field(DOMAIN, Identity(3), network, VectorHead(DOMAIN, scale_mm)).double())


def points(count: int = 200) -> torch.Tensor:
    u = 1.6 * torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.8
    return u * torch.tensor(DOMAIN.extent) / 2


def steepest(phi: nn.Module, x: torch.Tensor) -> float:
    """Largest norm of the displacement's gradient."""
    matrix = calculus.jacobian(phi, x)[1].detach() - torch.eye(3)
    return float(torch.linalg.matrix_norm(matrix, ord=2).max())


@pytest.mark.parametrize("solver", ["newton", "fixed-point"])
def test_a_smooth_displacement_is_undone(solver: str) -> None:
    phi = displacement(8.0)
    x = points()
    assert steepest(phi, x) < 0.9 and float((phi(x) - x).detach().norm(dim=-1).mean()) > 3
    found = invert(phi, phi(x).detach(), solver=solver, tolerance_mm=1e-6)
    assert found.converged.all() and not found.x.requires_grad
    torch.testing.assert_close(found.x, x, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.residual_mm, (phi(found.x) - phi(x)).detach().norm(dim=-1), atol=1e-12, rtol=0)
    assert found.residual_mm.max() <= 1e-6


def test_newton_needs_few_steps_and_works_where_the_fixed_point_does_not() -> None:
    """Near the identity both converge; after a turn of 100 degrees and a stretch of 2.7, only one."""
    phi = displacement(8.0)
    y = phi(points()).detach()
    newton, fixed = (invert(phi, y, solver=solver, tolerance_mm=1e-6) for solver in ("newton", "fixed-point"))
    assert newton.iterations <= 6 < fixed.iterations
    turned = Pose("similarity").double()
    with torch.no_grad():
        turned.rotation[2], turned.log_scale[0] = 1.75, 1.0
    whole = Composition(phi, turned)
    y = whole(points()).detach()
    newton, fixed = (invert(whole, y, solver=solver, tolerance_mm=1e-6) for solver in ("newton", "fixed-point"))
    assert newton.converged.all() and newton.residual_mm.max() <= 1e-6
    assert not fixed.converged.any()
    torch.testing.assert_close(newton.x, points(), atol=1e-4, rtol=0)


def test_in_float32_a_thousandth_of_a_millimetre_is_reached_far_from_the_origin() -> None:
    grid = Grid.centred((40, 50, 30), (2.0, 2.0, 3.0))
    shift = np.eye(4)
    shift[:3, 3] = (300.0, -400.0, 150.0)
    domain = Domain.of_grid(grid.moved(shift))
    field = bspline_field(domain, 16.0, 3, VectorHead(domain))
    with torch.no_grad():
        field.network.coefficients.normal_(std=4.0, generator=torch.Generator().manual_seed(0))
    x = points().float() + torch.tensor(shift[:3, 3]).float()
    phi = Displacement(field)
    found = invert(phi, phi(x).detach())
    assert found.converged.float().mean() > 0.99 and found.x.dtype == torch.float32
    assert float(found.residual_mm[found.converged].max()) <= 1e-3


class Parabola(nn.Module):
    """phi(x, y, z) = (x^2 / 10, y, z): folds at x = 0 and never reaches negative x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :1] ** 2 / 10, x[..., 1:]], dim=-1)


@pytest.mark.parametrize("solver", ["newton", "fixed-point"])
def test_points_that_a_map_never_reaches_are_said_to_be_so(solver: str) -> None:
    y = torch.tensor([[2.0, 1.0, 3.0], [-5.0, 2.0, -1.0]])
    found = invert(Parabola(), y, solver=solver, iterations=100)
    assert found.converged.tolist() == [True, False]
    assert float(found.x[0, 0]) == pytest.approx(20**0.5, abs=1e-2) or solver == "fixed-point"
    assert torch.isfinite(found.x).all() and float(found.residual_mm[1]) >= 5.0 - 1e-6
    torch.testing.assert_close((Parabola()(found.x) - y).norm(dim=-1), found.residual_mm)


def test_a_start_on_the_fold_and_a_choice_of_branch() -> None:
    """At x = 0 the Jacobian is singular: the residual itself leads away from there."""
    y = torch.tensor([[2.0, 0.0, 0.0]])
    on_fold = invert(Parabola(), y, start=torch.zeros(1, 3))
    assert on_fold.converged.all()
    other = invert(Parabola(), y, start=torch.tensor([[-3.0, 0.0, 0.0]]))
    assert float(other.x[0, 0]) == pytest.approx(-(20**0.5), abs=1e-2)


class Nowhere(nn.Module):
    """A map that is not finite everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, torch.nan)


@pytest.mark.parametrize("solver", ["newton", "fixed-point"])
def test_what_is_not_finite_does_not_converge(solver: str) -> None:
    found = invert(Nowhere(), torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), solver=solver)
    assert found.converged.tolist() == [True, False]
    assert float(found.residual_mm[1]) == float("inf")


def test_shapes_limits_and_the_start_are_kept() -> None:
    phi = displacement(8.0)
    x = points(12).reshape(3, 4, 3)
    y = phi(x).detach()
    found = invert(phi, y)
    assert found.x.shape == (3, 4, 3) and found.residual_mm.shape == found.converged.shape == (3, 4)
    assert invert(phi, y[:0]).x.shape == (0, 4, 3)
    none = invert(phi, y, iterations=0)
    assert torch.equal(none.x, y) and none.iterations == 0 and not none.converged.any()
    good = invert(phi, y, start=found.x)
    assert good.iterations == 0 and torch.equal(good.x, found.x)
    for bad in ({"tolerance_mm": 0.0}, {"iterations": -1}):
        with pytest.raises(ValueError, match="cannot invert"):
            invert(phi, y, **bad)


def test_an_inverse_is_a_map_with_the_inverse_jacobian() -> None:
    phi = displacement(8.0)
    inverse = Inverse(phi)
    x = points(20)
    y = phi(x).detach()
    value, matrix = calculus.jacobian(inverse, y)
    torch.testing.assert_close(value, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix @ calculus.jacobian(phi, x)[1], torch.eye(3).double().expand(20, 3, 3))
    with torch.no_grad():
        torch.testing.assert_close(inverse(y), x, atol=5e-3, rtol=0)
    assert inverse.inverse() is phi


def test_first_and_second_derivatives_of_an_inverse_are_right() -> None:
    phi = displacement(8.0)
    inverse = Inverse(phi, tolerance_mm=1e-9)
    y = phi(points(2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(inverse, (y,))
    assert torch.autograd.gradgradcheck(inverse, (y,))
    last = phi.field.network.layers[-1].weight.detach().clone().requires_grad_()

    def run(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(inverse, {"phi.field.network.layers.2.weight": weight}, (y.detach(),))

    assert torch.autograd.gradcheck(run, (last,))
    assert torch.autograd.gradgradcheck(run, (last,))


def test_points_without_a_solution_get_no_gradient() -> None:
    y = torch.tensor([[2.0, 1.0, 3.0], [-5.0, 2.0, -1.0]], requires_grad=True)
    out = Inverse(Parabola())(y)
    out.sum().backward()
    assert torch.isfinite(out).all()
    torch.testing.assert_close(y.grad, torch.tensor([[5 / 20**0.5, 1.0, 1.0], [0.0, 0.0, 0.0]]), atol=1e-3, rtol=0)
