import math

import numpy as np
import pytest
import torch

from scanfield.data.contours import contour_mask, even_odd, mask_contours, planes_of
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid((24, 20, 10), np.array([[-2.0, 0, 0, 25], [0, 2.0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]]))


def square(low: float, high: float, z: float) -> np.ndarray:
    return np.array([[low, low, z], [high, low, z], [high, high, z], [low, high, z]])


def circle(radius: float, z: float, count: int = 60) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, z)], axis=1)


def inside(contours: list[np.ndarray], grid: Grid = GRID) -> torch.Tensor:
    return contour_mask(planes_of(contours, 3.0), grid)


def test_even_odd_against_the_winding_of_a_polygon():
    """A star with crossing edges: its middle is outside."""
    angle = np.arange(5) * 4 * math.pi / 5
    star = 20.3 + 16 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = even_odd([star], (41, 41))
    for i, j in np.ndindex(41, 41):
        crossings = 0
        for a, b in zip(star, np.roll(star, -1, axis=0), strict=True):
            if (a[0] > i) != (b[0] > i) and j > a[1] + (i - a[0]) / (b[0] - a[0]) * (b[1] - a[1]):
                crossings += 1
        assert found[i, j] == (crossings % 2 == 1)
    assert not found[20, 20] and found.any()


def test_corners_on_pixel_centres_count_once():
    found = even_odd([np.array([[2.0, 2.0], [2.0, 6.0], [6.0, 6.0], [6.0, 2.0]])], (9, 9))
    assert found.sum() == 16, "low edges belong to the square, high ones do not"
    assert even_odd([np.array([[-5.0, -5], [-5, 50], [50, 50], [50, -5]])], (4, 6)).all()


def test_a_ring_as_two_contours_or_as_a_keyhole_is_the_same():
    outer, inner = circle(15, 8.0), circle(7, 8.0)
    ring = inside([outer, inner])
    keyhole = np.concatenate([outer, outer[:1], inner[::-1][-1:], inner[::-1], outer[:1]])
    assert torch.equal(inside([keyhole]), ring)
    index = GRID.to_voxel(torch.tensor([0.0, 0.0, 8.0])).round().long().tolist()
    assert not ring[tuple(index)] and ring.any()
    area = float(ring[:, :, 1].sum()) * 4
    assert area == pytest.approx(math.pi * (15**2 - 7**2), rel=0.05)


def test_two_parts_and_a_hole_in_one_plane():
    contours = [square(-16, -4, 8.0), square(4, 16, 8.0), square(7, 11, 8.0)]
    mask = inside(contours)
    assert float(mask.sum()) * 4 == pytest.approx(2 * 144 - 16, rel=0.12)


def test_one_plane_is_one_slab_of_the_usual_distance():
    mask = inside([square(-9, 9, 8.0)])
    assert mask.any(dim=0).any(dim=0).nonzero().flatten().tolist() == [1]


def test_the_shape_between_two_contours_is_between_them():
    """Radii 6 and 14 mm, three slices apart: in between the radius changes evenly."""
    grid = Grid((40, 40, 7), np.diag([1.0, 1.0, 1.0, 1.0]) + np.array([[0, 0, 0, -20.0]] * 2 + [[0] * 4] * 2))
    mask = contour_mask(planes_of([circle(6, 0.0), circle(14, 6.0)], 6.0), grid)
    radii = [math.sqrt(float(mask[:, :, k].sum()) / math.pi) for k in range(7)]
    assert radii == pytest.approx([6, 6 + 4 / 3, 6 + 8 / 3, 10, 10 + 4 / 3, 10 + 8 / 3, 14], abs=0.4)


def test_a_gap_of_several_planes_separates_two_parts():
    contours = [circle(9, z) for z in (5.0, 8.0, 11.0, 26.0, 29.0, 32.0)]
    slices = inside(contours).any(dim=0).any(dim=0).nonzero().flatten().tolist()
    assert slices == [0, 1, 2, 7, 8, 9]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_contours_across_any_axis_of_the_grid(axis):
    """A ball drawn in planes across x, y or z is the same ball."""
    turned = []
    for z in np.arange(-12.0, 12.1, 2.0):
        if abs(z) < 12:
            flat = circle(math.sqrt(144 - z**2), z)
            turned.append(np.roll(flat, axis + 1, axis=1))
    grid = Grid.centred((30, 30, 30), 1.5)
    volume = float(contour_mask(planes_of(turned), grid).sum()) * 1.5**3
    assert volume == pytest.approx(4 / 3 * math.pi * 12**3, rel=0.04)


def test_a_grid_oblique_to_the_planes_sees_the_same_ball():
    turn = np.eye(4)
    turn[:3, :3] = [[1, 0, 0], [0, math.cos(0.5), -math.sin(0.5)], [0, math.sin(0.5), math.cos(0.5)]]
    contours = [circle(math.sqrt(144 - z**2), z) for z in np.arange(-10.0, 10.1, 2.0)]
    grid = Grid.centred((30, 28, 26), 1.5).moved(turn)
    mask = contour_mask(planes_of(contours), grid)
    x = grid.points().double()[mask.flatten()]
    assert float(mask.sum()) * 1.5**3 == pytest.approx(4 / 3 * math.pi * 12**3, rel=0.06)
    assert x.mean(dim=0).abs().max() < 0.3 and x.norm(dim=1).max() < 13.5


@pytest.mark.parametrize("seed", range(3))
def test_masks_become_contours_and_come_back(seed):
    mask = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, :, 4] = True
    back = contour_mask(planes_of(mask_contours(mask, GRID)), GRID)
    assert torch.equal(back, mask)


def test_contours_that_are_none_are_refused():
    with pytest.raises(InputError, match="no closed contours"):
        planes_of([])
    with pytest.raises(InputError, match="three points"):
        planes_of([np.zeros((2, 3))])
    with pytest.raises(InputError, match="leaves its plane"):
        planes_of([circle(9, 0.0), circle(5, 0.0)[:, [2, 0, 1]]])
