"""Crops of labelled images to train encoders on: the image on a lattice, and points in it with their classes.

A crop is the image on a lattice of fixed size, placed anywhere in it, and turned, scaled or mirrored where augmentation
asks for it. Only the lattice moves: points and label map stay in the world and need no warping of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from scanfield.data.augment import contrast, noise, random_affine
from scanfield.data.cohort import Cohort
from scanfield.data.label_points import LabelPoints, Shares, kept_bytes
from scanfield.data.labelled import Labelled, LabelledImages, label_table
from scanfield.data.nifti import nifti_layout
from scanfield.data.standard import Intensities, StandardImage, ras_grid, spaced_grid, standard_image
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.fields.networks.pyramid import EncoderConfig, Stride, plan_strides
from scanfield.fitting.groups import ParameterGroup, adam
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig
from scanfield.fitting.regimes.population import Draw, Epochs, Terms, amortise, watch
from scanfield.fitting.schedules import cosine
from scanfield.run import Run
from scanfield.space.grid import Grid

T = TypeVar("T")

_AROUND_STRUCTURES = 2 / 3  # of the crops that do not hold their image lie around a structure
_WATCHED = 2**15  # voxels of an image for validation
_LARGE = 2**18  # voxels of a crop: interpolating fewer is faster than waiting for a GPU
_SHOWN = 64  # images that tell what intensities are usual
_KEPT_BYTES = 2**32  # of a split's prepared images that stay in memory


@dataclass(frozen=True)
class CropConfig:
    """How images are made ready, and cropped."""

    size: int = 96
    """largest size of a crop along every axis, in voxels"""
    spacing_mm: tuple[float, ...] = ()
    """voxels that the encoder sees, along R, A, S, three numbers; none: the median of the images to learn from"""
    detail: int = 1
    """how many times finer than the encoder's voxels the image itself is sampled at a point"""
    intensities: Intensities = field(default_factory=Intensities)
    """which intensities become -1 and 1"""
    interior: int = 250
    """points of a crop inside the structures, every class as likely as any other"""
    boundary: int = 85
    """points of a crop along the boundaries between classes"""
    background: int = 665
    """points of a crop in the background"""
    band: float = 5.0
    """how far from a boundary the points along it lie, in voxels of the encoder: further than it is in doubt"""
    rotation_deg: float = 25.0
    """augmentation: crops are turned by up to this angle"""
    scale: float = 1.25
    """augmentation: crops are magnified or reduced by up to this factor"""
    shift: float = 2.0
    """augmentation: crops are shifted by up to so many of their voxels"""
    mirror: tuple[int, ...] = ()
    """augmentation: which of the axes that the images extend along (0: the first) are mirrored in half of the crops"""
    contrast: float = 1.4
    """augmentation: the contrast changes by up to this factor, and the brightness accordingly"""
    noise: float = 0.1
    """augmentation: largest standard deviation of added noise, where the intensities reach from -1 to 1"""

    @property
    def shares(self) -> Shares:
        """Points of every kind in a crop."""
        return Shares(self.interior, self.boundary, self.background)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image for an encoder, with its label map as it came.

    Args:
        image: as the encoder sees it, in voxels `detail` times finer.
        classes: of the label map's voxels.
        grid: of the label map.
        points: the label map to draw points from.
    """

    image: StandardImage
    classes: UInt8[Tensor, "n0 n1 n2"]
    grid: Grid
    points: LabelPoints

    def watched(self) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " n"]]:
        """Voxel centres of the label map (mm) and their classes: at most so many, spread evenly, for validation."""
        every = math.ceil(self.grid.size / _WATCHED)
        flat = torch.arange(0, self.grid.size, every)
        return self.grid.to_world(self.grid.voxels(flat).double()).float(), self.classes.reshape(-1)[flat].long()


class CropSource:
    """A cohort to draw crops from.

    Args:
        cohort: labelled images of one channel, all slices of one orientation or all volumes
            (`data.labelled.check_labelled`).

    Raises:
        InputError: the images have different axes of one voxel, or a label map is missing.
    """

    def __init__(self, config: CropConfig, cohort: Cohort) -> None:
        self.config, self.table = config, label_table(cohort)
        train, others = cohort.part("train"), cohort.part("validation")
        layouts, unseen = ([ras_grid(nifti_layout(member.path).grid) for member in part] for part in (train, others))
        spacing = np.median([grid.spacing_mm for grid in layouts], axis=0)
        self.image_spacing_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        self.axes = [axis for axis in range(3) if layouts[0].shape[axis] > 1]
        named = [(member.path.name, grid) for member, grid in zip((*train, *others), (*layouts, *unseen), strict=True)]
        for name, grid in named:
            check_axes(grid, self.axes, name)
        self.spacing_mm = self.image_spacing_mm
        _check(config, len(self.axes))
        if config.spacing_mm:
            self.spacing_mm = config.spacing_mm[0], config.spacing_mm[1], config.spacing_mm[2]
            for name, grid in named:
                _check_spacing(grid, self.spacing_mm, self.axes, name)
        sizes = [spaced_grid(grid, self.spacing_mm).shape for grid in layouts]
        a, b, c = (min(config.size, int(n)) for n in np.median(sizes, axis=0))
        self.shape = (a, b, c)
        self.fine_mm = tuple(s / config.detail for s in self.spacing_mm)
        fine = [spaced_grid(grid, self.fine_mm).size for grid in layouts]
        bytes_each = [grid.size + kept_bytes(grid.size) + 4 * n for grid, n in zip(layouts, fine, strict=True)]
        keep = max(1, _KEPT_BYTES // int(np.mean(bytes_each)))  # labels as they came, images as the encoder sees them
        self.train = LabelledImages(train, self.table, prepare=self._prepared, keep=keep)
        self.validation = LabelledImages(others, self.table, prepare=self._prepared, keep=keep)

    @property
    def thick(self) -> tuple[int, ...]:
        """Voxels of a crop along the axes of more than one voxel."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def factors(self) -> tuple[int, int, int]:
        """Voxels of the image itself to a voxel of the encoder."""
        a, b, c = (self.config.detail if axis in self.axes else 1 for axis in range(3))
        return a, b, c

    def strides(self, encoder: EncoderConfig) -> tuple[Stride, ...]:
        """Those of an encoder for these crops."""
        spacing = [self.spacing_mm[axis] for axis in self.axes]
        return plan_strides(self.thick, spacing, len(encoder.widths), halve_first=encoder.halve_in_stem)

    def facts(self) -> dict[str, Any]:
        """What a model has to know of the images it learned from, JSON-able: the label table, the axes, spacings in mm
        along R, A, S, and intensities. Their "ends" are the least and the largest value of the low, and of the high,
        percentile in (some of) these images, in their own unit."""
        recipe = self.config.intensities
        images = [self.train[k].image for k in range(min(len(self.train), _SHOWN))]
        ends = np.array([_percentiles(image, recipe.low_percentile, recipe.high_percentile) for image in images])
        intensities = asdict(recipe) | {"window": list(recipe.window)}
        intensities["ends"] = np.stack([ends.min(axis=0), ends.max(axis=0)], axis=1).tolist()
        return {
            "labels": self.table.to_json(),
            "dims": len(self.axes),
            "axes": self.axes,
            "spacing_mm": list(self.image_spacing_mm),
            "encoder_spacing_mm": list(self.spacing_mm),
            "intensity": intensities,
        }

    def middle(self, image: LabelledImage, crops: int) -> StandardImage:
        """The part of an image around the middle of what its label map shows: all of it, or as much as so many crops
        hold. Encoding it costs no more than encoding them."""
        whole, inside = image.image.grid, image.classes.numpy() > 0
        around = whole.centre_mm
        if inside.any():
            found = [np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis))) for axis in range(3)]
            ends = torch.tensor([[(f[0] + f[-1]) / 2 for f in found]], dtype=torch.float64)
            around = image.grid.to_world(ends)[0].numpy()
        longer = crops ** (1 / len(self.axes))
        most = [int(n * factor * longer) for n, factor in zip(self.shape, self.factors, strict=True)]
        size = np.minimum(whole.shape, most)
        place = whole.to_voxel(torch.from_numpy(around)).numpy()
        first = np.clip(np.rint(place - (size - 1) / 2), 0, whole.shape - size).astype(int)
        values = image.image.values[tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))]
        return StandardImage(values, whole.part(first, size), image.image.window)

    def moved(self, grid: Grid, generator: torch.Generator) -> Grid:
        """A lattice turned, scaled, mirrored and shifted as the augmentation has it; a slice stays in its plane."""
        config, dims = self.config, len(self.axes)
        order = [*self.axes, *(axis for axis in range(3) if axis not in self.axes)]
        motion = random_affine(
            grid.centre_mm,
            generator,
            rotation_deg=config.rotation_deg,
            scale=config.scale,
            shift_mm=config.shift * config.detail * mean_spacing_mm(grid),
            mirror=config.mirror,
            directions=grid.directions[:, order],
            dims=dims,
        )
        return grid.moved(motion)

    def _prepared(self, labelled: Labelled) -> LabelledImage:
        config, grid = self.config, labelled.image.grid
        image = standard_image(labelled.image, config.intensities, self.fine_mm)
        check_axes(image.grid, self.axes, labelled.image.source)
        points = LabelPoints(labelled.classes, grid, band_mm=config.band * config.detail * mean_spacing_mm(image.grid))
        return LabelledImage(image, labelled.classes, grid, points)


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop, or a batch of them (then every tensor has one more axis in front, and `grids` one entry for each).

    Args:
        image: (1, *sizes), over the axes of more than one voxel, `detail` of them to a voxel of the encoder.
        grids: the encoder's lattice.
        x: points in it, mm.
        classes: theirs.
    """

    image: Float[Tensor, "*b 1 *n"]
    grids: tuple[Grid, ...]
    x: Float[Tensor, "*b m 3"]
    classes: Int[Tensor, "*b m"]


def draw_crop(
    image: LabelledImage, source: CropSource, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Crop:
    """One crop of an image, with its points.

    Args:
        device: where the image of a large crop is interpolated, and stays; all else is on the CPU.
    """
    config = source.config
    shape = tuple(n * factor for n, factor in zip(source.shape, source.factors, strict=True))
    device = device if math.prod(shape) > _LARGE else "cpu"
    grid = source.moved(_lattice(image, shape, generator), generator)
    values = _around(image.image, grid).to(device)(grid.points(device=device)).reshape(1, *(n for n in shape if n > 1))
    values = contrast(values, generator, factor=config.contrast, shift=config.contrast - 1)
    values = noise(values, generator, most=config.noise)
    x, classes = image.points.draw(config.shares, generator, within=grid)
    return Crop(values, (grid.coarsened(source.factors),), x, classes)


def whole_image(image: StandardImage, factors: tuple[int, int, int]) -> tuple[Float[Tensor, "1 1 *n"], Grid]:
    """An image as a batch of one, and the encoder's grid; repeated at its end to fill that grid's last voxels."""
    shape = [-(-n // factor) * factor for n, factor in zip(image.grid.shape, factors, strict=True)]
    more = [n - old for n, old in zip(shape, image.grid.shape, strict=True)]
    values = torch.nn.functional.pad(
        image.values[None, None], [end for n in reversed(more) for end in (0, n)], "replicate"
    )
    grid = image.grid.part((0, 0, 0), shape).coarsened(factors)
    return values.reshape(1, 1, *(n for n in shape if n > 1)), grid


def batch(crops: Sequence[Crop], device: torch.device) -> Crop:
    """Crops as one batch on a device."""
    image, x, classes = (
        torch.stack(part).to(device) for part in zip(*((c.image, c.x, c.classes) for c in crops), strict=True)
    )
    return Crop(image, tuple(grid for crop in crops for grid in crop.grids), x, classes)


def mean_spacing_mm(grid: Grid) -> float:
    """Mean voxel size along the axes of more than one voxel."""
    return float(np.mean([grid.spacing_mm[axis] for axis in range(3) if grid.shape[axis] > 1]))


def check_axes(grid: Grid, axes: Sequence[int], where: str) -> None:
    """Raises `InputError` unless a grid has more than one voxel along exactly these axes (of R, A, S)."""
    found = [axis for axis in range(3) if grid.shape[axis] > 1]
    if found == list(axes):
        return
    names = ("right", "anterior", "superior")
    mine, theirs = (", ".join(names[axis] for axis in own) for own in (found, axes))
    raise InputError(
        f"the image extends along {mine}; those the network learns from extend along {theirs}",
        where=where,
        fix="use images of the same axes: slices of one orientation, or volumes",
    )


def _check(config: CropConfig, dims: int) -> None:
    spacing, points = config.spacing_mm, (config.interior, config.boundary, config.background)
    if config.detail < 1:
        raise InputError(f"an image is at least as fine as the encoder's voxels, got a detail of {config.detail}")
    if config.size < 4:
        raise InputError(f"a crop needs four voxels along an axis, got {config.size}")
    if spacing and (len(spacing) != 3 or min(spacing) <= 0):
        raise InputError(f"a spacing is three positive numbers, in mm, got {spacing}")
    if min(points) < 0 or not any(points):
        raise InputError(f"the numbers of points cannot be negative, nor all of them zero, got {points}")
    if not set(config.mirror) <= set(range(dims)):
        raise InputError(f"axes that can be mirrored are 0 to {dims - 1}, got {config.mirror}")
    if min(config.scale, config.contrast) < 1:
        raise InputError(f"scale and contrast change by a factor of 1 or more, got {config.scale}, {config.contrast}")
    if min(config.rotation_deg, config.shift, config.noise, config.band) < 0:
        raise InputError("rotation, shift, noise and the width of the band cannot be negative")


def _check_spacing(grid: Grid, spacing_mm: tuple[float, float, float], axes: Sequence[int], where: str) -> None:
    seen = spaced_grid(grid, spacing_mm).shape
    if min(seen[axis] for axis in axes) < 2:
        raise InputError(
            f"voxels of {' x '.join(f'{s:g}' for s in spacing_mm)} mm leave {' x '.join(map(str, seen))} of the image",
            where=where,
            fix="choose a smaller spacing for the encoder, or none",
        )


def _around(image: StandardImage, grid: Grid) -> ImageField:
    """The part of an image that a lattice needs: all of a large one would have to travel for every crop."""
    place = image.grid.to_voxel(torch.from_numpy(grid.corners_mm())).numpy()
    size = np.asarray(image.grid.shape)
    first = np.clip(np.floor(place.min(axis=0)), 0, np.maximum(size - 2, 0)).astype(int)
    last = np.minimum(np.maximum(np.ceil(place.max(axis=0)), first + 1).astype(int), size - 1)
    values = image.values[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    return ImageField(values, image.grid.part(first, values.shape))


def _percentiles(image: StandardImage, *percentiles: float) -> list[float]:
    """Percentiles of an image, in its own unit."""
    low, high = image.window
    return [float(p) * (high - low) / 2 + (high + low) / 2 for p in np.percentile(image.values.numpy(), percentiles)]


def _lattice(image: LabelledImage, shape: Sequence[int], generator: torch.Generator) -> Grid:
    """Where a crop lies: on the image's voxels, inside as far as it fits."""
    whole = image.image.grid
    room, u = np.asarray(whole.shape) - np.asarray(shape), torch.rand(4, generator=generator).numpy()
    first = u[:3] * room
    if (room > 0).any() and u[3] < _AROUND_STRUCTURES:
        around = image.points.centre(generator)
        if around is not None:  # anywhere such that the point is in the crop
            first = whole.to_voxel(around.double()).numpy() - u[:3] * (np.asarray(shape) - 1)
    first = np.where(room > 0, np.clip(np.rint(first), 0, np.maximum(room, 0)), np.floor(room / 2))
    return whole.part(first, shape)


