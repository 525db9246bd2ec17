"""Overlaps and surface distances of shapes with known answers, and of real outlines against SimpleITK."""

import inspect
import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.segmentation import overlap, surface_agreement, surface_elements
from scanfield.space.grid import Grid

OBLIQUE = np.array([[0.8, -0.6, 0, 50], [0.6, 0.8, 0, -20], [0, 0, -1, 7], [0, 0, 0, 1.0]])


def grid(shape=(40, 40, 24), spacing=(1.0, 0.5, 2.0)) -> Grid:
    return Grid(shape, OBLIQUE @ np.diag([*spacing, 1.0]))


def box(grid: Grid, low, high) -> torch.Tensor:
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def ball(grid: Grid, radius: float, shift_mm: float = 0.0) -> torch.Tensor:
    centre = torch.tensor(grid.centre_mm) + shift_mm * torch.tensor(grid.directions[:, 0])
    return ((grid.points().double() - centre).norm(dim=-1) < radius).reshape(grid.shape)


def test_overlaps_of_boxes() -> None:
    where = grid()
    a, b = box(where, (5, 5, 5), (15, 15, 15)), box(where, (10, 5, 5), (20, 15, 15))
    found = overlap(a, b, where)
    assert found.dice == pytest.approx(0.5) and found.jaccard == pytest.approx(1 / 3)
    assert found.volume_mm3 == pytest.approx(1000) and found.volume_difference_mm3 == 0
    assert overlap(a | b, b, where).volume_difference_mm3 == pytest.approx(500)


def test_a_slab_moved_by_a_distance_is_that_far_away() -> None:
    """Two plates of 40 x 20 mm, 4 mm thick, 2 mm apart: all but the rim is 2 mm away."""
    where = grid()
    a, b = box(where, (0, 0, 5), (40, 40, 7)), box(where, (0, 0, 6), (40, 40, 8))
    found = surface_agreement(a, b, where, tolerance_mm=1.0)
    assert found.hausdorff_mm == pytest.approx(2.0, abs=0.01)
    assert found.hausdorff95_mm == pytest.approx(2.0, abs=0.01)
    faces, rim = 40 * 20, 4 * (2 * 40 + 2 * 20)  # mm2
    assert found.assd_mm == pytest.approx(2.0 * 2 * faces / (2 * faces + rim), rel=0.06)
    assert found.surface_dice == pytest.approx(rim / (2 * faces + rim), abs=0.05)
    assert surface_agreement(a, b, where, tolerance_mm=2.0).surface_dice == 1.0


def test_concentric_balls_are_their_difference_of_radii_apart() -> None:
    where = Grid((60, 60, 60), OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1.0]))
    found = surface_agreement(ball(where, 10.0), ball(where, 8.0), where, tolerance_mm=1.0)
    # A point of one staircase finds the nearest bump of the other: up to a quarter of a voxel too near.
    assert 2.0 - 0.125 < found.assd_mm < 2.0 + 0.05
    assert found.hausdorff95_mm == pytest.approx(2.0, abs=0.3)
    assert found.surface_dice == 0.0
    assert surface_agreement(ball(where, 10.0), ball(where, 8.0), where, tolerance_mm=3.0).surface_dice == 1.0


def test_equal_masks_agree_exactly_wherever_they_lie() -> None:
    where = grid()
    mask = ball(where, 6.0)
    found = surface_agreement(mask, mask, where, tolerance_mm=0.0)
    assert found.surface_dice == 1.0 and found.assd_mm <= found.hausdorff_mm < 1e-9
    moved = Grid(where.shape, np.diag([-1.0, 1, 1, 1]) @ where.affine)
    other = ball(where, 5.0, 1.5)
    a, b = (surface_agreement(mask, other, g, tolerance_mm=1.0) for g in (where, moved))
    assert a.assd_mm == pytest.approx(b.assd_mm, rel=1e-6) and a.hausdorff_mm == pytest.approx(b.hausdorff_mm, rel=1e-6)


def test_a_few_far_voxels_show_in_the_maximum_and_not_in_the_95th_percentile() -> None:
    where = Grid((40, 40, 40), np.eye(4))
    mask = ball(where, 10.0)
    stray = mask.clone()
    stray[0, 0, 0] = True
    found = surface_agreement(stray, mask, where, tolerance_mm=0.5)
    assert found.hausdorff95_mm < 0.1 < 15 < found.hausdorff_mm


