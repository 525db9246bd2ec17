"""Patches of an image: there and back, as windows of flat arrays, and random ones around what is shown."""

from __future__ import annotations

import pytest
import torch

from scanfield.data.intensity import Window
from scanfield.data.patches import (
    FilledPatches,
    cut_patches,
    draw_patches,
    mean_spacing_mm,
    middle_block,
    patch_axes,
    patch_counts,
    patch_points,
    window_offsets,
)
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((9, 7, 5), (1.0, 2.0, 3.0))


def test_every_voxel_is_in_one_patch_and_the_rest_is_filled():
    values = torch.arange(1.0, GRID.size + 1).reshape(GRID.shape)
    cut = cut_patches(values, 4, fill=-1.0)
    assert patch_counts(GRID.shape, 4) == (3, 2, 2) and cut.shape == (12, 64)
    assert torch.equal(cut[cut > 0].sort().values, values.flatten())
    assert torch.equal(cut[0].reshape(4, 4, 4), values[:4, :4, :4])
    assert torch.equal(cut[-1].reshape(4, 4, 4)[:1, :3, :1], values[8:, 4:, 4:])


def test_slices_are_cut_along_two_axes():
    values = torch.arange(6 * 5).reshape(6, 5, 1)
    assert patch_axes(values.shape) == [0, 1]
    assert torch.equal(cut_patches(values, 3)[0].reshape(3, 3), values[:3, :3, 0])
    assert patch_points(3, 2).shape == (9, 2)


def test_windows_are_patches():
    values = torch.arange(6 * 7 * 5).reshape(6, 7, 5)
    first = (2 * 7 + 1) * 5 + 1
    found = values.flatten()[first + window_offsets(values.shape, 3)]
    assert torch.equal(found, values[2:5, 1:4, 1:4].flatten())
    assert len(window_offsets((6, 7, 1), 3)) == 9


def test_coordinates_are_those_of_voxel_centres():
    u = patch_points(4, 3)
    assert u.shape == (64, 3) and u.min() == 0.125 and u.max() == 0.875
    assert torch.equal(u[1], torch.tensor([0.125, 0.125, 0.375]))


def filled(shape=(12, 10, 9), mask=None) -> FilledPatches:
    values = torch.zeros(shape)
    values[6:8, 5:7, -4:] = 100.0
    scan = Scan(values, Grid.centred(shape, 1.0), mask=mask)
    return FilledPatches(scan, Window(scan, 0, 100), 4, above=50.0)


def test_random_patches_show_something_and_are_those_of_the_image():
    image = filled()
    values, weight = image.draw(200, torch.Generator().manual_seed(0))
    assert values.shape == (200, 64) and torch.equal(weight, torch.ones(200, 64))
    assert (values.max(dim=1).values == 1.0).all(), "every patch meets the object"
    assert values.mean(dim=1).unique().numel() > 5, "at different places"
    again, _ = image.draw(200, torch.Generator().manual_seed(0))
    assert torch.equal(again, values)


def test_images_smaller_than_a_patch_and_masked_voxels_count_less():
    values, weight = filled((12, 10, 3)).draw(5, torch.Generator().manual_seed(0))
    assert values.shape == (5, 64) and torch.equal(weight.sum(dim=1), torch.full((5,), 48.0))
    mask = torch.ones(12, 10, 9, dtype=torch.bool)
    mask[:, :, ::2] = False
    _, weight = filled(mask=mask).draw(20, torch.Generator().manual_seed(0))
    assert torch.equal(weight.sum(dim=1), torch.full((20,), 32.0))


def test_spacing_is_the_mean_of_the_cut_axes():
    assert mean_spacing_mm(Scan(torch.zeros(GRID.shape), GRID)) == pytest.approx(2.0)
    flat = Grid.centred((4, 4, 1), (1.0, 3.0, 50.0))
    assert mean_spacing_mm(Scan(torch.zeros(flat.shape), flat)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("shape", "most", "first", "block"),
    [
        ((40, 40, 40), 9, (14, 14, 18), (12, 12, 4)),
        ((40, 9, 40), 8, (12, 0, 18), (16, 8, 4)),
        ((41, 40, 1), 16, (12, 12, 0), (16, 16, 1)),
        ((1, 40, 40), 4, (0, 16, 16), (1, 8, 8)),
        ((3, 40, 2), 100, (0, 0, 0), (3, 40, 2)),
        ((40, 40, 40), 1, (18, 18, 18), (4, 4, 4)),
    ],
)
def test_the_middle_of_an_image_in_so_many_patches(shape, most, first, block):
    found = middle_block(shape, 4, most)
    assert tuple(int(v) for v in found[0]) == first and found[1] == block
    counts = patch_counts(block, 4)
    assert counts[0] * counts[1] * counts[2] <= max(most, 1)


def test_a_batch_comes_from_a_few_images_of_one_kind():
    def image(shape, value):
        scan = Scan(value + torch.rand(shape, generator=torch.Generator().manual_seed(1)), Grid.centred(shape, 1.0))
        return FilledPatches(scan, Window(scan, 0.0, 100.0), 4, above=-1.0)

    images = [image((8, 9, 7), float(k)) for k in range(3)]
    generator = torch.Generator().manual_seed(0)
    target, weight = draw_patches(images, 10, generator, most_images=2)
    assert target.shape == weight.shape == (10, 64) and bool((weight == 1).all())
    again = draw_patches(images, 10, torch.Generator().manual_seed(0), most_images=2)
    assert torch.equal(target, again[0])
    with pytest.raises(InputError, match="slices or volumes, not both"):
        for _ in range(20):
            draw_patches([images[0], image((8, 9, 1), 0.0)], 10, generator, most_images=2)
