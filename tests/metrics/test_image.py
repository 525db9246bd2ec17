"""Image metrics against numbers worked by hand and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import metrics as skimage_metrics

from scanfield.errors import InputError
from scanfield.metrics.image import compare, nrmse, psnr_db, rmse, ssim, ssim_map


def _pair(shape: tuple[int, int, int] = (40, 33, 1)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth reference with an edge, and the same with noise and an offset."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    reference = np.sin(i / 5.0) * np.cos(j / 7.0) + (i + k > 12)
    noise = np.random.default_rng(3).normal(size=shape)
    return reference + 0.1 * noise + 0.05, reference


def test_numbers_worked_by_hand() -> None:
    reference = np.array([0.0, 0.0, 3.0, 4.0]).reshape(2, 2, 1)
    image = np.array([1.0, 0.0, 3.0, 2.0]).reshape(2, 2, 1)  # squared errors 1, 0, 0, 4
    assert rmse(image, reference) == pytest.approx(math.sqrt(5 / 4))
    assert nrmse(image, reference) == pytest.approx(math.sqrt(5) / 5)  # ||r|| = 5
    assert psnr_db(image, reference) == pytest.approx(20 * math.log10(4 / math.sqrt(5 / 4)))  # L = 4 - 0
    assert psnr_db(image, reference, data_range=40.0) == pytest.approx(psnr_db(image, reference) + 20)


def test_the_mask_chooses_the_voxels_and_the_data_range() -> None:
    reference = np.array([0.0, 0.0, 3.0, 4.0]).reshape(2, 2, 1)
    image = np.array([1.0, 0.0, 3.0, 2.0]).reshape(2, 2, 1)
    mask = np.array([0, 0, 1, 1]).reshape(2, 2, 1)
    found = compare(image, reference, mask)
    assert (found.data_range, found.mask_voxels) == (1.0, 2)
    assert found.psnr_db == pytest.approx(20 * math.log10(1 / math.sqrt(2)))
    assert found.nrmse == pytest.approx(2 / 5)


@pytest.mark.parametrize("data_range", [None, 2.5])
def test_psnr_and_nrmse_agree_with_skimage(data_range: float | None) -> None:
    image, reference = _pair((20, 17, 5))
    found = compare(image, reference, data_range=data_range)
    span = float(np.ptp(reference)) if data_range is None else data_range
    assert found.data_range == span
    assert found.mask_voxels == 20 * 17 * 5
    assert found.psnr_db == pytest.approx(
        skimage_metrics.peak_signal_noise_ratio(reference, image, data_range=span), rel=1e-12
    )
    assert found.nrmse == pytest.approx(skimage_metrics.normalized_root_mse(reference, image), rel=1e-12)


def test_ssim_agrees_with_skimage_slice_by_slice() -> None:
    image, reference = _pair((40, 33, 3))
    span = float(np.ptp(reference))
    ours = ssim_map(image, reference)
    for k in range(3):
        mean, theirs = skimage_metrics.structural_similarity(
            image[..., k],
            reference[..., k],
            data_range=span,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        np.testing.assert_allclose(ours[..., k], theirs, atol=1e-12)
        border = np.zeros(reference.shape, dtype=bool)
        border[5:-5, 5:-5, k] = True  # skimage's mean leaves out half a window at the edges
        assert ssim(image, reference, border, data_range=span) == pytest.approx(mean, abs=1e-12)


def test_ssim_uses_the_plane_of_a_slice_along_any_axis() -> None:
    image, reference = _pair((30, 25, 1))
    expected = ssim(image, reference)
    for axis in (0, 1):
        assert ssim(np.moveaxis(image, 2, axis), np.moveaxis(reference, 2, axis)) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    x, r = np.full((12, 12, 1), 0.5), np.full((12, 12, 1), 1.0)
    c1 = 0.01**2
    expected = (2 * 0.5 * 1.0 + c1) / (0.5**2 + 1.0**2 + c1)
    assert ssim(x, r, data_range=1.0) == pytest.approx(expected, rel=1e-9)


def test_equal_images() -> None:
    _, reference = _pair()
    found = compare(reference, reference)
    assert found.psnr_db == math.inf
    assert found.ssim == pytest.approx(1.0, abs=1e-12)
    assert found.nrmse == 0.0


def test_tensors_arrays_and_single_precision_agree() -> None:
    image, reference = _pair()
    tensors = compare(torch.tensor(image, requires_grad=True), torch.tensor(reference), torch.ones(reference.shape))
    assert tensors == compare(image, reference)
    single = compare(torch.tensor(image).float(), torch.tensor(reference).float())
    assert single.psnr_db == pytest.approx(tensors.psnr_db, abs=1e-4)


def test_the_metrics_of_a_scaled_pair_are_the_same() -> None:
    image, reference = _pair()
    small = compare(image * 1e-3, reference * 1e-3)
    assert small.psnr_db == pytest.approx(compare(image, reference).psnr_db, abs=1e-9)
    assert small.ssim == pytest.approx(compare(image, reference).ssim, abs=1e-9)


def test_bad_input() -> None:
    image, reference = _pair((6, 5, 1))
    nothing, holed = np.zeros(reference.shape), image.copy()
    holed[2, 2] = np.nan
    with pytest.raises(InputError, match=r"differ in shape.*\n.*\n.*render"):
        compare(image[:-1], reference)
    with pytest.raises(InputError, match="shape"):
        compare(image[..., 0], reference[..., 0])
    with pytest.raises(InputError, match="1 of 30 voxels of the image are NaN"):
        compare(holed, reference)
    with pytest.raises(InputError, match="voxels of the reference"):
        compare(image, holed)
    with pytest.raises(InputError, match="mask is empty"):
        compare(image, reference, nothing)
    with pytest.raises(InputError, match="mask and reference differ"):
        compare(image, reference, nothing[:-1])
    with pytest.raises(InputError, match="constant"):
        compare(image, nothing + 2)
    with pytest.raises(InputError, match="zero inside"):
        compare(image, nothing, data_range=1.0)
    with pytest.raises(InputError, match="complex"):
        compare(image + 0j, reference)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="data range must be"):
            compare(image, reference, data_range=bad)
