"""Maps applied to points, images and labels, either way, against maps that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.tasks import warp
from scanfield.tasks.warp import (
    displacement_on,
    inside,
    inverse_near,
    inverse_on,
    map_points,
    warped_image,
    whole_numbers,
)


class Wave(nn.Module):
    """A smooth map without folds: up to 4 mm, gradients up to 0.4."""

    def forward(self, x):
        return x + 4 * torch.sin(x[..., [1, 2, 0]] / 10)


class Affine(nn.Module):
    def __init__(self, matrix, shift):
        super().__init__()
        self.matrix, self.shift = torch.tensor(matrix), torch.as_tensor(shift)

    def forward(self, x):
        return x @ self.matrix.T.to(x.dtype) + self.shift.to(x.dtype)


def oblique(shape, spacing):
    """A left-handed, turned grid off the origin."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing * np.array([-1, 1, 1]) * np.sign(np.linalg.det(turn))
    affine[:3, 3] = [-30.0, 20.0, 55.0]
    return Grid(shape, affine)


GRID = oblique((20, 22, 18), 2.5)


def test_points_keep_double_precision():
    x = GRID.points().double() + 1e-9
    shifted = map_points(lambda x: x + torch.tensor([1.0, 2.0, 3.0]), x)
    assert shifted.dtype == torch.float64
    assert (shifted - x - torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).abs().max() < 1e-5
    assert map_points(Wave(), x[:0]).shape == (0, 3)


def test_an_image_is_read_at_the_mapped_points(monkeypatch):
    monkeypatch.setattr(warp, "CHUNK", 1000)  # several pieces
    moving = GRID.resampled(4.0)
    linear = (moving.points() @ torch.tensor([1.0, -2.0, 0.5])).reshape(moving.shape)
    centre = torch.tensor(GRID.centre_mm).float()
    phi = Affine([[1.1, 0, 0], [0, 0.9, 0.1], [0, 0, 1.0]], centre * 0.0)
    phi.shift = centre - phi(centre) + torch.tensor([6.0, -3.0, 1.0])
    image, shown = warped_image(phi, linear, moving, GRID)
    y = phi(GRID.points())
    expected = (y @ torch.tensor([1.0, -2.0, 0.5])).reshape(GRID.shape)
    place, last = moving.to_voxel(y), torch.tensor(moving.shape) - 1
    between = ((place > 0) & (place < last)).all(-1).reshape(GRID.shape)  # voxel centres, where linear is exact
    assert between.float().mean() > 0.4 and (image - expected)[between].abs().max() < 1e-3
    assert not shown.all() and (image[~shown] == linear.min()).all()


def test_displacements_and_determinants_of_an_affine_map():
    matrix = [[1.2, 0.1, 0.0], [0.0, 0.9, -0.2], [0.1, 0.0, 1.0]]
    phi = Affine(matrix, [1.0, 2.0, 3.0])
    displacement, determinant = displacement_on(phi, GRID)
    x = GRID.points()
    assert torch.allclose(displacement.reshape(-1, 3), phi(x) - x, atol=1e-4)
    assert torch.allclose(determinant, torch.tensor(np.linalg.det(matrix)).float().expand(GRID.shape), atol=1e-4)


@pytest.mark.parametrize("coarse", [10**9, 200])
def test_the_inverse_takes_points_back(coarse, monkeypatch):
    """With and without beginning on a coarse lattice."""
    monkeypatch.setattr(warp, "COARSE_POINTS", coarse)
    phi = Wave()
    back = inverse_on(phi, GRID)
    y = GRID.points()
    assert torch.allclose(phi(y + back.displacement.reshape(-1, 3)), y, atol=0.011)
    assert back.reached == 1.0 and back.residual_mm.max() <= warp.TOLERANCE_MM * 1.01
    assert torch.allclose(inverse_near(phi, GRID)(phi(y)), y, atol=0.05)


def test_a_point_that_nothing_is_mapped_to_is_named():
    back = inverse_on(_Bounded(), Grid.centred((8, 8, 8), 10.0))
    assert 0 < back.reached < 1 and back.residual_mm.isfinite().all()


class _Bounded(nn.Module):
    def forward(self, x):
        return 20 * torch.tanh(x / 20)


def test_labels_become_whole_numbers_of_the_smallest_type():
    def labels(*values):
        return Scan(torch.tensor(values).reshape(-1, 1, 1), Grid.centred((len(values), 1, 1), 1.0), source="l.nii")

    for values, kind in (((0.0, 255.0), torch.uint8), ((0.0, 2035.0), torch.int16), ((-1, 70000), torch.int32)):
        found = whole_numbers(labels(*values))
        assert found.dtype == kind and found.flatten().tolist() == list(values)
    with pytest.raises(InputError, match="labels are whole numbers"):
        whole_numbers(labels(0.0, 0.5))


def test_a_slice_covers_what_lies_above_it():
    grid = Grid.centred((4, 4, 1), 2.0)
    x = torch.tensor([[0.0, 0.0, 50.0], [3.9, 0.0, 0.0], [4.2, 0.0, 0.0]])
    assert inside(grid, x).tolist() == [True, True, False]
