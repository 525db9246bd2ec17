"""Grids by the size of their cells, and what a model of slices begins with."""

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.slices import SliceDeformation, SliceModel, grid_by_cells
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

BOX = Domain.of_grid(Grid((120, 60, 60), np.diag([1.0, 1.0, 1.0, 1.0])))


def grid(**changes):
    options = {"coarsest_mm": 16.0, "finest_mm": 0.5, "growth": 1.3819, "features": 2, "log2_table": 12}
    return grid_by_cells(BOX, **(options | changes), generator=torch.Generator().manual_seed(0))


def model(**changes):
    options = {
        "scale": 300.0, "width": 16, "z_features": 5, "code": 4, "pixel_variance": True, "slice_variance": True,
        "deviation": 0.1, "bias_levels": 2, "deformation": None,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return SliceModel(BOX, 3, grid(finest_mm=8.0), generator=generator, **(options | changes))


def test_levels_follow_from_millimetres():
    """The published example: a box of 120 mm has 8 cells at the coarsest, 12 levels, 280 cells at the finest."""
    cells = grid().levels.cells
    assert cells[0] == 8 and len(cells) == 12 and cells[-1] == pytest.approx(280, abs=3)
    assert 120 / grid(finest_mm=3.0).levels.cells[-1] <= 3.0


@pytest.mark.parametrize("bad", [{"finest_mm": 0.0}, {"finest_mm": 20.0}, {"growth": 1.0}])
def test_impossible_cells_are_refused(bad):
    with pytest.raises(InputError, match="cells of a grid shrink"):
        grid(**bad)


def test_a_model_is_its_volume_in_the_stacks_unit():
    field = model()
    x = torch.rand(20, 3) * 50
    value, z = field.volume(field.encoding(field.unit(x)))
    assert torch.allclose(field(x)[:, 0], 300 * value) and z.shape == (20, 5) and (value > 0).all()


def test_slices_begin_alike():
    field, of = model(), torch.tensor([0, 2])
    assert torch.allclose(field.scales(), torch.ones(3))
    assert torch.allclose(field.variance_of(of).sqrt(), torch.full((2,), 0.1))
    one = model(slice_variance=False, pixel_variance=False, bias_levels=0)
    assert one.variance_of(of).shape == (2,)
    assert one.sigma_of(torch.zeros(2, 4, 5), of).eq(0).all() and one.bias_of(torch.zeros(2, 4, 6), of).eq(0).all()


def test_bias_sees_coarse_levels_only():
    field, of = model(), torch.tensor([1])
    h = torch.randn(1, 3, field.encoding.out_dims)
    changed = h.clone()
    changed[..., 4:] += 1.0
    assert torch.equal(field.bias_of(h, of), field.bias_of(changed, of))
    changed[..., 0] += 1.0
    assert not torch.equal(field.bias_of(h, of), field.bias_of(changed, of))


def test_a_deformation_begins_near_nothing_and_belongs_to_its_slice():
    generator = torch.Generator().manual_seed(0)
    shape = SliceDeformation(grid(finest_mm=8.0, coarsest_mm=32.0), 2, 16, 30.0, generator)
    u, of = torch.rand(10, 3) * 2 - 1, torch.zeros(10, dtype=torch.long)
    assert shape(u, of).abs().max() < 0.01
    with torch.no_grad():
        shape.network.linears[-1].weight += 0.1
        for layer in shape.network.linears[:-1]:
            layer.weight += torch.randn(layer.weight.shape, generator=generator)
    assert not torch.allclose(shape(u, of), shape(u, of + 1))
