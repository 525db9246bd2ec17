"""A classifier that is asked point by point becomes a label map on any grid: never all of its logits at once.

A classifier takes world points (n, 3) in mm to logits (n, classes), class 0 the background. On a grid of N voxels only
the class (one byte) and the uncertainty (four bytes) of every voxel are kept, besides what `chunk` points need; the
memory a classifier needs does not depend on the grid.

    uncertainty = - sum_c p_c log p_c / log(classes),  p the softmax of the logits: 0 certain, 1 all classes alike
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from scanfield.errors import InputError
from scanfield.fields.shape import volume_mesh
from scanfield.fields.topology import largest_component
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh

Classifier = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n classes"]]
CHUNK = 8192  # points a classifier is asked at once: its features of a point may take kilobytes
COARSE = 4  # voxels from one point of the first pass to the next, with refinement
_SCAN = 2**20  # voxels of which it is looked up at once whether they are asked


@dataclass(frozen=True, eq=False)
class LabelMap:
    """What a classifier says on a grid.

    Args:
        classes: (n0, n1, n2) class indices.
        uncertainty: (n0, n1, n2), 0 to 1.
        asked: at how many points the classifier was asked.
    """

    grid: Grid
    classes: UInt8[Tensor, "n0 n1 n2"]
    uncertainty: Float[Tensor, "n0 n1 n2"]
    asked: int


class Labeller:
    """Asks a classifier on grids. Points outside the image's box are background, and certain: nothing was seen there.

    Args:
        classify: see above.
        classes: how many there are.
        seen: the grid of the image that the classifier has seen.
        device: where it computes.
        chunk: points it is asked at once.
        told: is called now and then, on large grids, with how many voxels are done and how many there are.
    """

    def __init__(
        self,
        classify: Classifier,
        classes: int,
        seen: Grid,
        *,
        device: torch.device | str = "cpu",
        chunk: int = CHUNK,
        told: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.classify, self.classes, self.seen = classify, classes, seen
        self.device, self.chunk, self.told = device, chunk, told

    def label(self, grid: Grid, *, refine: bool = False) -> LabelMap:
        """The label map on a grid.

        Args:
            refine: ask at every fourth voxel first, and then only in the cells between whose corners the classes
                differ, and in the cells that touch these; another cell takes its corners' class, and their uncertainty
                interpolated. Structures that fit between the points of the first pass are missed.
        """
        classes = torch.zeros(grid.size, dtype=torch.uint8)
        uncertainty = torch.zeros(grid.size)
        if not refine:
            asked = self._ask(grid, None, classes, uncertainty)
        else:
            places = [_coarse(n) for n in grid.shape]
            first = torch.zeros(grid.shape, dtype=torch.bool)
            first[np.ix_(*places)] = True
            asked = self._ask(grid, first, classes, uncertainty)
            classes, uncertainty, open_cells = _filled(
                classes.reshape(grid.shape), uncertainty.reshape(grid.shape), places
            )
            asked += self._ask(grid, open_cells & ~first, classes, uncertainty)
        return LabelMap(grid, classes.reshape(grid.shape), uncertainty.reshape(grid.shape), asked)

    def surface(self, found: LabelMap, index: int) -> Mesh:
        """The surface of a class, between the voxels: where its logit equals the largest other one, in world mm.

        The classifier is asked again next to the class's border alone. A surface separates the voxel centres as the
        label map does, also where this was filtered, and is closed midway where the class reaches the grid's edge.

        Raises:
            InputError: the grid is a slice, or no voxel is of this class.
        """
        if min(found.grid.shape) < 2:
            raise InputError(f"a surface needs a volume, got a label map of shape {found.grid.shape}")
        inside = found.classes.numpy() == index
        if not inside.any():
            raise InputError(f"no voxel is of class {index}: it has no surface")
        box = ndimage.find_objects(inside.astype(np.uint8))[0]
        low = np.array([side.start for side in box]) - 1
        within = np.pad(inside[box], 1)
        band = ndimage.binary_dilation(within, _TOUCHING) & ~ndimage.binary_erosion(within, _TOUCHING)
        part, lead = found.grid.part(low, within.shape), torch.zeros(within.size)
        for rows in self._batches(torch.from_numpy(band)):
            logits = self._logits(part, rows)
            own = logits[:, index].clone()
            logits[:, index] = -math.inf
            lead[rows] = (own - logits.amax(dim=1)).abs().float().cpu()
        # Vertices stay off the voxel centres, so that no triangle vanishes and leaves a hole.
        size = lead.reshape(within.shape).clamp(min=1e-3 * (float(lead.max()) or 1.0)).numpy()
        beyond = _beyond(found.grid, low, within.shape)
        size = np.where(beyond, np.pad(size[1:-1, 1:-1, 1:-1], 1, mode="edge"), size)
        return volume_mesh(torch.from_numpy(np.where(within, -size, size)), part)

    def _ask(self, grid: Grid, where: Tensor | None, classes: Tensor, uncertainty: Tensor) -> int:
        """Fills in classes and uncertainty at the voxels of a mask (None: at all); the number of points asked."""
        flat_classes, flat_uncertainty, asked = classes.view(-1), uncertainty.view(-1), 0
        for rows in self._batches(where, grid.size):
            rows = rows[_in_box(self.seen, grid, rows)]
            if len(rows):
                logits = self._logits(grid, rows)
                log_p = logits.float().log_softmax(dim=1)
                entropy = -(log_p.exp() * log_p).sum(dim=1) / math.log(self.classes)
                flat_classes[rows] = logits.argmax(dim=1).to(torch.uint8).cpu()
                flat_uncertainty[rows] = entropy.clamp(0, 1).cpu()
                asked += len(rows)
        return asked

    def _logits(self, grid: Grid, rows: Int[Tensor, " n"]) -> Float[Tensor, "n classes"]:
        x = grid.to_world(grid.voxels(rows).double()).float().to(self.device)
        with torch.no_grad():
            logits = self.classify(x)
        if logits.shape != (len(rows), self.classes):
            raise ValueError(
                f"the classifier gave {tuple(logits.shape)} for {len(rows)} points, {self.classes} classes"
            )
        return logits

    def _batches(self, where: Tensor | None, size: int = 0) -> Iterator[Int[Tensor, " n"]]:
        """Positions (C order) of the voxels of a mask, or of all `size`, as many at once as the classifier is asked."""
        count = size if where is None else where.numel()
        for start in range(0, count, _SCAN):
            stop = min(start + _SCAN, count)
            rows = torch.arange(start, stop)
            rows = rows if where is None else rows[where.reshape(-1)[start:stop]]
            if len(rows):
                yield from rows.split(self.chunk)
            if count > _SCAN:
                self.told(stop, count)


def largest_parts(found: LabelMap) -> tuple[LabelMap, dict[int, int]]:
    """Every class without what does not hang together with its largest part, and how many voxels of it were dropped.

    They become background; the uncertainty stays as it was.
    """
    classes, dropped = found.classes.clone(), {}
    for index in range(1, int(classes.max()) + 1):
        mask = found.classes == index
        stray = mask & ~largest_component(mask)
        if bool(stray.any()):
            classes[stray] = 0
            dropped[index] = int(stray.sum())
    return LabelMap(found.grid, classes, found.uncertainty, found.asked), dropped


_TOUCHING = np.ones((3, 3, 3), dtype=bool)
_EDGE = 1e-3  # voxels beyond the image's box that rounding may cost


def _in_box(seen: Grid, grid: Grid, rows: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    index = seen.to_voxel(grid.to_world(grid.voxels(rows).double()))
    high = torch.tensor(seen.shape) - 0.5 + _EDGE
    return ((index >= -0.5 - _EDGE) & (index <= high)).all(dim=1)


def _beyond(grid: Grid, low: np.ndarray, shape: tuple[int, ...]) -> Bool[np.ndarray, "m0 m1 m2"]:
    """Which voxels of a part that begins at `low` lie outside the grid."""
    sides = [np.arange(shape[k]) + low[k] for k in range(3)]
    outside = [(side < 0) | (side >= grid.shape[k]) for k, side in enumerate(sides)]
    return outside[0][:, None, None] | outside[1][None, :, None] | outside[2][None, None, :]


def _coarse(count: int) -> np.ndarray:
    """Every fourth place along an axis, and the last one, so that cells cover all."""
    return np.unique(np.append(np.arange(0, count, COARSE), count - 1))


def _filled(
    classes: UInt8[Tensor, "n0 n1 n2"], uncertainty: Float[Tensor, "n0 n1 n2"], places: list[np.ndarray]
) -> tuple[UInt8[Tensor, "n0 n1 n2"], Float[Tensor, "n0 n1 n2"], Bool[Tensor, "n0 n1 n2"]]:
    """Classes and uncertainties between those at coarse places, and the voxels in cells at borders."""
    coarse = classes.numpy()[np.ix_(*places)]
    lowest, highest = coarse, coarse
    for axis in range(3):
        lowest, highest = (_pairs(v, axis, f) for v, f in ((lowest, np.minimum), (highest, np.maximum)))
    differ = ndimage.binary_dilation(lowest != highest, _TOUCHING)
    # A voxel belongs to the cell before it and the cell after it, which are one unless it lies on a coarse plane.
    after = [np.searchsorted(p, np.arange(p[-1] + 1), side="right") - 1 for p in places]
    after = [np.minimum(a, max(len(p) - 2, 0)) for a, p in zip(after, places, strict=True)]
    before = [np.searchsorted(p, np.arange(p[-1] + 1), side="left") - 1 for p in places]
    before = [np.maximum(b, 0) for b in before]
    opened = differ
    for axis in range(3):
        opened = np.take(opened, after[axis], axis) | np.take(opened, before[axis], axis)
    filled = coarse
    smooth = uncertainty.numpy()[np.ix_(*places)]
    for axis, place in enumerate(places):
        filled = np.take(filled, np.searchsorted(place, np.arange(place[-1] + 1), side="right") - 1, axis)
        weights = np.stack([np.interp(np.arange(place[-1] + 1), place, row) for row in np.eye(len(place))], axis=1)
        smooth = np.moveaxis(np.tensordot(weights.astype(np.float32), smooth, axes=(1, axis)), 0, axis)
    return torch.from_numpy(filled), torch.from_numpy(np.ascontiguousarray(smooth)), torch.from_numpy(opened)


def _pairs(values: np.ndarray, axis: int, reduce: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Neighbours along an axis reduced to one; an axis of one place stays."""
    count = values.shape[axis]
    if count == 1:
        return values
    return reduce(values.take(range(count - 1), axis), values.take(range(1, count), axis))
