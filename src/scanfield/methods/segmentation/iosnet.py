"""IOSNet: implicit neural representations for medical imaging segmentation (Khan & Fang, MICCAI 2022).

Notation: E a convolutional encoder, F_l = E(image) its features of level l (level 0 is the image itself), M the map
from world millimetres to voxels, d_i displacements along the image's axes, D a perceptron that all points share.

    phi(x) = [ F_l(M x + d_i) ]  for all l and i          (`fields.pyramid`)
    logits = D(phi(x))                                    of the classes at any point x, mm
    train    E, D = argmin  mean over points x of -log softmax(D(phi(x)))[class at x]  (+ soft Dice)

The points of a step lie anywhere in crops of the images, as many inside the structures, along their boundaries and in
the background as is asked for, whatever the resolution of image or label map. An image is encoded once; its classes can
then be asked for at any points, in memory that depends on how many are asked for together and not on any output grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scanfield.data.cohort import Cohort
from scanfield.data.scan import Scan
from scanfield.data.standard import StandardImage, standard_image
from scanfield.errors import InputError
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.pyramid import EncoderConfig, ResidualEncoder, Stride
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
    whole_image,
)
from scanfield.fitting.regimes.population import Draw, show_member
from scanfield.losses.segmentation import cross_entropy, mean_dice, soft_dice
from scanfield.run import Image, Run, Shown
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model, built_from, check_model

CHUNK = 2**12  # points that are decoded at once


@dataclass(frozen=True)
class Config:
    """The published architecture as far as it is known; the training's settings are ours (see the card)."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """the convolutional encoder"""
    decoder: tuple[int, ...] = (1024, 1024, 1024)
    """widths of the hidden layers of the perceptron"""
    levels: Literal["all", "last"] = "all"
    """which features a point sees: those of all levels, or the coarsest alone"""
    displacement: float = 3.5
    """how far around a point features are sampled, in voxels of the encoder (3.5: as in IF-Net); 0: at the point"""
    whole: bool = False
    """append the mean of the coarsest features, the same at every point"""
    dice: float = 0.0
    """weight of the soft Dice term; the cross-entropy has 1 less this (abstract: 0; re-implementation in SwIPE: 0.5)"""
    crops: CropConfig = field(default_factory=CropConfig)
    """how images are made ready and cropped, and how many points are drawn"""
    batch: int = 12
    """crops in a step"""
    steps: int = 20_000
    """steps of the training"""
    learning_rate: float = 5e-4
    """of AdamW, at the start"""
    final_rate: float = 0.02
    """rate at the end over the rate at the start: half a cosine"""
    weight_decay: float = 0.01
    """of AdamW"""
    clip_norm: float | None = 1.0
    """largest norm of the gradient (ours)"""
    validate_every: int = 500
    """steps between looks at the validation images"""

    @staticmethod
    def fast() -> Config:
        """Trains in minutes on a CPU for crops of some ten thousand voxels (ours)."""
        return Config(
            encoder=EncoderConfig(widths=(16, 32, 48, 64), blocks=1, stem=3, halve_in_stem=False),
            decoder=(128, 128),
            displacement=1.0,
            dice=0.5,
            crops=CropConfig(size=64, interior=128, boundary=256, background=128, band=2.0),
            batch=4,
            steps=2000,
            learning_rate=1e-3,
            validate_every=200,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        fast = Config.fast()
        return replace(
            fast,
            encoder=replace(fast.encoder, widths=(8, 8, 16)),
            decoder=(32,),
            crops=replace(fast.crops, interior=32, boundary=64, background=32),
            batch=4,
            steps=60,
            learning_rate=5e-3,
            validate_every=30,
        )


_POOLS = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


class IOSNet(nn.Module):
    """Encoder and point-wise decoder.

    Args:
        strides: of the encoder's stem and stages.
        classes: number of them, the background included.
        generator: draws the initial weights.
    """

    def __init__(self, config: Config, strides: Sequence[Stride], classes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(config.encoder, strides, generator=generator)
        self.levels, self.whole, self.detail = config.levels, config.whole, config.crops.detail
        widths = self.encoder.widths if config.levels == "all" else self.encoder.widths[-1:]
        copies = 1 + 2 * self.encoder.dims if config.displacement else 1
        features = copies * sum(widths) + (self.encoder.widths[-1] if config.whole else 0)
        self.classes = classes
        self.decoder = MLP((features, *config.decoder, classes), generator=generator)

    def encode(self, images: Float[Tensor, "b 1 *n"], grids: Sequence[Grid], displacement_mm: float) -> FeaturePyramid:
        """What the decoder is conditioned on.

        Args:
            images: `detail` voxels to a voxel of the encoder, which sees their means.
            grids: the encoder's.
        """
        fine, dims = self.detail, self.encoder.dims
        levels: list[Tensor] = self.encoder(images if fine == 1 else _POOLS[dims](images, fine))
        levels[0] = images
        scales: list[tuple[float, ...]] = [(1 / fine,) * dims, *self.encoder.scales[1:]]
        starts = [((1 / fine - 1) / 2,) * dims, *[(0.0,) * dims] * (len(levels) - 1)]
        shared = levels[-1].flatten(2).mean(dim=2) if self.whole else None
        if self.levels == "last":
            levels, scales, starts = levels[-1:], scales[-1:], starts[-1:]
        return FeaturePyramid(levels, scales, grids, starts=starts, displacement_mm=displacement_mm, shared=shared)

    def forward(self, x: Float[Tensor, "*n 3"], condition: FeaturePyramid) -> Float[Tensor, "*n k"]:
        """Logits at world points, mm."""
        logits: Tensor = self.decoder(condition.at(x))
        return logits


def train(config: Config, cohort: Cohort, run: Run) -> Model:
    """Trains encoder and decoder together on crops.

    Args:
        cohort: labelled images of one channel, all slices of one orientation or all volumes. Those of the split 'train'
            are learned from, those of 'validation' are watched, and the weights of their best look are kept.

    Raises:
        InputError: the images do not suit each other, a label map is missing, an image is constant, or a setting is
            impossible.
    """
    if not 0 <= config.dice <= 1:
        raise InputError(f"the weight of the Dice term lies in 0 to 1, got {config.dice}")
    if not config.displacement >= 0:
        raise InputError(f"features around a point cannot be sampled at a displacement of {config.displacement}")
    source = CropSource(config.crops, cohort)
    strides = source.strides(config.encoder)
    network = IOSNet(config, strides, len(source.table), generator=run.generator("weights")).to(run.device)
    displacement_mm = config.displacement * float(np.mean([source.spacing_mm[axis] for axis in source.axes]))

    def draw(member: Draw) -> Crop:
        return draw_crop(source.train[member.index], source, member.generator, run.device)

    def loss(step: int, crops: list[Crop]) -> dict[str, Tensor]:
        crop = batch(crops, run.device)
        logits = network(crop.x, network.encode(crop.image, crop.grids, displacement_mm))
        return {"cross_entropy": cross_entropy(logits, crop.classes), "dice": soft_dice(logits, crop.classes)}

    show_member(run, lambda: _shown(network, source, config.batch, displacement_mm, run.device), network)
    log = learn_from_crops(
        "network",
        network,
        config,
        source,
        loss,
        draw,
        lambda image: _error(network, image, displacement_mm, run.device),
        run,
    )
    facts = {
        **source.facts(),
        "displacement_mm": displacement_mm,
        "strides": [list(stride) for stride in strides],
    }
    tensors = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return Model("iosnet", config, tensors, facts, cohort.record(), logs=[log])


def _shown(network: IOSNet, source: CropSource, crops: int, displacement_mm: float, device: torch.device) -> Shown:
    """The classes of a validation image, or of one to learn from; of a large image those around its structures."""
    part = source.middle((source.validation or source.train)[0], crops)

    def prepare() -> Image:
        condition = _encoded(network, part, displacement_mm, device)

        def classes(grid: Grid) -> Tensor:
            return _decoded(network, condition, grid.points(device=device)).argmax(dim=1).cpu().reshape(grid.shape)

        return classes

    what = "classes of a validation image" if source.validation else "classes of an image to learn from"
    return Shown(prepare, part.grid, "", what, (0.0, len(source.table) - 1.0))


def _error(network: IOSNet, image: LabelledImage, displacement_mm: float, device: torch.device) -> float:
    """1 - the mean Dice of the classes that a validation image shows."""
    x, classes = image.watched()
    condition = _encoded(network, image.image, displacement_mm, device)
    return 1 - mean_dice(_decoded(network, condition, x.to(device)).argmax(dim=1).cpu(), classes)


def classifier(model: Model, image: Scan, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """What a trained model says about an image, at any point.

    Args:
        image: of one channel; brought to the axes, spacing and window that the model was trained with.

    Returns:
        World points on `device`, (n, 3) mm -> logits (n, classes), in the order of the model's label table. Beyond the
        image's outermost voxels the classes are those of its edge. The image was encoded once; nothing has gradients.

    Raises:
        InputError: this is another method's model, or its facts do not suit its weights; the image has several
            channels, is constant, or extends along other axes than those trained on.
    """
    check_model("iosnet", model)
    with built_from(model):
        network = _restored(model).to(device)
        a, b, c = (float(s) / model.config.crops.detail for s in model.facts["encoder_spacing_mm"])
        axes, displacement_mm = [range(3)[k] for k in model.facts["axes"]], float(model.facts["displacement_mm"])
        if not 0 <= displacement_mm < np.inf:
            raise ValueError(f"a displacement of {displacement_mm} mm")
    standard = standard_image(image, model.config.crops.intensities, (a, b, c))
    check_axes(standard.grid, axes, image.source)
    condition = _encoded(network, standard, displacement_mm, torch.device(device))
    return lambda x: _decoded(network, condition, x)


def _restored(model: Model) -> IOSNet:
    strides = [tuple(stride) for stride in model.facts["strides"]]
    classes = len(model.facts["labels"]["values"])
    network = IOSNet(model.config, strides, classes, generator=torch.Generator())
    network.load_state_dict(model.tensors)
    return network.eval().requires_grad_(False)


def _encoded(network: IOSNet, image: StandardImage, displacement_mm: float, device: torch.device) -> FeaturePyramid:
    """A whole image's features, without gradients."""
    a, b, c = (network.detail if n > 1 else 1 for n in image.grid.shape)
    values, grid = whole_image(image, (a, b, c))
    with torch.no_grad():
        return network.encode(values.to(device), [grid], displacement_mm)


def _decoded(network: IOSNet, condition: FeaturePyramid, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n k"]:
    """Logits in chunks, without gradients: memory does not grow with the number of points, but for the result."""
    with torch.no_grad():
        found = torch.empty(len(x), network.classes, device=x.device)  # small pieces kept would break up the memory
        for part, out in zip(x.split(CHUNK), found.split(CHUNK), strict=True):
            out.copy_(network(part, condition))
        return found
