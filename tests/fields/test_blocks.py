"""A field of blocks: the right network everywhere, in its own coordinates, and no seam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.codec.partition import boxes_of
from scanfield.errors import InputError
from scanfield.fields.blocks import BlockField, Constant
from scanfield.space.grid import Grid

TURN = np.array([[1.6, -1.2, 0.0, 20.0], [1.2, 1.6, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((20, 16, 11), TURN)
BOXES = boxes_of("11" + "0" * 15, GRID.shape)  # eight, the first of them cut again


class Linear(nn.Module):
    """u -> u @ slope, to see the coordinates."""

    def __init__(self, slope: list[float]) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))

    def forward(self, u):
        return u @ self.slope.to(u.dtype)[:, None]


def numbered(seam: float) -> BlockField:
    return BlockField(GRID, BOXES, [Constant(float(k)) for k in range(len(BOXES))], seam=seam, scale=2.0, offset=5.0)


@pytest.mark.parametrize("seam", [0.0, 0.5])
def test_every_voxel_asks_its_own_block(seam):
    values = numbered(seam)(GRID.points()).reshape(GRID.shape)
    for k, box in enumerate(BOXES):
        assert torch.equal(values[tuple(slice(a, b) for a, b in box)], torch.full([b - a for a, b in box], 2.0 * k + 5))


@pytest.mark.parametrize("seam", [0.0, 0.5, 1.0, 1.5])
def test_weights_sum_to_one_everywhere(seam):
    field = BlockField(GRID, BOXES, [Constant(1.0)] * len(BOXES), seam=seam)
    voxel = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 30 - 5
    assert torch.allclose(field(GRID.to_world(voxel)), torch.ones(4000, 1), atol=1e-5)


def test_seams_are_continuous():
    field, start = numbered(0.5).double(), torch.tensor([[9.0, 3.0, 2.0]], dtype=torch.float64)
    line = start + torch.linspace(0, 1.5, 3001, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0, 0])
    values = field(GRID.to_world(line))[:, 0]
    assert values[0] != values[-1] and values.diff().abs().max() < 0.03
    jump = numbered(0.0).double()(GRID.to_world(line))[:, 0].diff().abs().max()
    assert jump == (values[-1] - values[0]).abs()


def test_coordinates_reach_from_face_to_face():
    field = BlockField(GRID, BOXES, [Linear([1.0, 0.0, 0.0])] * len(BOXES))
    box = BOXES[-1]
    corners = torch.tensor([[box[0][0] - 0.499, box[1][0], box[2][0]], [box[0][1] - 0.501, box[1][0], box[2][0]]])
    assert torch.allclose(field(GRID.to_world(corners))[:, 0], torch.tensor([-1.0, 1.0]), atol=1e-2)


def test_slices_have_two_coordinates():
    flat = Grid.centred((8, 8, 1), 2.0)
    field = BlockField(flat, boxes_of("10000", flat.shape), [Linear([0.0, 1.0])] * 4, seam=0.5)
    assert field(flat.points()).shape == (64, 1)
    assert field(torch.zeros(2, 3, 3)).shape == (2, 3, 1)


def test_reach_is_the_block_and_what_lies_across_its_seams():
    assert numbered(0.5).reach(BOXES[-1]) == BOXES[-1]
    wide = numbered(1.0).reach(BOXES[-1])
    assert all(a == max(b - 1, 0) for (a, _), (b, _) in zip(wide, BOXES[-1], strict=True))
    assert all(stop == n for (_, stop), n in zip(wide, GRID.shape, strict=True))


def test_a_block_needs_a_network():
    with pytest.raises(ValueError, match="as many networks"):
        BlockField(GRID, BOXES, [Constant(0.0)])
    for seam in (-0.1, 1.6):
        with pytest.raises(InputError, match="thinnest"):
            numbered(seam)
