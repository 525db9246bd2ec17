"""A residual convolutional encoder that returns its features at every resolution (He et al., CVPR 2016).

Convention: voxel j of a level lies at voxel s j of the image, s the product of the strides so far; an axis of n voxels
has ceil(n / s) of them. Normalisation is over groups of channels (Wu & He, ECCV 2018): an image's features do not
depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils import skip_init

from scanfield.errors import InputError

Stride = tuple[int, ...]
GROUPS = 8
_LEAST = 4  # voxels of an axis that is halved


@dataclass(frozen=True)
class EncoderConfig:
    """A residual encoder of 18 layers (He et al. 2016), as `ResidualEncoder` builds it."""

    widths: tuple[int, ...] = (64, 64, 128, 256, 512)
    """channels of the stem and of every stage"""
    blocks: int = 2
    """residual blocks of a stage"""
    stem: int = 7
    """size of the stem's filters"""
    halve_in_stem: bool = True
    """whether the stem halves the resolution, as every stage does"""


def plan_strides(
    shape: Sequence[int], spacing_mm: Sequence[float], stages: int, *, halve_first: bool
) -> tuple[Stride, ...]:
    """Strides of so many stages: 2 along the axes that are halved in it, else 1.

    Halved are axes that still have four voxels and whose voxels are, so far, less than twice as large as the smallest
    of those: thick slices wait for the others (Isensee et al., nnU-Net, Nature Methods 2021).

    Args:
        shape, spacing_mm: of the images along every axis that is convolved.
        halve_first: whether the first stage (the stem) halves, too.
    """
    sizes, spacing, strides = list(shape), list(spacing_mm), []
    for stage in range(stages):
        large = [n >= _LEAST for n in sizes]
        finest = min((s for s, there in zip(spacing, large, strict=True) if there), default=0.0)
        halved = stage > 0 or halve_first
        stride = tuple(2 if halved and there and s < 2 * finest else 1 for s, there in zip(spacing, large, strict=True))
        sizes = [math.ceil(n / k) for n, k in zip(sizes, stride, strict=True)]
        spacing = [s * k for s, k in zip(spacing, stride, strict=True)]
        strides.append(stride)
    return tuple(strides)


class ResidualEncoder(nn.Module):
    """Images -> features: the image itself, the stem's, and those of every stage of residual blocks.

    Args:
        config: widths, blocks, size of the stem's filters.
        strides: of the stem and of every stage, one number for each axis: two axes or three.
        channels: of the images.
        generator: draws the initial weights.

    Raises:
        InputError: no width, or one below 1, or no block, or filters of an even size.
    """

    def __init__(
        self, config: EncoderConfig, strides: Sequence[Stride], *, channels: int = 1, generator: torch.Generator
    ) -> None:
        super().__init__()
        widths, blocks, stem = config.widths, config.blocks, config.stem
        if not widths or min(widths) < 1 or blocks < 1 or stem < 1 or stem % 2 == 0:
            raise InputError(
                f"an encoder needs widths and blocks of at least 1 and an odd stem, got {widths}, {blocks}, {stem}"
            )
        if len(strides) != len(widths) or {len(stride) for stride in strides} not in ({2}, {3}):
            raise ValueError(f"{len(widths)} widths need as many strides, of two or three axes, got {strides}")
        if min(min(stride) for stride in strides) < 1:
            raise ValueError(f"strides are at least 1, got {strides}")
        self.dims, self.widths = len(strides[0]), (channels, *widths)
        self.stem = nn.Sequential(
            convolution(channels, widths[0], stem, strides[0], generator), normalisation(widths[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(before if k == 0 else after, after, stride if k == 0 else (1,) * self.dims, generator)
                    for k in range(blocks)
                )
            )
            for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False)
        )
        scales = [(1,) * self.dims]
        for stride in strides:
            scales.append(tuple(a * b for a, b in zip(scales[-1], stride, strict=True)))
        self.scales: tuple[Stride, ...] = tuple(scales)

    def forward(self, images: Float[Tensor, "b c *n"]) -> list[Float[Tensor, "b _ *_n"]]:
        """The features of every level, the finest first.

        Raises:
            InputError: the images are so small that one voxel is left of them, and one channel in a group.
        """
        for scale, width in zip(self.scales[1:], self.widths[1:], strict=True):
            left = math.prod(-(-n // s) for n, s in zip(images.shape[2:], scale, strict=True))
            if left == 1 and width == math.gcd(GROUPS, width):
                size = " x ".join(map(str, images.shape[2:]))
                raise InputError(f"an image of {size} voxels is too small for this encoder: one voxel is left of it")
        levels = [images, self.stem(images)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        return levels


class ResidualBlock(nn.Module):
    """relu(shortcut(h) + conv(relu(conv(h)))), every convolution normalised; the shortcut has weights where it must."""

    def __init__(self, before: int, after: int, stride: Stride, generator: torch.Generator) -> None:
        super().__init__()
        ones = (1,) * len(stride)
        self.body = nn.Sequential(
            convolution(before, after, 3, stride, generator),
            normalisation(after),
            nn.ReLU(),
            convolution(after, after, 3, ones, generator),
            normalisation(after),
        )
        same = before == after and stride == ones
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(convolution(before, after, 1, stride, generator), normalisation(after))
        )

    def forward(self, h: Float[Tensor, "b c *n"]) -> Float[Tensor, "b _ *_n"]:
        return relu(self.shortcut(h) + self.body(h))


def convolution(before: int, after: int, size: int, stride: Stride, generator: torch.Generator) -> nn.Module:
    """A convolution over two or three axes, zeros beyond the image; weights from N(0, 2 / fan-out) (He et al. 2015)."""
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[len(stride)]
    layer = skip_init(kind, before, after, size, stride=stride, padding=size // 2, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0.0, (2 / (after * size ** len(stride))) ** 0.5, generator=generator)
    return layer


def normalisation(channels: int) -> nn.GroupNorm:
    """Zero mean and unit variance over at most eight groups of channels, then a learned scale and shift."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
