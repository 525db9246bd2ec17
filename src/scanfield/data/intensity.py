"""Windows of intensity: what of an image's values a network calls -1 and 1, so that images of a kind look alike."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.scan import Scan
from scanfield.errors import InputError


class Window:
    """v -> (v - offset) / scale: two percentiles of an image's values become -1 and 1; nothing is cut off.

    Args:
        scan: an image of one channel; the voxels of its mask count, where it has one.
        low, high: the percentiles. Where they are equal, the range takes their place.

    Raises:
        InputError: several channels, or a constant image.
    """

    def __init__(self, scan: Scan, low: float, high: float) -> None:
        if scan.values.ndim != 3:
            raise InputError("an image of one channel is needed here", where=scan.source, fix="extract one channel")
        self.seen = torch.ones(scan.grid.shape, dtype=torch.bool) if scan.mask is None else scan.mask
        shown = scan.values.float()[self.seen]
        self.least, self.most = float(shown.min()), float(shown.max())
        if self.least == self.most:
            raise InputError("the image is constant: it shows nothing", where=scan.source)
        a, b = np.percentile(shown.numpy(), [low, high])
        if not b > a:
            a, b = self.least, self.most
        # Four digits: a file pays for every one of them.
        self.offset, self.scale = float(f"{(a + b) / 2:.4g}"), float(f"{(b - a) / 2:.4g}")

    def normalised(self, values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Values of the image as a network sees them."""
        return (values.float() - self.offset) / self.scale
