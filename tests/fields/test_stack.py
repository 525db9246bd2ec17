from __future__ import annotations

import pytest
import torch
from torch import nn

from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.stack import SliceStack
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

GRID = Grid.centred((4, 3, 5), (1.0, 1.0, 2.5))


def stack(grid: Grid = GRID) -> SliceStack:
    """Slice k has the value k everywhere, times a learned factor of one."""
    fields = []
    for k in range(grid.shape[2]):
        head = LinearHead(0.0, float(k))
        fields.append(Field(Domain.of_grid(grid.slice(k)), Identity(2), nn.Linear(2, 1), head))
    return SliceStack(fields, grid)


def test_every_point_asks_the_nearest_slice():
    values = stack()(GRID.points()).reshape(GRID.shape)
    assert (values == torch.arange(5.0)).all()
    z = torch.tensor([-99.0, -3.8, -3.7, 1.2, 1.3, 99.0])  # slices lie at -5, -2.5, 0, 2.5, 5
    x = torch.stack([torch.zeros(6), torch.zeros(6), z], dim=-1)
    assert stack()(x)[:, 0].tolist() == [0, 0, 1, 2, 3, 4]


def test_shapes_and_gradients():
    model = stack()
    assert model(GRID.points().reshape(3, 20, 3)).shape == (3, 20, 1)
    assert model(torch.zeros(0, 3)).shape == (0, 1)
    model.slices[2].head.scale = 1.0
    x = GRID.points().requires_grad_()
    model(x).sum().backward()
    moved = x.grad.reshape(*GRID.shape, 3).abs().sum((0, 1, 3)) > 0
    assert moved.tolist() == [False, False, True, False, False]


def test_one_field_per_slice():
    with pytest.raises(ValueError, match="5 slices"):
        SliceStack(stack().fields[:4], GRID)
