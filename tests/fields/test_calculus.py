"""Derivatives against analytic functions, in mm, and differentiable once more."""

import numpy as np
import pytest
import torch

from scanfield.fields import calculus
from scanfield.fields.encodings.frequency import Frequency, GaussianFourier, Identity
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead, SigmoidHead, SoftplusHead, SquareplusHead
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid


def points(count: int = 7, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scalar(x: torch.Tensor) -> torch.Tensor:
    """x^2 y + sin z."""
    return (x[..., 0] ** 2 * x[..., 1] + x[..., 2].sin())[..., None]


def test_gradient_laplacian_and_hessian_of_an_analytic_function() -> None:
    x = points()
    a, b, c = x.unbind(-1)
    value, gradient = calculus.value_and_gradient(scalar, x)
    torch.testing.assert_close(value, scalar(x))
    torch.testing.assert_close(gradient, torch.stack([2 * a * b, a**2, c.cos()], dim=-1))
    _, _, laplacian = calculus.laplacian(scalar, x)
    torch.testing.assert_close(laplacian[:, 0], 2 * b - c.sin())
    _, _, hessian = calculus.hessian(scalar, x)
    zero = torch.zeros_like(a)
    rows = [[2 * b, 2 * a, zero], [2 * a, zero, zero], [zero, zero, -c.sin()]]
    torch.testing.assert_close(hessian[:, 0], torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2))


def test_jacobian_and_divergence_of_a_vector_field() -> None:
    x = points()
    a, b, c = x.unbind(-1)

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., 0] * x[..., 1], x[..., 1] * x[..., 2], x[..., 2] ** 2], dim=-1)

    zero = torch.zeros_like(a)
    rows = [[b, a, zero], [zero, c, b], [zero, zero, 2 * c]]
    _, matrix = calculus.jacobian(f, x)
    torch.testing.assert_close(matrix, torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2))
    _, divergence = calculus.divergence(f, x)
    torch.testing.assert_close(divergence, b + c + 2 * c)
    with pytest.raises(ValueError, match="one channel per axis"):
        calculus.divergence(f, x, axes=(0, 1))


def test_axes_choose_columns_such_as_time() -> None:
    x = points(width=4)

    def f(x: torch.Tensor) -> torch.Tensor:
        return (x[..., 3] ** 3 + x[..., 0])[..., None]

    _, rate = calculus.value_and_gradient(f, x, axes=(3,))
    torch.testing.assert_close(rate, 3 * x[:, 3:] ** 2)
    _, _, second = calculus.laplacian(f, x, axes=(3,))
    torch.testing.assert_close(second, 6 * x[:, 3:])


def test_a_linear_function_has_zero_second_derivatives() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    for f in (lambda x: (x @ weight)[..., None], lambda x: (x @ weight.detach())[..., None], lambda x: x[..., :1] * 0):
        assert calculus.laplacian(f, points())[2].abs().max() == 0
        assert calculus.hessian(f, points())[2].abs().max() == 0
    constant = calculus.value_and_gradient(lambda x: torch.ones(len(x), 1), points())[1]
    assert constant.shape == (7, 3) and constant.abs().max() == 0


def test_a_gradient_of_several_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="use jacobian"):
        calculus.value_and_gradient(lambda x: x, points())


