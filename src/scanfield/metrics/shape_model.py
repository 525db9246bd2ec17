"""What shapes are like, and how good a model of many shapes is.

Notation: V volume and A area of a shape's surface; D(a, b) = 2 |a and b| / (|a| + |b|) the Dice overlap of two shapes,
or of two sequences with the frames of each taken together.

    sphericity      pi^(1/3) (6 V)^(2/3) / A: 1 for a ball, less for anything else
    compactness     share of the variance that the first m principal modes hold, for every m
    generalisation  mean over unseen shapes of 1 - D(shape, the model's nearest member)
    specificity     mean over shapes that the model draws of 1 - D(shape, the nearest training shape)

The last three are those of Davies et al. (IEEE TMI 2002), with 1 - D in place of the distance between landmarks: less
is better, and 0 for a model that copies. A specificity close to 0 alone says that nothing new is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from scanfield.fields.shape import smooth_mask_mesh
from scanfield.space.grid import Grid

_AT_ONCE = 2**24  # voxels that are turned into numbers together
DESCRIPTORS = ("volume_mm3", "surface_mm2", "sphericity", "components")


@dataclass(frozen=True)
class ShapeDescriptors:
    """What one shape is like.

    Args:
        volume_mm3: enclosed by its surface.
        surface_mm2: area of the surface, without the staircase of voxels.
        sphericity: see above.
        components: parts that no face of a voxel connects.
    """

    volume_mm3: float
    surface_mm2: float
    sphericity: float
    components: int


def describe(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> ShapeDescriptors:
    """The descriptors of a mask.

    Raises:
        InputError: the mask is empty, or a single slice.
    """
    mesh = smooth_mask_mesh(mask, grid)
    volume, area = mesh.volume_mm3, mesh.area_mm2
    _, parts = ndimage.label(mask.cpu().numpy())
    return ShapeDescriptors(volume, area, math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, int(parts))


def dice_matrix(a: Bool[Tensor, "n *v"], b: Bool[Tensor, "m *v"]) -> Float[Tensor, "n m"]:
    """D of every shape of one set with every shape of another, on the same voxels; two empty shapes agree."""
    rows, columns = a.flatten(1), b.flatten(1)
    size = rows.sum(dim=1)[:, None] + columns.sum(dim=1)
    both = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    part = max(1, _AT_ONCE // (len(rows) + len(columns)))
    for start in range(0, rows.shape[1], part):  # a product of masks needs them as numbers, four times as large
        both += rows[:, start : start + part].float() @ columns[:, start : start + part].float().T
    return torch.where(size > 0, 2 * both / size.clamp(min=1), torch.ones_like(both)).float()


def paired_dice(a: Bool[Tensor, "n *v"], b: Bool[Tensor, "n *v"]) -> Float[Tensor, " n"]:
    """D of every shape with the one at the same place of another set."""
    size = a.flatten(1).sum(dim=1) + b.flatten(1).sum(dim=1)
    both = (a & b).flatten(1).sum(dim=1)
    return torch.where(size > 0, 2 * both / size.clamp(min=1), torch.ones(len(a)))


def compactness(samples: Float[Tensor, "n k"]) -> Float[Tensor, " m"]:
    """Shares of the variance of codes, or of stacked distances, that the first 1, 2, ..., n - 1 modes hold.

    Raises:
        ValueError: there are fewer than two samples, or all are the same.
    """
    if len(samples) < 2:
        raise ValueError("one sample has no variance")
    variance = torch.linalg.svdvals((samples - samples.mean(dim=0)).double())[: len(samples) - 1].square()
    if not variance.sum() > 1e-12 * samples.double().square().sum():
        raise ValueError("all samples are the same: there is no variance to hold")
    return (variance.cumsum(0) / variance.sum()).float()


def generalisation(unseen: Bool[Tensor, "n *v"], rebuilt: Bool[Tensor, "n *v"]) -> float:
    """Mean 1 - D of unseen shapes and what the model made of them."""
    return float(1 - paired_dice(unseen, rebuilt).mean())


def specificity(drawn: Bool[Tensor, "n *v"], training: Bool[Tensor, "m *v"]) -> float:
    """Mean 1 - D of drawn shapes and the training shape nearest to each."""
    return float(1 - dice_matrix(drawn, training).max(dim=1).values.mean())
