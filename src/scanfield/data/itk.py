"""Images for SimpleITK, where that is installed: the same voxels at the same places, LPS instead of RAS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError, MissingExtra

LPS = np.array([-1.0, -1.0, 1.0])
N4_LEVELS, N4_ITERATIONS, N4_SHRINK = 4, 50, 3


def simpleitk(purpose: str) -> Any:
    """The module.

    Raises:
        MissingExtra: it is not installed; `purpose` says what for.
    """
    try:
        import SimpleITK as sitk
    except ImportError:
        raise MissingExtra("SimpleITK", "itk", purpose) from None
    return sitk


def itk_image(scan: Scan) -> Any:
    """A volume as a SimpleITK image: the same voxels at the same places (LPS).

    Raises:
        MissingExtra: SimpleITK is not installed.
        InputError: the voxel axes are not at right angles.
    """
    sitk = simpleitk("an image for ITK")
    grid = scan.grid
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    if not np.allclose(unit, grid.directions, atol=1e-4):
        raise InputError("it takes no images whose axes are not at right angles", where=scan.source)
    image = sitk.GetImageFromArray(scan.values.float().cpu().numpy().transpose(2, 1, 0))
    image.SetOrigin((grid.affine[:3, 3] * LPS).tolist())
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((LPS[:, None] * grid.directions).ravel().tolist())
    return image


def itk_mask(scan: Scan) -> Any | None:
    """A scan's mask as an image of bytes, or None."""
    if scan.mask is None:
        return None
    image = itk_image(replace(scan, values=scan.mask.float(), mask=None))
    sitk = simpleitk("a mask for ITK")
    return sitk.Cast(image, sitk.sitkUInt8)


def without_bias_field(scan: Scan) -> Scan:
    """The image divided by its smooth bias field, found by N4 (Tustison et al., IEEE TMI 29:1310-1320, 2010).

    Four levels of at most 50 iterations on every third voxel, within the scan's mask, or within Otsu's threshold
    without one.

    Raises:
        MissingExtra: SimpleITK is not installed.
        InputError: a slice, values below zero (CT has no bias field), or an image N4 cannot work on.
    """
    sitk = simpleitk("the correction of a bias field (N4)")
    if min(scan.grid.shape) < 2 * N4_LEVELS:
        raise InputError(f"N4 needs a volume; this one has shape {scan.grid.shape}", where=scan.source)
    if float(scan.values.min()) < 0:
        raise InputError(
            f"N4 takes values from 0; the lowest is {float(scan.values.min()):g}",
            where=scan.source,
            fix="leave it away for CT, or shift the intensities",
        )
    image = sitk.Cast(itk_image(scan), sitk.sitkFloat32)
    mask = itk_mask(scan)
    if mask is None:
        mask = sitk.OtsuThreshold(image, 0, 1, 200)
    shrink = [min(N4_SHRINK, max(1, n // (4 * N4_LEVELS))) for n in image.GetSize()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([N4_ITERATIONS] * N4_LEVELS)
    try:
        corrector.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    except RuntimeError as error:
        raise InputError(f"N4 failed: {' '.join(str(error).split())[-160:]}", where=scan.source) from None
    bias = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    return replace(scan, values=scan.values.float() / torch.from_numpy(np.exp(bias).astype(np.float32)))
