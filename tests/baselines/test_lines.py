"""Interpolation of missing voxels on images that it must reproduce."""

import numpy as np
import pytest
import torch

from scanfield.baselines.lines import fill_missing
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def known(shape: tuple[int, ...], share: float = 0.8) -> torch.Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    for axis, n in enumerate(shape):
        if n > 1:
            mask.index_fill_(axis, torch.tensor([0, n - 1]), True)
    return mask


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_linear_image_is_exact_and_known_voxels_are_kept(kind: str) -> None:
    grid = Grid((9, 8, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    image = (grid.points() @ torch.tensor([1.0, -2.0, 0.5])).reshape(grid.shape)
    mask = known(grid.shape, 0.5)
    spoiled = torch.where(mask, image, torch.tensor(1e9))
    filled = fill_missing(spoiled, mask, grid, kind=kind)
    torch.testing.assert_close(filled, image, atol=1e-4, rtol=0)
    assert torch.equal(filled[mask], image[mask])


def test_cubic_is_better_on_a_smooth_image() -> None:
    grid = Grid((40, 40, 1), np.eye(4))
    x = grid.points()
    image = ((x[:, 0] / 3).sin() * (x[:, 1] / 3).cos()).reshape(grid.shape)
    mask = known(grid.shape)
    error = [float((fill_missing(image, mask, grid, kind=k) - image).square().mean()) for k in ("linear", "cubic")]
    assert 0 < error[1] < error[0] / 10


def test_coarse_axes_count_less() -> None:
    grid = Grid((3, 3, 1), np.diag([1.0, 10.0, 1.0, 1.0]))
    image = torch.tensor([[0.0, 0, 0], [100, 0, 100], [0, 0, 0]])[..., None]
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[1, 1, 0] = False
    assert float(fill_missing(image, mask, grid, kind="linear")[1, 1, 0]) == pytest.approx(100 * 0.01 / 1.01)


def test_borders_repeat_and_lonely_voxels_get_the_mean() -> None:
    grid = Grid((4, 4, 1), np.eye(4))
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[0, 0, 0] = True
    filled = fill_missing(torch.full(grid.shape, 7.0), mask, grid, kind="cubic")
    assert torch.equal(filled, torch.full(grid.shape, 7.0))
    with pytest.raises(InputError, match="no known voxel"):
        fill_missing(torch.zeros(grid.shape), torch.zeros(grid.shape, dtype=torch.bool), grid, kind="linear")
