"""Fields of patches: the cut, the coordinates, empty patches, and points between voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.intensity import Window
from scanfield.data.patches import cut_patches, patch_axes, patch_counts, patch_points
from scanfield.data.scan import Scan
from scanfield.fields.networks.modulated import ModulatedSiren
from scanfield.fields.patches import PatchField, middle_of
from scanfield.space.grid import Grid

TURN = np.array([[1.2, -0.9, 0.0, 20.0], [0.9, 1.2, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((7, 8, 5), TURN)


def field(grid: Grid = GRID, size: int = 4, empty: tuple[int, ...] = ()) -> PatchField:
    draws, dims = torch.Generator().manual_seed(0), len(patch_axes(grid.shape))
    coded = torch.ones(patch_counts(grid.shape, size), dtype=torch.bool)
    coded.view(-1)[list(empty)] = False
    net = ModulatedSiren(dims=dims, width=6, layers=3, latent=2, omega=3.0, generator=draws)
    made = PatchField(grid, size, net, 2, coded, scale=10.0, offset=3.0, background=-5.0)
    with torch.no_grad():
        for z in made.latents:
            z.copy_(torch.randn(z.shape, generator=draws))
    return made


def whole_patches(made: PatchField) -> torch.Tensor:
    """All voxels patch by patch, in one batch."""
    shifts = made.network.shifts(made.latent())[:, None]
    u = patch_points(made.size, len(made.axes))
    return made.scale * made.network(u, shifts)[..., 0] + made.offset


@pytest.mark.parametrize("shape", [(7, 8, 5), (8, 4, 4), (6, 5, 1), (1, 9, 3)])
def test_at_voxels_it_is_the_network_patch_by_patch(shape):
    """Also where the last patches reach beyond the grid, on an oblique, left-handed grid."""
    made = field(Grid(shape, TURN))
    values = made(made.grid.points())[:, 0].reshape(shape).detach()
    seen = cut_patches(torch.ones(shape), 4).bool()
    assert torch.allclose(cut_patches(values, 4)[seen], whole_patches(made).detach()[seen], atol=1e-4)


def test_empty_patches_have_the_background_and_no_latent():
    made = field(empty=(0, 5))
    assert all(len(z) == 6 for z in made.latents)
    values = made(GRID.points())[:, 0].reshape(GRID.shape)
    assert torch.equal(values[:4, :4, :4], torch.full((4, 4, 4), -5.0))
    assert (values[:4, :4, 4:] != -5.0).all()


def test_between_voxels_of_a_patch_it_is_continuous_and_beyond_the_grid_finite():
    made = field()
    ends = GRID.to_world(torch.tensor([[0.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
    line = ends[:1] + torch.linspace(0, 1, 300)[:, None] * (ends[1:] - ends[:1])
    values = made(line.float())[:, 0].detach()
    assert values.diff().abs().max() < 0.05 * (values.max() - values.min())
    assert torch.isfinite(made(torch.full((2, 3), 1e4))).all()


def test_patches_that_do_not_cover_are_refused():
    draws = torch.Generator().manual_seed(0)
    net = ModulatedSiren(dims=3, width=4, layers=3, latent=2, omega=3.0, generator=draws)
    with pytest.raises(ValueError, match="do not cover"):
        PatchField(GRID, 4, net, 2, torch.ones(1, 1, 1, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(24, 23, 9), (24, 23, 1), (3, 23, 9)])
def test_the_middle_of_an_image_as_a_field_lies_where_the_image_has_it(shape):
    grid = Grid(shape, TURN)
    scan = Scan(torch.rand(shape, generator=torch.Generator().manual_seed(2)), grid, "HU")
    window, net = Window(scan, 1.0, 99.0), field(grid).network
    made, target, weight = middle_of(scan, window, 4, net, 2, most=6)
    assert made.network is net and len(target) == len(weight) == made.latent().shape[0] <= 6
    assert not made.latent().any()
    place = grid.to_voxel(torch.tensor(made.grid.affine[:3, 3])[None])[0].round().int().tolist()
    here = tuple(slice(a, a + n) for a, n in zip(place, made.grid.shape, strict=True))
    assert torch.equal(cut_patches(window.normalised(scan.values[here]), 4), target)
    assert int(weight.sum()) == made.grid.size, "voxels beyond the image do not count"
    latents = torch.randn(len(target), 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    before = made(made.grid.points())
    made.fill(2 * latents)
    assert torch.equal(made.latent(), 2 * latents.detach()) and not torch.equal(made(made.grid.points()), before)
