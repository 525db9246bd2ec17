"""Images for SimpleITK lie where ours do, and N4 takes out a field that was multiplied in."""

import numpy as np
import pytest
import torch

from scanfield.data.itk import itk_image, itk_mask, without_bias_field
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

pytest.importorskip("SimpleITK")


def left_handed(shape: tuple[int, int, int], spacing: float) -> Grid:
    affine = np.diag([-spacing, spacing, 2 * spacing, 1.0])
    affine[:3, 3] = [40, -20, 7]
    return Grid(shape, affine)


def test_an_image_and_its_mask_have_their_voxels_in_the_same_places() -> None:
    grid = left_handed((5, 6, 7), 1.5)
    values = torch.rand(grid.shape)
    scan = Scan(values, grid, mask=values > 0.5)
    image, mask = itk_image(scan), itk_mask(scan)
    assert mask is not None and itk_mask(Scan(values, grid)) is None
    for index in ((0, 0, 0), (4, 2, 6)):
        place = grid.affine[:3, :3] @ index + grid.affine[:3, 3]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place * [-1, -1, 1], atol=1e-4)
        assert image[index] == pytest.approx(float(values[index]))
        assert mask[index] == int(values[index] > 0.5)


def test_axes_must_be_at_right_angles() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 1] = 1.0
    with pytest.raises(InputError, match="right angles"):
        itk_image(Scan(torch.rand(4, 4, 4), Grid((4, 4, 4), affine)))


def test_a_smooth_factor_is_divided_out() -> None:
    """On a real brain: what is left of an added field, as its spread inside the brain, is less than a third."""
    scan = sample("mr_head_volume")
    values = scan.values.float()[::2, ::2, ::2].contiguous()
    grid = Grid(tuple(values.shape), scan.grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))  # type: ignore[arg-type]
    inside = values > 0.25 * values.max()
    x = torch.linspace(-1, 1, values.shape[0])[:, None, None]
    field = (0.4 * x + 0.3 * x**2).exp()
    plain, biased = (without_bias_field(Scan(v, grid, mask=inside)).values for v in (values, values * field))
    before = float(field.expand_as(values)[inside].log().std())
    after = float((biased / plain)[inside].log().std())
    assert after < before / 3


def test_what_n4_does_not_take() -> None:
    with pytest.raises(InputError, match="needs a volume"):
        without_bias_field(Scan(torch.rand(20, 20, 1), Grid.centred((20, 20, 1), (1.0, 1.0, 1.0))))
    with pytest.raises(InputError, match="the lowest is"):
        without_bias_field(Scan(torch.rand(20, 20, 20) - 5, Grid.centred((20, 20, 20), (1.0, 1.0, 1.0))))
