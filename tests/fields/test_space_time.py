"""Shapes in space and time: the frame, the units, and what they are at a moment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scanfield.fields.shape import field_mesh
from scanfield.fields.space_time import AtMoment, SpaceTimeShape, distance_at, frames_of, space_time_domain
from scanfield.space.grid import Grid

EDGE, DURATION = 20.0, 8.0


class Ball(nn.Module):
    """A ball whose radius, in half edges, is the code plus a fifth of the unit time."""

    def forward(self, u: Tensor, code: Tensor) -> Tensor:
        return u[..., :3].norm(dim=-1, keepdim=True) - code[..., :1] - 0.2 * u[..., 3:]


def ball(radius_mm: float = 5.0) -> SpaceTimeShape:
    half = EDGE / 2
    return SpaceTimeShape(space_time_domain(EDGE, DURATION), Ball(), torch.tensor([radius_mm / half]), half)


def test_the_box_is_a_centred_cube_that_begins_at_time_zero():
    ends = torch.tensor([[-10.0, -10.0, -10.0, 0.0], [10.0, 10.0, 10.0, 8.0], [0.0, 5.0, 0.0, 4.0]])
    unit = space_time_domain(EDGE, DURATION).to_unit(ends)
    torch.testing.assert_close(unit, torch.tensor([[-1.0] * 4, [1.0] * 4, [0.0, 0.5, 0.0, 0.0]]))


def test_times_fill_as_much_of_the_unit_as_asked_for():
    ends = torch.tensor([[0.0, 0.0, 10.0, 0.0], [0.0, 0.0, 0.0, 8.0]])
    unit = space_time_domain(EDGE, DURATION, unit_time=0.25).to_unit(ends)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0, 1.0, -0.25], [0.0, 0.0, 0.0, 0.25]]))


def test_distances_are_in_mm_and_negative_inside():
    x = torch.tensor([[0.0, 0.0, 0.0, 4.0], [6.0, 0.0, 0.0, 4.0], [0.0, 0.0, 7.0, 8.0]])
    torch.testing.assert_close(ball()(x), torch.tensor([[-5.0], [1.0], [0.0]]))
    assert ball()(x.reshape(1, 3, 1, 4)).shape == (1, 3, 1, 1)


def test_a_moment_is_a_field_in_space_with_the_surface_of_that_moment():
    grid = Grid.centred((40, 40, 40), 0.5)
    for moment, radius in ((0.0, 3.0), (4.0, 5.0), (8.0, 7.0)):
        mesh = field_mesh(AtMoment(ball(), moment), grid)
        assert mesh.closed and mesh.volume_mm3 == pytest.approx(4 / 3 * torch.pi * radius**3, rel=0.03)


def test_distances_on_a_grid_do_not_depend_on_chunks():
    grid = Grid.centred((22, 20, 24), (1.0, 1.1, 0.9))
    found = distance_at(ball(), grid, 4.0)
    torch.testing.assert_close(found, grid.points().norm(dim=1).reshape(grid.shape) - 5.0)


def test_frames_are_where_the_distance_is_negative():
    grid = Grid.centred((22, 20, 24), (1.0, 1.1, 0.9))
    frames = frames_of(ball(), grid, [0.0, 8.0])
    assert frames.dtype == torch.bool and frames.device.type == "cpu"
    length = grid.points().norm(dim=1).reshape(grid.shape)
    assert torch.equal(frames, torch.stack([length < 3.0, length < 7.0]))


def test_the_code_moves_with_the_module_and_is_a_copy():
    code = torch.tensor([0.5])
    shape = SpaceTimeShape(space_time_domain(EDGE, DURATION), Ball(), code, 10.0).double()
    code.zero_()
    assert shape.code.dtype == torch.float64 and float(shape.code) == 0.5
    assert shape(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64