@pytest.mark.parametrize("axis", [0, 2])
def test_outlines_of_slices(axis) -> None:
    """A square of 10 x 10 pixels moved by 2 along one side."""
    shape, spacing = [30, 30, 30], [0.5, 0.5, 0.5]
    shape[axis], spacing[axis] = 1, 7.0
    where = grid(tuple(shape), tuple(spacing))
    low, high = [8, 8, 8], [18, 18, 18]
    low[axis], high[axis] = 0, 1
    side = 1 if axis == 0 else 0
    a = box(where, low, high)
    low[side], high[side] = 10, 20
    b = box(where, low, high)
    assert overlap(a, b, where).dice == pytest.approx(0.8)
    found = surface_agreement(a, b, where, tolerance_mm=0.6)
    assert found.hausdorff_mm == pytest.approx(1.0, abs=1e-6)
    assert 0.2 < found.assd_mm < 0.6 and 0.4 < found.surface_dice < 0.8
    assert surface_elements(a, where).shape[1:] == (3, 3)


def test_empty_masks() -> None:
    where = grid()
    none, some = torch.zeros(where.shape, dtype=torch.bool), ball(where, 5.0)
    for found, reference in ((none, some), (some, none)):
        assert overlap(found, reference, where).dice == 0.0
        there = surface_agreement(found, reference, where, tolerance_mm=1.0)
        assert (there.surface_dice, there.assd_mm, there.hausdorff95_mm) == (0.0, math.inf, math.inf)
    assert math.isnan(overlap(none, none, where).dice)
    nothing = surface_agreement(none, none, where, tolerance_mm=1.0)
    assert all(math.isnan(v) for v in vars(nothing).values())


def test_wrong_input_is_refused() -> None:
    where = grid()
    mask = ball(where, 5.0)
    with pytest.raises(InputError, match=r"a mask of shape \(39, 40, 24\) does not fit"):
        overlap(mask[:-1], mask[:-1], where)
    with pytest.raises(InputError, match=r"a mask of shape \(40, 40, 1\) does not fit"):
        inspect.unwrap(overlap)(mask, mask[..., 12:13], where)  # would be broadcast; tests check shapes, users do not
    with pytest.raises(InputError, match="does not fit"):
        surface_agreement(mask[:-1], mask[:-1], where, tolerance_mm=1.0)
    with pytest.raises(InputError, match="cannot be negative"):
        surface_agreement(mask, mask, where, tolerance_mm=-1.0)
    with pytest.raises(InputError, match="empty"):
        surface_elements(torch.zeros(5, 5, 1, dtype=torch.bool), Grid((5, 5, 1), np.eye(4)))
    with pytest.raises(InputError, match="needs a slice"):
        surface_elements(torch.ones(5, 1, 1, dtype=torch.bool), Grid((5, 1, 1), np.eye(4)))


def test_overlaps_and_distances_agree_with_simpleitk() -> None:
    """Rough blobs on an anisotropic grid: overlaps exactly, distances between pixels of outlines to about a voxel."""
    sitk = pytest.importorskip("SimpleITK")
    generator = torch.Generator().manual_seed(0)
    where = Grid((36, 40, 20), np.diag([1.0, 0.7, 2.0, 1.0]))
    coarse = torch.rand(2, 1, 6, 7, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=where.shape, mode="trilinear")[:, 0]
    a, b = smooth[0] > 0.55, 0.7 * smooth[0] + 0.3 * smooth[1] > 0.55
    images = []
    for mask in (a, b):
        image = sitk.GetImageFromArray(mask.numpy().astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(where.spacing_mm)
        images.append(image)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*images)
    found = overlap(a, b, where)
    assert found.dice == pytest.approx(measures.GetDiceCoefficient(), abs=1e-12)
    assert found.jaccard == pytest.approx(measures.GetJaccardCoefficient(), abs=1e-12)

    outlines = [sitk.GetArrayFromImage(sitk.LabelContour(image, fullyConnected=False)) > 0 for image in images]
    maps = []
    for outline in outlines:
        image = sitk.GetImageFromArray(outline.astype(np.uint8))
        image.SetSpacing(where.spacing_mm)
        signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        maps.append(np.abs(sitk.GetArrayFromImage(signed)))
    there, back = maps[1][outlines[0]], maps[0][outlines[1]]
    ours = surface_agreement(a, b, where, tolerance_mm=2.0)
    assd = (there.sum() + back.sum()) / (there.size + back.size)
    assert ours.assd_mm == pytest.approx(assd, abs=0.35)
    assert ours.hausdorff_mm == pytest.approx(max(there.max(), back.max()), abs=2.0)
    assert ours.hausdorff95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1.0)
