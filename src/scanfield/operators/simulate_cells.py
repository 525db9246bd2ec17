"""Growing, moving and dividing objects from real masks: sequences for shape models where no time-lapse exists.

An object is a part of a real label map. With c its centre of mass, R the radius of a sphere of its volume and l(y) its
signed distance (mm, negative inside, smoothed by one voxel at equal volume) at places y relative to c, the object at
the moment s in [0, 1] of its sequence is where L(x, s) < 0:

    y   = Q(s)^T (x - c - s d)                        drift d, turn Q(s) about a fixed axis
    y'  = y + s a R sum_j e_j sin(k_j . y / R + p_j)   three plane waves with random directions and phases
    g   = growth^(s / 3),   m(y') = g l(y' / g)        growth: the volume's factor over the sequence
    L   = m                                           until the object begins to divide, or if it does not
    L   = min_h(m at scale w and +b, m at scale w and -b)   after that

A dividing object becomes two copies of itself that move apart along its shortest axis, to +b and -b, and shrink: with
t = |b| over the object's half width, w = (1 + 3 t / 2 - t^3 / 2)^(-1/3), which keeps the volume of two overlapping
spheres, and halves each when they part (t = 1). min_h is the polynomial smooth minimum, a neck of width h. Everything
is a formula in x and s: masks are drawn on a grid `finer` times finer than the one they are written on, where a voxel
belongs to the object if more than half of its points do. No model of this library takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from scanfield.data.scan import Scan
from scanfield.data.sequences import MaskSequence
from scanfield.errors import InputError
from scanfield.space.grid import Grid

MARGIN = 3  # voxels around an object, at least, in every frame
WAVE_NUMBERS = (1.0, 2.5)  # range of |k|
NECK = 0.35  # width h of the neck when it is widest, in R
GAP = 1.4  # how far daughters are apart at the end, over what spheres need to part
LEAST_VOXELS = 64  # objects with fewer are too coarse to be evolved


@dataclass(frozen=True)
class CellOptions:
    """How objects evolve, and how that is recorded.

    Args:
        frames: of a sequence.
        step_s: from one frame to the next.
        growth: the object's volume at the end over that at the start.
        deformation: a, size of the waves at the end, in radii R.
        drift: |d|, way of the centre from the first frame to the last, in radii R.
        turn_deg: from the first frame to the last.
        division: share of the objects that divide.
        division_start: when these begin to, as a part of the sequence.
        size: voxels along every axis of a frame.
        spacing_mm: of the frames; None chooses one that fits all objects at all times.
        finer: points along every axis of a voxel that decide whether it belongs to the object.
        seed: of directions, phases, and who divides.
    """

    frames: int = 10
    step_s: float = 60.0
    growth: float = 1.4
    deformation: float = 0.15
    drift: float = 0.5
    turn_deg: float = 30.0
    division: float = 0.5
    division_start: float = 0.4
    size: int = 32
    spacing_mm: float | None = None
    finer: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, must in (
            ("frames", self.frames >= 2, "at least 2"),
            ("step_s", self.step_s > 0, "positive"),
            ("growth", 0 < self.growth < math.inf, "positive"),
            ("deformation", 0 <= self.deformation <= 0.3, "between 0 and 0.3, beyond which objects fold"),
            ("drift", 0 <= self.drift < math.inf, "at least 0"),
            ("division", 0 <= self.division <= 1, "between 0 and 1"),
            ("division_start", 0 <= self.division_start < 1, "at least 0 and below 1"),
            ("size", self.size >= 4 * MARGIN, f"at least {4 * MARGIN}"),
            ("spacing_mm", self.spacing_mm is None or self.spacing_mm > 0, "positive"),
            ("finer", self.finer >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"{name.replace('_', ' ')} must be {must}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class CellObject:
    """A part of a label map: `mask` on `grid`, and what it is called."""

    name: str
    mask: np.ndarray
    grid: Grid


@dataclass(frozen=True, eq=False)
class SimulatedCell:
    """A sequence, which object it shows, and whether that divides."""

    name: str
    sequence: MaskSequence
    divides: bool


def whole_objects(labels: Scan, *, merge: bool = False, name: str = "label") -> list[CellObject]:
    """Objects of a label map that do not touch its border: of each value other than 0 the largest connected part.

    Args:
        merge: whether all values other than 0 are one object.
        name: what the objects' names begin with; the value follows, unless all are one object.

    Raises:
        InputError: the values are not whole numbers from 0, or no object lies inside.
    """
    values = labels.values.numpy()
    if values.ndim != 3 or not np.array_equal(values, np.round(values)) or values.min() < 0:
        raise InputError("a label map holds one whole number from 0 a voxel", where=labels.source)
    if merge:
        values = (values > 0).astype(values.dtype)
    known = np.unique(values[values > 0])  # their numbers may be anything: they are counted 1, 2, 3, ...
    numbers = np.where(values > 0, np.searchsorted(known, values) + 1, 0)
    found = []
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        assert box is not None
        parts, _ = ndimage.label(numbers[box] == number)
        sizes = np.bincount(parts.ravel())[1:]
        part = ndimage.find_objects(parts)[int(sizes.argmax())]
        mask = parts[part] == sizes.argmax() + 1
        first = [outer.start + inner.start for outer, inner in zip(box, part, strict=True)]
        inner = all(a > 0 and a + n < size for a, n, size in zip(first, mask.shape, values.shape, strict=True))
        if inner and mask.sum() >= LEAST_VOXELS:
            title = name if merge else f"{name}_{int(known[number - 1]):03d}"
            found.append(CellObject(title, mask, labels.grid.part(first, mask.shape)))
    if not found:
        raise InputError(
            f"no object of at least {LEAST_VOXELS} voxels lies inside the label map without touching its border",
            where=labels.source,
        )
    return found


def nearest_to_median(objects: Sequence[CellObject], count: int) -> list[CellObject]:
    """The objects of the most usual volumes (nearest to the median by their ratio), in the order they were given.

    Raises:
        InputError: there are fewer.
    """
    if len(objects) < count:
        raise InputError(
            f"there are {len(objects)} whole objects, {count} are wanted", fix="ask for fewer, or give more label maps"
        )
    logarithms = np.log([item.mask.sum() * item.grid.voxel_volume_mm3 for item in objects])
    nearest = np.argsort(np.abs(logarithms - np.median(logarithms)), kind="stable")[:count]
    return [objects[k] for k in sorted(nearest)]


def simulate_cells(objects: Sequence[CellObject], options: CellOptions) -> list[SimulatedCell]:
    """A sequence of every object, all with the same voxel size, step and number of voxels.

    Raises:
        InputError: there are no objects, or one leaves its frames (with a stated `spacing_mm`).
    """
    if not objects:
        raise InputError("there are no objects to evolve")
    order = torch.randperm(len(objects), generator=_seeded(options.seed)).tolist()
    dividing = set(order[: round(options.division * len(objects))])
    levels = [_level(item, options, k, k in dividing) for k, item in enumerate(objects)]
    boxes = [_extent(level, item, options) for level, item in zip(levels, objects, strict=True)]
    needed = max(float((high - low).max()) for low, high in boxes) / (options.size - 2 * MARGIN)
    spacing = options.spacing_mm or needed
    if spacing < 0.999 * needed:
        raise InputError(
            f"frames of {options.size} voxels of {spacing:.4g} mm do not hold the largest object",
            fix=f"voxels of at least {needed:.4g} mm, or more of them",
        )
    found = []
    for k, (item, level, (low, high)) in enumerate(zip(objects, levels, boxes, strict=True)):
        place = np.eye(4)
        place[:3, 3] = (low + high) / 2
        grid = Grid.centred((options.size,) * 3, spacing).moved(place)
        moments = np.linspace(0, 1, options.frames)
        frames = torch.stack([_frame(level, grid, float(s), options.finer) for s in moments])
        found.append(SimulatedCell(item.name, MaskSequence(frames, grid, options.step_s, item.name), k in dividing))
    return found


Level = Callable[[Float[Tensor, "n 3"], float], Float[Tensor, " n"]]


def _level(item: CellObject, options: CellOptions, index: int, divides: bool) -> Level:
    """L of an object, as a function of world points and s."""
    generator = _seeded(1_000_003 * (options.seed + 1) + index)
    distance, centre, radius = _distance(item)
    inside = item.grid.to_world(torch.from_numpy(np.argwhere(item.mask)).double()) - centre
    shortest = torch.linalg.eigh(inside.T @ inside).eigenvectors[:, 0]
    half = float((inside @ shortest).abs().max())
    axis, direction, *waves = _directions(8, generator)
    k = torch.stack(waves[:3]) * (
        WAVE_NUMBERS[0] + (WAVE_NUMBERS[1] - WAVE_NUMBERS[0]) * _uniform(3, generator)[:, None]
    )
    e = torch.stack(waves[3:])
    phases = 2 * math.pi * _uniform(3, generator)

    def grown(y: Tensor, s: float, scale: float) -> Tensor:
        factor = scale * options.growth ** (s / 3)
        return factor * distance(y / factor)

    def level(x: Float[Tensor, "n 3"], s: float) -> Float[Tensor, " n"]:
        y = (x.double() - centre - s * options.drift * radius * direction) @ _turn(axis, s * options.turn_deg)
        y = y + s * options.deformation * radius * torch.sin(y @ k.T / radius + phases) @ e / 3**0.5
        q = (s - options.division_start) / (1 - options.division_start)
        if not divides or q <= 0:
            return grown(y, s, 1.0)
        t = min(1.0, GAP * q)
        scale = (1 + 1.5 * t - 0.5 * t**3) ** (-1 / 3)
        b = GAP * q * 2 ** (-1 / 3) * half * options.growth ** (s / 3) * shortest
        return _smooth_minimum(grown(y - b, s, scale), grown(y + b, s, scale), NECK * radius * 4 * q * (1 - q))

    return level


def _distance(item: CellObject) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """l as a function of places relative to the centre (mm), the centre, and R."""
    border = 3
    padded = np.pad(item.mask, border)
    spacing = item.grid.spacing_mm
    outer, inner = (ndimage.distance_transform_edt(m, sampling=spacing) for m in (~padded, padded))
    smooth = ndimage.gaussian_filter(outer - inner, 1.0)
    smooth -= np.quantile(smooth, padded.mean())  # smoothing shrinks what is round: the volume is kept
    centre = item.grid.to_world(torch.from_numpy(np.argwhere(item.mask)).double()).mean(dim=0)
    radius = (item.mask.sum() * item.grid.voxel_volume_mm3 * 3 / (4 * math.pi)) ** (1 / 3)
    last = torch.tensor(padded.shape, dtype=torch.float64) - 1

    def distance(y: Tensor) -> Tensor:
        at = item.grid.to_voxel(y + centre) + border
        near = torch.minimum(at.clamp(min=0), last)
        value = torch.from_numpy(ndimage.map_coordinates(smooth, near.numpy().T, order=1))
        # Beyond the object's box the distance goes on by the way to the box, which keeps it growing.
        return value + ((at - near) * torch.tensor(spacing)).norm(dim=-1)

    return distance, centre, radius


def _extent(level: Level, item: CellObject, options: CellOptions) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner (mm) of the box that holds the object in every frame."""
    corners = item.grid.corners_mm()
    middle, half = (
        (corners.min(axis=0) + corners.max(axis=0)) / 2,
        (corners.max(axis=0) - corners.min(axis=0)).max() / 2,
    )
    reach = half * (2.2 * options.growth ** (1 / 3) + options.drift) + half * options.deformation
    place = np.eye(4)
    place[:3, 3] = middle
    coarse = Grid.centred((40,) * 3, 2 * reach / 40).moved(place)
    x, seen = coarse.points().double(), []
    for s in np.linspace(0, 1, options.frames):
        seen.append(x[level(x, float(s)) < coarse.spacing_mm[0] / 2])
    inside = torch.cat(seen)
    width = coarse.spacing_mm[0] / 2
    return inside.min(dim=0).values.numpy() - width, inside.max(dim=0).values.numpy() + width


