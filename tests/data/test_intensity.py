"""Windows of intensity: percentiles, masks, and images that have none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.data.intensity import Window
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((10, 10, 10), 1.0)
SCAN = Scan(torch.arange(1000.0).reshape(GRID.shape), GRID)


def test_percentiles_become_minus_one_and_one():
    window = Window(SCAN, 10, 90)
    assert torch.allclose(
        window.normalised(torch.tensor([99.9, 499.5, 899.1])), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-3
    )
    assert (window.least, window.most) == (0.0, 999.0)
    assert window.normalised(SCAN.values).max() > 1.2, "nothing is cut off"


def test_it_does_not_depend_on_the_scale_of_the_scanner():
    other = replace(SCAN, values=37 * SCAN.values - 500)
    a, b = (Window(scan, 1, 99).normalised(scan.values) for scan in (SCAN, other))
    assert torch.allclose(a, b, atol=2e-3)


def test_masked_voxels_do_not_count():
    mask = SCAN.values < 500
    window = Window(replace(SCAN, mask=mask), 0, 100)
    assert window.most == 499.0 and window.seen is mask


def test_rare_values_get_the_range():
    values = torch.zeros(GRID.shape)
    values[0, 0, 0] = 8.0
    window = Window(Scan(values, GRID), 1, 99)
    assert (window.offset, window.scale) == (4.0, 4.0)


def test_constant_images_and_channels_are_refused():
    with pytest.raises(InputError, match="constant"):
        Window(Scan(torch.ones(GRID.shape), GRID), 0, 100)
    with pytest.raises(InputError, match="one channel"):
        Window(Scan(torch.ones(*GRID.shape, 2), GRID), 0, 100)
