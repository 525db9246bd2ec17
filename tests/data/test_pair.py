"""What is refused before anything is fitted, each with one clear error."""

import numpy as np
import pytest
import torch

from scanfield.data.pair import Pair, windowed, with_mask
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def scan(shape=(8, 9, 7), spacing=2.0, shift=(0, 0, 0), **members):
    grid = Grid.centred(shape, spacing)
    affine = grid.affine.copy()
    affine[:3, 3] += shift
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    return Scan(members.pop("values", values), Grid(shape, affine), source=members.pop("source", "a.nii"), **members)


def test_a_pair_of_volumes_and_of_slices():
    assert Pair(scan(), scan((6, 6, 6), 3.0)).dims == 3
    assert Pair(scan((8, 9, 1)), scan((7, 7, 1))).dims == 2
    assert Pair.kind == "image-pair"


def test_partial_overlap_is_enough():
    Pair(scan(), scan(shift=(14.0, 0, 0)))  # 2 of 16 mm


def mask(*index):
    values = torch.zeros(8, 9, 7, dtype=torch.bool)
    values[index] = True
    return values


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        (lambda: scan(values=torch.rand(8, 9, 7, 2)), scan, "the fixed image has 2 channels"),
        (scan, lambda: scan(values=torch.rand(8, 9, 7, 5)), "the moving image has 5 channels or time points"),
        (lambda: scan(values=torch.full((8, 9, 7), 3.0)), scan, r"the fixed image is constant \(3\)"),
        (lambda: scan(mask=mask(2, 3, 4)), scan, "the fixed image is constant inside its mask"),
        (lambda: scan((8, 9, 1)), scan, "the fixed image is a slice, the moving image a volume"),
        (lambda: scan((8, 1, 1)), scan, "a slice or a volume is needed"),
        (
            scan,
            lambda: scan(shift=(0, 100.0, 0)),
            "0 % of the fixed image lies in the moving image; their centres are 100 mm",
        ),
        (scan, lambda: scan(spacing=2000.0), "one of them cannot be in mm"),
        (lambda: scan(mask=mask(slice(6, 8))), lambda: scan(shift=(-6.0, 0, 0)), "of the fixed image's mask lies in"),
        (lambda: scan((8, 9, 1)), lambda: scan((8, 1, 9)), "not parallel: there are 90 degrees"),
    ],
)
def test_impossible_pairs_are_refused(fixed, moving, message):
    with pytest.raises(InputError, match=message) as caught:
        Pair(fixed(), moving())
    assert "a.nii" in caught.value.where


def test_masks_lie_on_the_grid_of_their_image_and_hold_something():
    image = scan()
    values = torch.zeros(8, 9, 7)
    values[2:4] = 2.0
    masked = with_mask(image, scan(values=values))
    assert int(masked.mask.sum()) == 2 * 9 * 7
    with pytest.raises(InputError, match="not on the same grid: spacings differ") as caught:
        with_mask(image, scan(spacing=3.0, source="mask.nii"), "fixed")
    assert "mask.nii" in caught.value.where and "fixed image" in caught.value.what
    with pytest.raises(InputError, match="the mask is empty"):
        with_mask(image, scan(values=torch.zeros(8, 9, 7)))
    with pytest.raises(InputError, match="one channel"):
        with_mask(image, scan(values=torch.zeros(8, 9, 7, 3)))


def test_a_window_cuts_intensities_off():
    cut = windowed(scan(), 10, 20).values
    assert (cut.min(), cut.max()) == (10, 20) and cut[0, 2, 1] == 15
    with pytest.raises(InputError, match="low < high"):
        windowed(scan(), 5, 5)
