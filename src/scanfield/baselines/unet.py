"""A voxel U-Net (Ronneberger, Fischer & Brox, MICCAI 2015): the rival of every network that is asked point by point.

Its encoder is that of the field networks (`fields.networks.pyramid`), so that only what follows differs: here features
are brought back up to the voxels of the image, and the loss is one of voxels. At another resolution its probabilities
are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from scanfield.data.cohort import Cohort
from scanfield.data.scan import Scan
from scanfield.data.standard import StandardImage, standard_image
from scanfield.errors import InputError
from scanfield.fields.image import nearest
from scanfield.fields.networks.pyramid import (
    EncoderConfig,
    ResidualEncoder,
    Stride,
    convolution,
    normalisation,
)
from scanfield.fields.pyramid import FeaturePyramid
from scanfield.fitting.crops import (
    Crop,
    CropConfig,
    CropSource,
    LabelledImage,
    batch,
    check_axes,
    draw_crop,
    learn_from_crops,
)
from scanfield.fitting.log import FitLog
from scanfield.fitting.regimes.population import Draw
from scanfield.losses.segmentation import cross_entropy, mean_dice, soft_dice
from scanfield.run import Run

Upsampling = Literal["nearest", "linear"]


@dataclass(frozen=True)
class Config:
    """Encoder, data and budget, with the names and meanings that they have in `methods.segmentation.iosnet`."""

    encoder: EncoderConfig
    crops: CropConfig
    batch: int
    steps: int
    learning_rate: float
    final_rate: float
    weight_decay: float
    clip_norm: float | None
    validate_every: int
    dice: float = 0.5


class UNet(nn.Module):
    """Encoder, and for every level from the coarsest: a transposed convolution, the skipped features, two convolutions.

    Args:
        config: the encoder's.
        strides: of its stem and stages (`fields.networks.pyramid.plan_strides`).
        classes: number of them, the background included.
        generator: draws the initial weights.
    """

    def __init__(
        self, config: EncoderConfig, strides: Sequence[Stride], classes: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(config, strides, generator=generator)
        widths = self.encoder.widths  # image, stem, stages
        ones = (1,) * self.encoder.dims
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for k in range(len(widths) - 2, -1, -1):
            after = max(widths[k], widths[1])  # at the image's own resolution there are as many channels as in the stem
            self.ups.append(_up(below, after, strides[k], generator))
            self.merges.append(
                nn.Sequential(
                    convolution(widths[k] + after, after, 3, ones, generator),
                    normalisation(after),
                    nn.ReLU(),
                    convolution(after, after, 3, ones, generator),
                    normalisation(after),
                    nn.ReLU(),
                )
            )
            below = after
        self.last = convolution(below, classes, 1, ones, generator)

    def forward(self, images: Float[Tensor, "b 1 *n"]) -> Float[Tensor, "b k *n"]:
        """Logits of every voxel."""
        *levels, h = self.encoder(images)
        for up, merge, skipped in zip(self.ups, self.merges, reversed(levels), strict=True):
            h = up(h)[(..., *(slice(n) for n in skipped.shape[2:]))]  # an odd axis had one voxel less to give
            h = merge(torch.cat([skipped, h], dim=1))
        logits: Tensor = self.last(h)
        return logits


def _up(before: int, after: int, stride: Stride, generator: torch.Generator) -> nn.Module:
    """A transposed convolution whose filter is as large as its stride: voxel j becomes voxels s j .. s j + s - 1."""
    kind = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(stride)]
    layer = skip_init(kind, before, after, stride, stride=stride)
    with torch.no_grad():
        layer.weight.normal_(0.0, (1 / before) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer


@dataclass(eq=False)
class TrainedUNet:
    """A trained U-Net, and the data it was trained on."""

    network: UNet
    source: CropSource
    log: FitLog


def train(config: Config, cohort: Cohort, run: Run) -> TrainedUNet:
    """Trains a U-Net on crops; the loss is the mean over all their voxels.

    Args:
        cohort: see `methods.segmentation.iosnet.train`.

    Raises:
        InputError: as there; or the image is wanted finer than the network sees it.
    """
    if config.crops.detail != 1:
        raise InputError(f"a U-Net sees an image in one resolution, got a detail of {config.crops.detail}")
    source = CropSource(config.crops, cohort)
    strides = source.strides(config.encoder)
    network = UNet(config.encoder, strides, len(source.table), generator=run.generator("weights")).to(run.device)

    def draw(member: Draw) -> tuple[Crop, Tensor]:  # and the classes of the crop's voxels
        image = source.train[member.index]
        crop = draw_crop(image, source, member.generator, run.device)
        return crop, nearest(image.classes, image.grid, crop.grids[0].points()).long()

    def loss(step: int, drawn: list[tuple[Crop, Tensor]]) -> dict[str, Tensor]:
        crop = batch([crop for crop, _ in drawn], run.device)
        classes = torch.stack([voxels for _, voxels in drawn]).to(run.device)
        logits = network(crop.image).flatten(2).mT
        return {"cross_entropy": cross_entropy(logits, classes), "dice": soft_dice(logits, classes)}

    log = learn_from_crops(
        "unet", network, config, source, loss, draw, lambda image: _error(network, image, run.device), run
    )
    return TrainedUNet(network.eval(), source, log)


def classifier(
    trained: TrainedUNet, image: Scan, device: torch.device | str, *, upsampling: Upsampling
) -> Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n k"]]:
    """World points, (n, 3) mm -> log-probabilities (n, classes): those of the voxels, interpolated.

    Args:
        upsampling: 'linear' interpolates the probabilities, 'nearest' takes those of the nearest voxel.
    """
    source = trained.source
    standard = standard_image(image, source.config.intensities, source.spacing_mm)
    check_axes(standard.grid, source.axes, image.source)
    return _asked(trained.network, standard, torch.device(device), upsampling)


def _asked(
    network: UNet, image: StandardImage, device: torch.device, upsampling: Upsampling
) -> Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n k"]]:
    with torch.no_grad():
        p = network(image.values.squeeze()[None, None].to(device)).softmax(dim=1)
    condition = FeaturePyramid([p], [(1,) * (p.ndim - 2)], [image.grid])

    def ask(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n k"]:
        if upsampling == "nearest":
            x = image.grid.to_world(image.grid.to_voxel(x.double()).round()).to(x)
        return condition.at(x).clamp(min=torch.finfo(p.dtype).tiny).log()

    return ask


def _error(network: UNet, image: LabelledImage, device: torch.device) -> float:
    """1 - the mean Dice of the classes that a validation image shows."""
    x, classes = image.watched()
    return 1 - mean_dice(_asked(network, image.image, device, "linear")(x.to(device)).argmax(dim=1).cpu(), classes)
