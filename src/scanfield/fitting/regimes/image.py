"""What fits of images have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scanfield.data.scan import Scan


def held_out_error(field: Callable[[Tensor], Tensor], held_out: Scan, device: torch.device) -> Callable[[], float]:
    """Root mean square error at the voxels of an image's mask (all voxels without one), in its unit."""
    mask = torch.ones(held_out.grid.shape, dtype=torch.bool) if held_out.mask is None else held_out.mask
    index = mask.flatten().nonzero()[:, 0]
    x, truth = held_out.grid.points()[index].to(device), held_out.values.float().flatten()[index].to(device)

    def error() -> float:
        return float((field(x)[:, 0] - truth).square().mean().sqrt())

    return error
