"""How close an image is to a reference: RMSE, PSNR, NRMSE and SSIM, with the data range and the mask stated.

Notation: x image and r reference, (n0, n1, n2) on one grid; M the voxels of the mask (all voxels without one), |M|
their number; L the data range, by default max r - min r inside M. Sums and means run over M.

    RMSE  = sqrt(1/|M| sum (x - r)^2)                      in the images' unit
    PSNR  = 20 log10(L / RMSE)                             in dB; infinite for equal images
    NRMSE = sqrt(sum (x - r)^2 / sum r^2)                  relative to the reference's norm, not to its range
    SSIM  = mean of the local index of Wang et al., IEEE TIP 13:600-612 (2004), eq. 13

Everything is computed in double precision. A number without its L and M cannot be compared with a published one:
`compare` returns both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanfield.errors import InputError

SSIM_SIGMA = 1.5  # voxels, Wang et al. section III.C
SSIM_TRUNCATE = 3.5  # in sigmas: an 11 x 11 window
SSIM_K1, SSIM_K2 = 0.01, 0.03

Image = Tensor | np.ndarray


@dataclass(frozen=True)
class ImageMetrics:
    """The agreement of an image with a reference, and what the numbers refer to.

    Args:
        psnr_db: peak signal-to-noise ratio; `inf` for equal images.
        ssim: structural similarity, mean over the mask; 1 for equal images.
        nrmse: ||x - r|| / ||r||.
        data_range: L, in the images' unit.
        mask_voxels: |M|.
    """

    psnr_db: float
    ssim: float
    nrmse: float
    data_range: float
    mask_voxels: int


def compare(image: Image, reference: Image, mask: Image | None = None, data_range: float | None = None) -> ImageMetrics:
    """All metrics of one image against one reference.

    Args:
        image, reference: (n0, n1, n2), one unit, one grid.
        mask: (n0, n1, n2); voxels that are not zero count.
        data_range: L, in the images' unit; by default max - min of the reference inside the mask.

    Raises:
        InputError: shapes differ, a value is not finite, the mask is empty, or the reference is constant (no default L)
            or zero (no NRMSE) inside the mask.
    """
    x, r, inside = _checked(image, reference, mask)
    limit = _data_range(r, inside, data_range)
    return ImageMetrics(
        psnr_db=_psnr_db(_rmse(x, r, inside), limit),
        ssim=float(_ssim_map(x, r, limit)[inside].mean()),
        nrmse=_nrmse(x, r, inside),
        data_range=limit,
        mask_voxels=int(inside.sum()),
    )


def rmse(image: Image, reference: Image, mask: Image | None = None) -> float:
    """Root mean square error inside the mask, in the images' unit. Arguments and errors: `compare`."""
    return _rmse(*_checked(image, reference, mask))


def psnr_db(image: Image, reference: Image, mask: Image | None = None, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio inside the mask, in dB. Arguments and errors: `compare`."""
    x, r, inside = _checked(image, reference, mask)
    return _psnr_db(_rmse(x, r, inside), _data_range(r, inside, data_range))


def nrmse(image: Image, reference: Image, mask: Image | None = None) -> float:
    """||x - r|| / ||r|| inside the mask. Arguments and errors: `compare`."""
    return _nrmse(*_checked(image, reference, mask))


def ssim(image: Image, reference: Image, mask: Image | None = None, data_range: float | None = None) -> float:
    """Mean structural similarity inside the mask. Arguments and errors: `compare`; the local index: `ssim_map`."""
    x, r, inside = _checked(image, reference, mask)
    return float(_ssim_map(x, r, _data_range(r, inside, data_range))[inside].mean())


def ssim_map(image: Image, reference: Image, mask: Image | None = None, data_range: float | None = None) -> np.ndarray:
    """The local structural similarity of every voxel, (n0, n1, n2).

        (2 m_x m_r + C1) (2 s_xr + C2) / ((m_x^2 + m_r^2 + C1) (s_x^2 + s_r^2 + C2)),   C = (0.01 L)^2, (0.03 L)^2

    with Gaussian-weighted local moments (sigma 1.5 voxels, 11 x 11 window, images mirrored at their edges) in the slice
    plane: the first two voxel axes, or the two axes of more than one voxel. The mask only sets the default L.
    Arguments and errors: `compare`.
    """
    x, r, inside = _checked(image, reference, mask)
    return _ssim_map(x, r, _data_range(r, inside, data_range))


def _checked(image: Image, reference: Image, mask: Image | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, r = _array(image, "image"), _array(reference, "reference")
    if r.ndim != 3 or r.size == 0:
        raise InputError(f"a reference needs the shape (n0, n1, n2), got {r.shape}", where="reference")
    if x.shape != r.shape:
        raise InputError(
            f"image and reference differ in shape: {x.shape} and {r.shape}",
            where="image",
            fix="render the image on the reference's grid: scanfield render RUN --like REFERENCE -o OUT",
        )
    for name, values in (("image", x), ("reference", r)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise InputError(f"{bad} of {values.size} voxels of the {name} are NaN or infinite", where=name)
    if mask is None:
        return x, r, np.ones(r.shape, dtype=bool)
    inside = _array(mask, "mask") != 0
    if inside.shape != r.shape:
        raise InputError(f"mask and reference differ in shape: {inside.shape} and {r.shape}", where="mask")
    if not inside.any():
        raise InputError("the mask is empty", where="mask", fix="give a mask with at least one voxel")
    return x, r, inside


def _array(values: Image, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if np.iscomplexobj(array):
        raise InputError(f"the {name} is complex", where=name, fix="compare magnitudes: take its absolute value")
    return array.astype(np.float64)


def _data_range(r: np.ndarray, inside: np.ndarray, given: float | None) -> float:
    if given is None:
        span = float(np.ptp(r[inside]))
        if span == 0:
            raise InputError(
                f"the reference is constant ({r[inside][0]:.4g}) inside the mask: it has no data range",
                where="reference",
                fix="give the data range in the images' unit",
            )
        return span
    if not (np.isfinite(given) and given > 0):
        raise InputError(f"the data range must be a positive number, got {given}", where="data_range")
    return float(given)


def _rmse(x: np.ndarray, r: np.ndarray, inside: np.ndarray) -> float:
    return float(np.sqrt(np.mean((x[inside] - r[inside]) ** 2)))


def _psnr_db(error: float, limit: float) -> float:
    return float("inf") if error == 0 else float(20 * np.log10(limit / error))


def _nrmse(x: np.ndarray, r: np.ndarray, inside: np.ndarray) -> float:
    norm = float(np.linalg.norm(r[inside]))
    if norm == 0:
        raise InputError("the reference is zero inside the mask: NRMSE is not defined", where="reference")
    return float(np.linalg.norm(x[inside] - r[inside])) / norm


def _ssim_map(x: np.ndarray, r: np.ndarray, limit: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    plane = [axis for axis in range(3) if x.shape[axis] > 1][:2]

    def mean(values: np.ndarray) -> Any:
        return gaussian_filter(values, SSIM_SIGMA, truncate=SSIM_TRUNCATE, mode="reflect", axes=plane)

    m_x, m_r = mean(x), mean(r)
    s_xx, s_rr, s_xr = mean(x * x) - m_x**2, mean(r * r) - m_r**2, mean(x * r) - m_x * m_r
    c1, c2 = (SSIM_K1 * limit) ** 2, (SSIM_K2 * limit) ** 2
    return np.asarray((2 * m_x * m_r + c1) * (2 * s_xr + c2) / ((m_x**2 + m_r**2 + c1) * (s_xx + s_rr + c2)))
