"""B-splines: what the basis promises, derivatives in closed form, exact refinement, and what they can represent."""

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields import calculus
from scanfield.fields.bspline import BSpline, bspline_field, refined
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.jets import carries
from scanfield.fields.motion import Displacement, VectorHead
from scanfield.fields.networks.siren import Siren
from scanfield.kernels.jvp import Streams
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid

ANGLE = 0.6


def box(shape: tuple[int, int, int] = (12, 10, 8), *, scaling: str = "isotropic") -> Domain:
    rotation = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, -3.0, 4.0])
    affine[:3, 3] = (15.0, -40.0, 7.0)
    return Domain.of_grid(Grid(shape, affine), scaling=scaling)


def filled(field: Field, seed: int = 0) -> Field:
    with torch.no_grad():
        field.network.coefficients.normal_(generator=torch.Generator().manual_seed(seed))
    return field


def inside(domain: Domain, count: int = 40, *, reach: float = 1.0) -> torch.Tensor:
    """Points of the box, or of a larger one; float64."""
    generator = torch.Generator().manual_seed(5)
    u = reach * (2 * torch.rand(count, domain.dims, generator=generator, dtype=torch.float64) - 1)
    return domain.from_unit(u * torch.tensor(np.asarray(domain.extent) / 2 / domain.half_scale()))


@pytest.mark.parametrize("shape", [(12, 10, 8), (12, 10, 1), (1, 10, 1)])
@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
def test_the_basis_is_a_partition_of_unity(shape: tuple[int, int, int], scaling: str) -> None:
    domain = box(shape, scaling=scaling)
    field = bspline_field(domain, 7.0, 2, LinearHead()).double()
    with torch.no_grad():
        field.network.coefficients.copy_(torch.tensor([3.0, -1.5]))
    value, first, second = calculus.hessian(field, inside(domain, reach=1.5))
    torch.testing.assert_close(value, torch.tensor([3.0, -1.5]).double().expand(40, 2), rtol=1e-12, atol=0)
    assert first.abs().max() < 1e-13 and second.abs().max() < 1e-13


def test_coefficients_that_are_linear_in_place_make_a_linear_function() -> None:
    """Lattice coordinates as coefficients give lattice coordinates back, in the whole box."""
    spline = BSpline((5, 3), (1.0, 0.5), 2).double()
    with torch.no_grad():
        places = torch.meshgrid(torch.arange(-1.0, 7), torch.arange(-1.0, 5), indexing="ij")
        spline.coefficients.copy_(torch.stack(places, dim=-1))
    u = torch.tensor([[-1.0, -0.5], [1.0, 0.5], [0.0, 0.0], [0.37, -0.21]], dtype=torch.float64)
    expected = (u + torch.tensor([1.0, 0.5])) * torch.tensor([5 / 2.0, 3 / 1.0])
    torch.testing.assert_close(spline(u), expected, atol=1e-13, rtol=0)


def test_values_equal_scipys_spline() -> None:
    from scipy.interpolate import BSpline as Reference

    spline = BSpline((6,), (1.0,), 1).double()
    coefficients = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        spline.coefficients[:, 0] = coefficients
    reference = Reference(np.arange(-3.0, 10.0), coefficients.numpy(), 3)
    u = torch.linspace(-1, 1, 50, dtype=torch.float64)
    place = (u.numpy() + 1) * 3
    value, first, second = calculus.hessian(Field(line(), Identity(1), spline, LinearHead()), embed(u))
    np.testing.assert_allclose(value[:, 0].detach(), reference(place), atol=1e-12)
    np.testing.assert_allclose(first[:, 0, 0].detach(), 3 * reference(place, 1), atol=1e-11)
    np.testing.assert_allclose(second[:, 0, 0, 0].detach(), 9 * reference(place, 2), atol=1e-11)


def line() -> Domain:
    return Domain((Axis("x", "mm", -1.0, 1.0),))


def embed(u: torch.Tensor) -> torch.Tensor:
    return torch.stack([u, torch.zeros_like(u), torch.zeros_like(u)], dim=-1)


@pytest.mark.parametrize("shape", [(12, 10, 8), (12, 10, 1)])
@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
def test_jets_equal_automatic_differentiation_also_beyond_the_box(shape: tuple[int, int, int], scaling: str) -> None:
    domain = box(shape, scaling=scaling)
    field = filled(bspline_field(domain, 6.0, 3, LinearHead(2.0, 1.0)).double())
    x = inside(domain, reach=1.4)
    assert carries(field, 2)
    ours = calculus.hessian(field, x)
    theirs = calculus.hessian(lambda x: field(x), x)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert float(ours[2].detach().abs().max()) > 0.01