@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
def test_derivatives_are_per_millimetre_whatever_the_domain(scaling: str) -> None:
    """A field that is 0.5 per mm along world x keeps that slope in boxes of any size, shape and orientation."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for spacing, rotation in [((1, 1, 1), np.eye(3)), ((4, 0.5, 2), np.eye(3)), ((3, 1, 1), turn)]:
        affine = np.eye(4)
        affine[:3, :3] = rotation @ np.diag(spacing)
        domain = Domain.of_grid(Grid((8, 10, 6), affine), scaling=scaling)
        ramp = torch.nn.Linear(3, 1).double()
        with torch.no_grad():
            ramp.weight.copy_(0.5 * torch.linalg.inv(torch.tensor(domain.matrix()[:, :3]))[:1])
        field = Field(domain, Identity(3), ramp, LinearHead())
        _, gradient = calculus.value_and_gradient(field, points())
        torch.testing.assert_close(
            gradient, torch.tensor([[0.5, 0, 0]], dtype=torch.float64).expand(7, 3), atol=1e-6, rtol=0
        )


def test_a_slice_has_no_derivative_along_its_normal() -> None:
    """On an oblique slice the world Laplacian is the in-plane one: it is invariant under rotation."""
    angle = 0.7
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation
    generator = torch.Generator().manual_seed(0)
    network = Siren([2, 8, 1], omegas=[5.0], generator=generator).double()
    fields = [
        Field(Domain.of_grid(Grid((8, 8, 1), a)), Identity(2), network, LinearHead()) for a in (np.eye(4), affine)
    ]
    x = points()
    flat = calculus.laplacian(fields[0], x)
    turned = calculus.laplacian(fields[1], x @ torch.tensor(rotation).T)
    torch.testing.assert_close(turned[0], flat[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned[2], flat[2], atol=1e-5, rtol=1e-5)
    normal = torch.tensor(rotation[:, 2])
    assert (turned[1][:, 0] @ normal).abs().max() < 1e-6


def test_results_are_differentiable_in_parameters_and_points() -> None:
    network = Siren([3, 4, 4, 1], omegas=[2.0, 2.0], generator=torch.Generator().manual_seed(0)).double()
    names = [name for name, _ in network.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in network.parameters())

    def total(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        f = lambda x: torch.func.functional_call(network, state, (x,))  # noqa: E731
        _, gradient, laplacian = calculus.laplacian(f, x)
        return gradient.square().sum() + laplacian.square().sum()

    assert torch.autograd.gradcheck(total, (points(3).requires_grad_(), *values))


def test_without_grad_mode_no_graph_is_kept() -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    with torch.no_grad():
        results = calculus.hessian(lambda x: (x**3 @ weight)[..., None], points())
    assert not any(result.requires_grad for result in results)
    torch.testing.assert_close(results[2][:, 0].diagonal(dim1=-2, dim2=-1), 6 * points())


def test_determinants_match_torch_and_survive_singular_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    for k in (1, 2, 3):
        matrix = torch.randn(5, k, k, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(calculus.determinant(matrix), torch.linalg.det(matrix))
    singular = torch.ones(1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(calculus.determinant, (singular,))
    with pytest.raises(ValueError, match="1x1, 2x2 or 3x3"):
        calculus.determinant(torch.eye(4))


class Plain(torch.nn.Module):
    """A field without jets: what automatic differentiation makes of it is the truth."""

    def __init__(self, field: torch.nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.field(x)


HEADS = {
    "linear": LinearHead(3.0, 1.0),
    "sigmoid": SigmoidHead(2.0),
    "softplus": SoftplusHead(0.5),
    "squareplus": SquareplusHead(0.5),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoding", ["identity", "frequency", "fourier"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jets_give_what_automatic_differentiation_gives(head, encoding, channels):
    draw = torch.Generator().manual_seed(0)
    encodings = {
        "identity": Identity(3),
        "frequency": Frequency(3, 2),
        "fourier": GaussianFourier(3, 5, 0.5, generator=draw),
    }
    first = encodings[encoding]
    network = Siren([first.out_dims, 12, 12, channels], omegas=[2.0, 1.0], generator=draw)
    grid = Grid((10, 12, 14), np.diag([2.0, 1.5, 3.0, 1.0]))
    field = Field(Domain.of_grid(grid), first, network, HEADS[head]).double()
    assert field.jet_order == 2
    x = grid.points()[::97].double()
    for derivative in (calculus.jacobian, calculus.laplacian, calculus.hessian):
        for got, wanted in zip(derivative(field, x), derivative(Plain(field), x), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    two = (0, 2)
    torch.testing.assert_close(
        calculus.jacobian(field, x, axes=two)[1], calculus.jacobian(Plain(field), x, axes=two)[1]
    )


def test_a_part_without_jets_leaves_it_to_automatic_differentiation():
    draw = torch.Generator().manual_seed(0)
    grid = Grid((10, 12, 14), np.eye(4))
    field = Field(
        Domain.of_grid(grid), Identity(3), MLP([3, 8, 2], generator=draw, activation=torch.tanh), LinearHead()
    )
    assert field.jet_order == 0
    value, matrix = calculus.jacobian(field, grid.points()[:7])
    assert value.shape == (7, 2) and matrix.shape == (7, 2, 3)
