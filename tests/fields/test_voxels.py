"""Free voxels: their values at voxel centres, linear between them, whatever the grid's place in the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fields.field import read_out
from scanfield.fields.heads import LinearHead, SigmoidHead
from scanfield.fields.image import ImageField
from scanfield.fields.voxels import VoxelField
from scanfield.space.grid import Grid

AFFINE = np.array([[-1.0, 0, 0, 40], [0, 0, 2, -30], [0, 1.5, 0, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1), (6, 1, 4)])
def test_it_is_the_image_of_its_parameters(shape):
    grid = Grid(shape, AFFINE)
    field = VoxelField(grid, LinearHead(2.0, 1.0))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.values.copy_(values.squeeze())
    torch.testing.assert_close(read_out(field, grid), 2 * values + 1, atol=1e-4, rtol=1e-4)
    fine = grid.resampled(0.7)
    torch.testing.assert_close(
        read_out(field, fine), read_out(ImageField(2 * values + 1, grid), fine), atol=1e-3, rtol=0
    )


def test_every_parameter_has_a_gradient():
    grid = Grid((6, 5, 1), AFFINE)
    field = VoxelField(grid, SigmoidHead(0.03))
    field(grid.points()).sum().backward()
    torch.testing.assert_close(field.values.grad, torch.full((6, 5), 0.03 / 4))


def test_a_line_of_voxels_is_refused():
    with pytest.raises(InputError, match="two axes"):
        VoxelField(Grid((6, 1, 1), AFFINE), nn.Identity())
