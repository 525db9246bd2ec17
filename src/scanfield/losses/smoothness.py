"""What makes an image on a lattice smooth."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def anisotropic_tv(values: Float[Tensor, "n0 n1 n2"]) -> Float[Tensor, ""]:
    """sum_axes sum |D_axis x| / N^(1 - 1/d): forward differences, d axes of more than one voxel, N voxels.

    Of a slice of W x W pixels, (sum |D_0 x| + sum |D_1 x|) / W (Vasconcelos et al., TMLR 2023): the length of all edges
    in widths of the image times their height, whatever the size of the pixels. In the values' unit.
    """
    axes = [axis for axis in range(3) if values.shape[axis] > 1]
    total = values.new_zeros(())
    for axis in axes:
        total = total + values.diff(dim=axis).abs().sum()
    return total / values.numel() ** (1 - 1 / max(1, len(axes)))
