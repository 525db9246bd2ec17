"""Anisotropic total variation: the length of edges in widths of the image, at any resolution."""

from __future__ import annotations

import pytest
import torch

from scanfield.losses.smoothness import anisotropic_tv


@pytest.mark.parametrize("size", [16, 64])
def test_a_square_has_its_perimeter_in_widths_of_the_image(size):
    image = torch.zeros(size, size, 1)
    image[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 3.0
    assert anisotropic_tv(image).item() == pytest.approx(3.0 * 4 * 0.5)


def test_a_cube_has_its_surface_in_squared_widths():
    image = torch.zeros(16, 16, 16)
    image[4:12, 4:12, 4:12] = 1.0
    assert anisotropic_tv(image).item() == pytest.approx(6 * 0.25)


def test_the_orientation_of_the_slice_does_not_matter_and_a_constant_has_none():
    image = torch.rand(9, 9, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(anisotropic_tv(image.permute(2, 0, 1)), anisotropic_tv(image))
    assert anisotropic_tv(torch.full((5, 5, 5), 2.0)) == 0


def test_gradient():
    image = torch.rand(4, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(anisotropic_tv, image)