def _frame(level: Level, grid: Grid, s: float, finer: int) -> Tensor:
    """Voxels of which more than half lies in the object; only those near its surface are looked at in detail."""
    middle = level(grid.points(), s)
    inside = middle < 0
    near = torch.nonzero(middle.abs() < 1.5 * max(grid.spacing_mm))[:, 0]
    if finer > 1 and len(near):
        offset = (torch.arange(finer, dtype=torch.float64) + 0.5) / finer - 0.5
        parts = torch.cartesian_prod(offset, offset, offset)
        points = grid.to_world(grid.voxels(near).double()[:, None] + parts)
        inside[near] = (level(points.reshape(-1, 3), s) < 0).reshape(len(near), -1).double().mean(dim=1) > 0.5
    return inside.reshape(grid.shape)


def _smooth_minimum(a: Tensor, b: Tensor, width: float) -> Tensor:
    """min(a, b), rounded off where they differ by less than `width`; never above the minimum."""
    if width <= 0:
        return torch.minimum(a, b)
    overlap = (width - (a - b).abs()).clamp(min=0) / width
    return torch.minimum(a, b) - width * overlap.square() / 4


def _turn(axis: Tensor, degrees: float) -> Tensor:
    """3x3 rotation Q about an axis (Rodrigues)."""
    angle = math.radians(degrees)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number % 2**63)


def _directions(count: int, generator: torch.Generator) -> list[Tensor]:
    drawn = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return list(drawn / drawn.norm(dim=1, keepdim=True))


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)
