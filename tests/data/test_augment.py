"""Images that look a little different: maps of points, and intensities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.data.augment import blur, contrast, gamma, noise, random_affine
from scanfield.space.grid import Grid

CENTRE = np.array([30.0, -12.0, 100.0])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3]


def test_nothing_asked_for_is_the_identity():
    np.testing.assert_allclose(random_affine(CENTRE, draws()), np.eye(4), atol=1e-12)


def test_a_motion_keeps_its_ranges():
    for seed in range(40):
        affine = random_affine(CENTRE, draws(seed), rotation_deg=20.0, scale=1.2, shift_mm=3.0)
        size = np.cbrt(np.linalg.det(linear(affine)))
        assert 1 / 1.2 <= size <= 1.2
        turn = linear(affine) / size
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert math.degrees(math.acos(min(1.0, (np.trace(turn) - 1) / 2))) <= 20.0
        assert np.abs(affine[:3, :3] @ CENTRE + affine[:3, 3] - CENTRE).max() <= 3.0
    angles = [np.trace(linear(random_affine(CENTRE, draws(seed), rotation_deg=20.0))) for seed in range(40)]
    assert min(angles) < 1 + 2 * math.cos(math.radians(15)), "the range is used"


def test_the_centre_stays_and_the_generator_decides():
    affine = random_affine(CENTRE, draws(3), rotation_deg=90.0, scale=2.0, mirror=(0, 1, 2))
    np.testing.assert_allclose(linear(affine) @ CENTRE + affine[:3, 3], CENTRE)
    again = random_affine(torch.from_numpy(CENTRE), draws(3), rotation_deg=90.0, scale=2.0, mirror=(0, 1, 2))
    np.testing.assert_array_equal(affine, again)
    assert not np.allclose(affine, random_affine(CENTRE, draws(4), rotation_deg=90.0, scale=2.0))


def test_mirrors_along_the_axes_that_are_named():
    turned = Grid((3, 3, 3), np.diag([2.0, 2.0, 2.0, 1.0])[[1, 0, 2, 3]])
    found = {
        tuple(np.round(np.diag(turned.directions.T @ linear(affine) @ turned.directions), 6))
        for affine in (random_affine(CENTRE, draws(s), mirror=(0,), directions=turned.directions) for s in range(20))
    }
    assert found == {(1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)}


def test_a_slice_stays_in_its_plane():
    normal = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=float)  # the last axis is -y of the world
    affine = random_affine(
        CENTRE, draws(1), rotation_deg=40.0, scale=1.5, shift_mm=5.0, mirror=(0, 1), directions=normal, dims=2
    )
    points = CENTRE + np.array([[3.0, 0.0, 4.0], [-2.0, 0.0, 1.0]])
    moved = points @ linear(affine).T + affine[:3, 3]
    np.testing.assert_allclose(moved[:, 1], CENTRE[1])
    assert np.abs(moved - points).max() > 1
    np.testing.assert_allclose(linear(affine) @ normal[:, 2], normal[:, 2], atol=1e-12)


@pytest.mark.parametrize(
    "bad", [{"scale": 0.9}, {"rotation_deg": -1.0}, {"shift_mm": -1.0}, {"mirror": (3,)}, {"mirror": (2,), "dims": 2}]
)
def test_ranges_that_make_no_sense(bad):
    with pytest.raises(ValueError, match=r"motion has|ranges are"):
        random_affine(CENTRE, draws(), **bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_keeps_the_ends_and_the_order(dtype):
    values = torch.linspace(-3, 7, 50, dtype=dtype)
    changed = gamma(values, draws(1), most=2.0)
    assert changed.dtype == dtype and changed[0] == -3 and changed[-1] == pytest.approx(7)
    assert (changed.diff() > 0).all() and not torch.allclose(changed, values)
    flat = torch.full((4,), 2.0)
    assert torch.equal(gamma(flat, draws(1), most=2.0), flat)


def test_contrast_moves_mean_and_spread_within_their_ranges():
    values = 5 + 2 * torch.randn(4000, generator=draws(9))
    ratios, shifts = [], []
    for seed in range(30):
        changed = contrast(values, draws(seed), factor=1.5, shift=0.3)
        ratios.append(float(changed.std() / values.std()))
        shifts.append(float((changed.mean() - values.mean()) / values.std()))
    assert 1 / 1.5 <= min(ratios) < 0.85 and 1.2 < max(ratios) <= 1.5
    assert -0.3 <= min(shifts) < -0.1 and 0.1 < max(shifts) <= 0.3


def test_noise_has_the_deviation_that_was_drawn():
    values = torch.zeros(20000)
    found = [float(noise(values, draws(seed), most=0.5).std()) for seed in range(20)]
    expected = [0.5 * float(torch.rand((), generator=draws(seed))) for seed in range(20)]
    assert found == pytest.approx(expected, rel=0.05)


def test_blur_is_a_gaussian_and_keeps_constants():
    sigma = 1.5 * float(torch.rand((), generator=draws(2)))
    image = torch.zeros(2, 25, 25, 1, dtype=torch.float64)
    image[:, 12, 12] = 1.0
    smooth = blur(image, draws(2), most_voxels=1.5)
    assert smooth.shape == image.shape and smooth.sum() == pytest.approx(2.0)
    place = torch.arange(25.0) - 12
    assert (smooth[0, :, :, 0].sum(1) * place.square()).sum() == pytest.approx(sigma**2, rel=0.05)
    assert torch.allclose(smooth[0], smooth[1])
    constant = torch.full((3, 4, 5), 7.0)
    torch.testing.assert_close(blur(constant, draws(2), most_voxels=1.5), constant)
    assert blur(image, draws(2), most_voxels=0.0) is image


def test_blur_of_an_image_smaller_than_its_kernel():
    values = torch.rand(2, 3, 2, generator=draws(5))
    smooth = blur(values, draws(2), most_voxels=4.0)
    assert torch.isfinite(smooth).all() and values.min() <= smooth.min() and smooth.max() <= values.max()