@runtime_checkable
class Budget(Protocol):
    """How long and how fast a network learns from crops."""

    @property
    def batch(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def final_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip_norm(self) -> float | None: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def dice(self) -> float: ...


def learn_from_crops(
    stage: str,
    network: nn.Module,
    budget: Budget,
    source: CropSource,
    loss: Callable[[int, list[T]], Terms],
    draw: Callable[[Draw], T],
    error: Callable[[LabelledImage], float],
    run: Run,
) -> FitLog:
    """Trains a network in place by AdamW with half a cosine, and keeps the weights of the best look at the validation
    images, where there are any. Networks that are compared learn by this alike.

    Args:
        stage: name in the log, of the checkpoint and of the parameters.
        loss: step and batch -> 'cross_entropy' and 'dice', the latter with weight `budget.dice`, the former with what
            it leaves of one.
        draw: what a member contributes to a batch.
        error: of a validation image, smaller is better.
    """
    held_out = None
    if source.validation:
        held_out = watch(len(source.validation), lambda k: error(source.validation[k]), network)
    return amortise(
        stage,
        [
            ParameterGroup(
                stage,
                list(network.parameters()),
                budget.learning_rate,
                cosine(budget.final_rate),
                adam(weight_decay=budget.weight_decay),
            )
        ],
        loss,
        Epochs(len(source.train), budget.batch, run),
        draw,
        FitConfig(budget.steps, budget.clip_norm, check_every=budget.validate_every, keep_best=held_out is not None),
        run,
        weights={"cross_entropy": 1 - budget.dice, "dice": budget.dice},
        held_out=held_out,
    )