def test_second_derivatives_follow_a_map_before_the_spline() -> None:
    """The jets' chain rule with curved inner maps, where both terms of the second derivative count."""
    domain = box()
    inner = Displacement(
        Field(
            domain,
            Identity(3),
            Siren([3, 8, 3], omegas=[3.0], generator=torch.Generator().manual_seed(1)).double(),
            VectorHead(domain, 5.0),
        )
    )
    field = filled(bspline_field(domain, 6.0, 2, LinearHead()).double())
    x = inside(domain, 10, reach=0.8)
    streams = Streams.hessian(2)
    jet = torch.randn(streams.count, 10, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    jet[0] = x
    out = field.jets(inner.jets(jet, streams), streams)
    whole = calculus.hessian(lambda x: field(inner(x)), x)
    for k in range(2):
        torch.testing.assert_close(out[1 + k], torch.einsum("nci,ni->nc", whole[1], jet[1 + k]))
    for m, (i, j) in enumerate(streams.pairs):
        expected = torch.einsum("ncab,na,nb->nc", whole[2], jet[1 + i], jet[1 + j])
        expected = expected + torch.einsum("nci,ni->nc", whole[1], jet[3 + m])
        torch.testing.assert_close(out[3 + m], expected)


def test_derivatives_are_differentiable_in_coefficients_and_points() -> None:
    domain = box((4, 4, 1))
    field = filled(bspline_field(domain, 5.0, 2, LinearHead()).double())
    x = inside(domain, 3, reach=0.9).requires_grad_()
    energy = Energy(field)

    def run(x: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(energy, {"field.network.coefficients": coefficients}, (x,))

    coefficients = field.network.coefficients.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, coefficients))
    assert torch.autograd.gradgradcheck(run, (x, coefficients))


class Energy(torch.nn.Module):
    """A loss that depends on first and second derivatives of a field."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, first, second = calculus.hessian(self.field, x)
        return value.sum() ** 2 + first.square().sum() + second.square().sum()


@pytest.mark.parametrize("shape", [(12, 10, 8), (12, 10, 1)])
def test_refinement_changes_nothing_and_doubles_the_cells(shape: tuple[int, int, int]) -> None:
    domain = box(shape)
    coarse = filled(bspline_field(domain, 9.0, 3, LinearHead(2.0)).double())
    fine = refined(refined(coarse))
    assert fine.network.cells == tuple(4 * n for n in coarse.network.cells)
    x = inside(domain, 200, reach=1.3)
    for mine, other in zip(calculus.hessian(fine, x), calculus.hessian(coarse, x), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-11)
    assert isinstance(fine.network.coefficients, torch.nn.Parameter) and fine.network.coefficients.requires_grad
    single = filled(bspline_field(domain, 9.0, 3, LinearHead()))
    torch.testing.assert_close(refined(single)(x.float()), single(x.float()), atol=2e-5, rtol=0)


def test_beyond_the_box_a_spline_stands_still() -> None:
    domain = box()
    field = filled(bspline_field(domain, 6.0, 1, LinearHead()).double())
    x = inside(domain, reach=3.0)
    torch.testing.assert_close(field(x), field(domain.clamp(x)), atol=1e-6, rtol=0)


def test_the_first_and_second_derivatives_are_continuous_across_cells() -> None:
    spline = filled(Field(line(), Identity(1), BSpline((4,), (1.0,), 1).double(), LinearHead()))
    knots = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    left, right = (calculus.hessian(spline, embed(knots + side)) for side in (-1e-9, 1e-9))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_whole_cells_fill_the_box_at_no_more_than_the_spacing() -> None:
    domain = box()  # 24 x 30 x 32 mm
    assert bspline_field(domain, 8.0, 1, LinearHead()).network.cells == (3, 4, 4)
    assert bspline_field(domain, (8.0, 10.0, 100.0), 1, LinearHead()).network.cells == (3, 3, 1)
    timed = domain.with_axis(Axis("t", "s", 0.0, 4.0))
    field = filled(bspline_field(timed, (12.0, 15.0, 16.0, 1.0), 3, LinearHead()))
    assert field.network.cells == (2, 2, 2, 4)
    x = inside(timed).float()
    assert field(x).shape == (40, 3) and field(x[:0]).shape == (0, 3)
    _, rate = calculus.jacobian(field, x, axes=(3,))
    later, earlier = (field(x + torch.tensor([0, 0, 0, dt])) for dt in (0.01, -0.01))
    torch.testing.assert_close(rate[..., 0], (later - earlier) / 0.02, atol=1e-2, rtol=1e-2)


def test_a_smooth_function_is_fitted_better_at_each_level() -> None:
    """Coarse to fine, as in registration: every refinement starts where the last level ended."""
    domain = box((12, 10, 1))
    x = inside(domain, 400).float()
    target = (0.3 * x[:, :1]).sin() * (0.2 * x[:, 1:2]).cos()
    field = bspline_field(domain, 16.0, 1, LinearHead())
    errors = []
    for _ in range(3):
        optimiser = torch.optim.LBFGS(field.parameters(), max_iter=40, line_search_fn="strong_wolfe")

        def closure(field: Field = field, optimiser: torch.optim.Optimizer = optimiser) -> torch.Tensor:
            optimiser.zero_grad()
            loss = (field(x) - target).square().mean()
            loss.backward()
            return loss

        optimiser.step(closure)
        errors.append(float(closure().detach()))
        field = refined(field)
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.1 * errors[1], errors


def test_bad_spacings_and_fields_are_refused() -> None:
    domain = box()
    for spacing in (0.0, -3.0, float("nan"), (3.0, 3.0)):
        with pytest.raises(InputError, match="one positive spacing"):
            bspline_field(domain, spacing, 1, LinearHead())
    with pytest.raises(InputError, match="too large"):
        bspline_field(domain, 1e-3, 1, LinearHead())
    with pytest.raises(ValueError, match="cannot have"):
        BSpline((3, 0), (1.0, 1.0), 1)
    network = Siren([3, 4, 1], omegas=[1.0], generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="only a B-spline"):
        refined(Field(domain, Identity(3), network, LinearHead()))
