from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.fields.encodings.frequency import Frequency, Identity
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.mlp import MLP
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid


def oblique(shape=(6, 5, 4)) -> Grid:
    matrix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag([1.0, -2.0, 3.0])
    affine[:3, 3] = (40.0, -70.0, 15.0)
    return Grid(shape, affine)


class Coordinates(nn.Module):
    """A 'network' that returns the unit coordinates it is given."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1)])
@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
def test_world_in_physical_units_out(shape, scaling):
    grid = oblique(shape)
    domain = Domain.of_grid(grid, scaling=scaling)
    field = Field(domain, Identity(domain.dims), Coordinates(), LinearHead(10.0, 1.0))
    x = grid.points()
    torch.testing.assert_close(field(x), 10 * domain.to_unit(x) + 1)
    torch.testing.assert_close(field(x.double()), 10 * domain.to_unit(x.double()) + 1, atol=1e-4, rtol=0)
    assert field(x.reshape(*shape, 3)).shape == (*shape, domain.dims)
    assert field(x[:0]).shape == (0, domain.dims)


def test_a_field_over_time():
    domain = Domain.of_grid(oblique((6, 5, 1))).with_axis(Axis("t", "s", 0.0, 4.0))
    field = Field(domain, Identity(3), Coordinates(), LinearHead())
    x = torch.cat([oblique((6, 5, 1)).points(), torch.full((30, 1), 3.0)], dim=1)
    torch.testing.assert_close(field(x)[:, 2], torch.full((30,), 0.5))


class At:
    """A condition that is the first world coordinate and its square."""

    def at(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., 0], x[..., 0] ** 2], dim=-1)


def test_a_condition_is_sampled_at_the_points_and_appended():
    grid = oblique()
    field = Field(Domain.of_grid(grid), Identity(3), Coordinates(), LinearHead())
    x = grid.points()
    out = field(x, At())
    assert out.shape == (120, 5)
    torch.testing.assert_close(out[:, 3:], At().at(x))


@pytest.mark.parametrize("chunk", [1, 7, 120, 10**6])
def test_read_out_is_in_voxel_order_whatever_the_chunk(chunk):
    grid = oblique()
    domain = Domain.of_grid(grid, scaling="per-axis")
    field = Field(domain, Identity(3), Coordinates(), LinearHead())
    image = read_out(field, grid, chunk=chunk)
    assert image.shape == (6, 5, 4, 3) and not image.requires_grad
    for axis, n in enumerate(grid.shape):  # unit coordinates of voxel centres
        expected = (torch.arange(n) + 0.5) / n * 2 - 1
        torch.testing.assert_close(image.movedim(axis, 0)[:, 2, 1, axis], expected, atol=1e-5, rtol=0)


def test_read_out_of_one_channel_is_an_image_and_zero_outside_the_domain():
    grid = oblique()
    domain = Domain.of_grid(grid)
    field = Field(domain, Identity(3), nn.Sequential(Coordinates(), nn.Linear(3, 1)), LinearHead(0.0, 5.0))
    wide = Grid((8, 5, 4), grid.moved(np.eye(4)).affine)
    image = read_out(field, wide, domain=domain)
    assert image.shape == (8, 5, 4)
    assert (image[:6] == 5).all() and (image[6:] == 0).all()


def test_weights_alone_are_saved_and_the_box_comes_from_the_domain():
    generator = torch.Generator().manual_seed(0)
    domain = Domain.of_grid(oblique())
    field = Field(domain, Frequency(3, 2), MLP([15, 8, 1], generator=generator), LinearHead())
    assert all(name.startswith("network.") for name in field.state_dict())


def test_the_gradient_in_mm_does_not_depend_on_the_scaling():
    """A field linear in world x has slope 1 per mm, however its box is scaled."""
    for scaling in ("isotropic", "per-axis"):
        domain = Domain.of_grid(oblique(), scaling=scaling)
        field = Field(domain, Identity(3), Coordinates(), LinearHead()).double()
        inverse = torch.linalg.inv(torch.tensor(domain.matrix())[:, :3])
        x = oblique().points().double().requires_grad_()
        (slope,) = torch.autograd.grad((field(x) @ inverse.T)[:, 0].sum(), x)
        torch.testing.assert_close(slope, torch.tensor([1.0, 0, 0]).double().expand(120, 3), atol=1e-5, rtol=0)
