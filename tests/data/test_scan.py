from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((3, 4, 2), 1.0)


def test_values_with_and_without_channels():
    assert Scan(torch.zeros(3, 4, 2), GRID).kind == "image"
    assert Scan(torch.zeros(3, 4, 2, 5), GRID, "HU", torch.ones(3, 4, 2, dtype=torch.bool)).unit == "HU"
    assert Scan(torch.zeros(3, 4, 2, dtype=torch.int16), GRID, labels={0: "air"}).labels == {0: "air"}


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 2), (3, 4, 2, 1, 1), (24,)])
def test_shape_must_fit_the_grid(shape):
    with pytest.raises(InputError, match="do not fit"):
        Scan(torch.zeros(shape), GRID, source="a.nii")


def test_values_must_be_finite():
    values = torch.zeros(3, 4, 2)
    values[0, 0] = torch.tensor([np.nan, np.inf])
    with pytest.raises(InputError, match="2 of 24 voxels") as caught:
        Scan(values, GRID, source="a.nii")
    assert caught.value.where == "a.nii"


def test_mask_must_fit_and_hold_something():
    with pytest.raises(InputError, match="mask has shape"):
        Scan(torch.zeros(3, 4, 2), GRID, mask=torch.ones(3, 4, 1, dtype=torch.bool))
    with pytest.raises(InputError, match="empty"):
        Scan(torch.zeros(3, 4, 2), GRID, mask=torch.zeros(3, 4, 2, dtype=torch.bool))
