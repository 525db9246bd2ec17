"""Images smoothed by Gaussians, in mm."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scanfield.space.grid import Grid


def smoothed(values: Num[Tensor, "n0 n1 n2"], grid: Grid, sigma_mm: float) -> Float[Tensor, "n0 n1 n2"]:
    """An image smoothed by a Gaussian of standard deviation `sigma_mm`, continued by its border values.

    Nothing is smoothed along an axis of one voxel, or with sigma 0.
    """
    if sigma_mm == 0:
        return values.float()
    sigma = [sigma_mm / s if n > 1 else 0.0 for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    return torch.from_numpy(gaussian_filter(values.float().cpu().numpy(), sigma, mode="nearest"))
