"""Directional derivatives of the grid encoding, and the Jacobians of fields made from them."""

from __future__ import annotations

import pytest
import torch

from scanfield.fields import calculus
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.mlp import MLP
from scanfield.kernels import hashgrid, hashgrid_cpu, library
from scanfield.kernels.hashgrid import Levels
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")


@pytest.mark.parametrize("dims", [2, 3, 4])
@pytest.mark.parametrize("smooth", [False, True])
def test_derivatives_along_directions_agree_with_the_reference(dims, smooth):
    levels = Levels.make(dims, levels=3, features=2, base=2, growth=2.0, log2_table=6, smoothstep=smooth)
    draw = torch.Generator().manual_seed(dims)
    inputs = [
        (2.4 * torch.rand(40, dims, generator=draw, dtype=torch.float64) - 1.2).requires_grad_(),
        torch.randn(40, dims, generator=draw, dtype=torch.float64).requires_grad_(),
        torch.randn(levels.starts[-1], 2, generator=draw, dtype=torch.float64).requires_grad_(),
    ]
    weight, grad = torch.tensor([1.0, 0.5, 0.0]), torch.randn(40, 6, generator=draw, dtype=torch.float64)
    got, wanted = (f(*inputs, weight, levels) for f in (hashgrid.encode_along, hashgrid.reference_along))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_derivatives_along_directions_at_the_edges():
    levels = Levels.make(2, levels=2, features=2, base=2, growth=2.0, log2_table=6)
    table, weight = torch.randn(levels.starts[-1], 2), torch.ones(2)
    assert hashgrid.encode_along(torch.zeros(0, 2), torch.zeros(0, 2), table, weight, levels).shape == (0, 4)
    outside = torch.tensor([[1.5, 2.0]])
    assert hashgrid.encode_along(outside, torch.ones(1, 2), table, weight, levels).abs().max() == 0
    with pytest.raises(ValueError, match="directions"):
        hashgrid.encode_along(torch.zeros(3, 2), torch.zeros(3, 2).double(), table, weight, levels)
    u = torch.rand(4, 2, requires_grad=True)
    y = hashgrid.encode_along(u, torch.ones(4, 2), table, weight, levels)
    (slope,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        slope.sum().backward()


def test_torch_sees_the_directional_operators():
    levels = Levels.make(2, levels=2, features=2, base=2, growth=2.0, log2_table=6)
    u, h = torch.rand(5, 2, requires_grad=True), torch.rand(5, 2, requires_grad=True)
    table = torch.randn(levels.starts[-1], 2, requires_grad=True)
    arguments = (u, h, table, torch.ones(2), hashgrid_cpu._pack(levels), False)
    torch.library.opcheck(torch.ops.scanfield.hashgrid_along.default, arguments)


def test_a_field_on_a_grid_gives_its_jacobian_in_one_pass():
    draw = torch.Generator().manual_seed(0)
    encoding = MultiresolutionGrid(
        3, levels=3, features=2, base=2, growth=2.0, log2_table=8, generator=draw, interpolation="smoothstep", init=1.0
    )
    grid = Grid.centred((10, 12, 14), (2.0, 1.5, 3.0))
    network = MLP([encoding.out_dims, 16, 3], generator=draw)
    field = Field(Domain.of_grid(grid), encoding, network, LinearHead()).double()
    assert field.jet_order == 1
    x = grid.points()[::97].double() + 0.1
    plain = torch.nn.Sequential(field)
    for got, wanted in zip(calculus.jacobian(field, x), calculus.jacobian(plain, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
