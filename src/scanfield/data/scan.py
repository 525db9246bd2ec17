"""Image-like data: values on a grid in the world."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid


@dataclass(frozen=True, eq=False)
class Scan:
    """An image on a grid.

    Args:
        values: (n0, n1, n2) or (n0, n1, n2, channels), finite.
        grid: where the voxels are.
        unit: of the values: 'HU', '1/mm', 'Gy', 'arbitrary'.
        mask: (n0, n1, n2) bool, or None.
        labels: name of every label value if the values are labels.
        source: name of the file, for messages and provenance.
    """

    values: Tensor
    grid: Grid
    unit: str = "arbitrary"
    mask: Tensor | None = None
    labels: dict[int, str] | None = None
    source: str = ""

    kind = "image"

    def __post_init__(self) -> None:
        if tuple(self.values.shape[:3]) != self.grid.shape or self.values.ndim not in (3, 4):
            raise InputError(
                f"image values of shape {tuple(self.values.shape)} do not fit a grid of shape {self.grid.shape}",
                where=self.source,
            )
        if self.values.is_floating_point():
            bad = int((~torch.isfinite(self.values)).sum())
            if bad:
                raise InputError(
                    f"{bad} of {self.values.numel()} voxels are NaN or infinite",
                    where=self.source,
                    fix="replace them, or crop the image to its valid part",
                )
        if self.mask is not None:
            if tuple(self.mask.shape) != self.grid.shape:
                raise InputError(
                    f"the mask has shape {tuple(self.mask.shape)}, its image {self.grid.shape}", where=self.source
                )
            if not bool(self.mask.any()):
                raise InputError("the mask is empty", where=self.source, fix="give a mask with at least one voxel")
