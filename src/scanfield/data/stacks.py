"""Stacks of two-dimensional slices: where every slice lies, how thick it is, and when it was acquired.

Notation: d distance between the planes of neighbouring slices (mm), t thickness of a slice (mm), d - t the gap. The
file knows d alone: t is a setting of the scanner. The frame of a slice has its origin in the middle of the slice, its
first two axes along the rows of pixels, and its third along their right-handed normal; a pose is the 4x4 matrix (mm to
mm) that brings points of this frame into the world.

Slices of one shot were acquired together (multi-band); shots are numbered in the order of their acquisition.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.guard import located
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

CLEARLY_COARSER = 1.1  # the axis of the slices, where the file's spacing shows it
LARGEST_GAP, LARGEST_OVERLAP = 4.0, 4.0  # d / t and t / d: beyond, one was taken for the other
LEAST_TILT_DEG = 10.0  # between the slices of two stacks that are not parallel
LEAST_OVERLAP = 0.05  # of a stack's mask with the boxes of the others
_PROBES = 20_000


@dataclass(frozen=True, eq=False)
class Stack:
    """A stack of parallel slices.

    Args:
        scan: the image, of one channel; its mask says which pixels count (None: all).
        thickness_mm: t, of every slice; not the distance to the next one.
        slice_axis: the voxel axis across the slices.
        shots: the shot of each slice along that axis, numbered from 0; None: one slice after the other.

    Raises:
        InputError: several channels; a thickness that is no positive number, exceeds the stack, or is out of all
            proportion to the distance of the slices; pixels whose axes are not at right angles; as many shots as slices
            are needed.
    """

    scan: Scan
    thickness_mm: float
    slice_axis: int = 2
    shots: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        with located(self.scan.source or "stack"):
            if self.scan.values.ndim != 3:
                raise InputError(
                    f"a stack has one channel, this image has {self.scan.values.shape[-1]}",
                    fix="extract one volume (time point, echo) into its own file",
                )
            if self.slice_axis not in (0, 1, 2):
                raise InputError(f"the axis of the slices is 0, 1 or 2, got {self.slice_axis}", where="slice axis")
            if min(self.scan.grid.shape[a] for a in self.plane_axes) < 2:
                raise InputError(f"slices need at least 2 x 2 pixels, the image has shape {self.scan.grid.shape}")
            _check_right_angles(self.directions)
            _check_thickness(self)
            if self.shots is not None and (len(self.shots) != self.count or min(self.shots) < 0):
                raise InputError(
                    f"every one of {self.count} slices needs its shot (0, 1, ...), got {len(self.shots)} numbers"
                )

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.scan.grid.shape[self.slice_axis]

    @property
    def plane_axes(self) -> tuple[int, int]:
        """The voxel axes within a slice."""
        a, b = (axis for axis in range(3) if axis != self.slice_axis)
        return a, b

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Pixels of a slice along its two axes."""
        a, b = self.plane_axes
        return self.scan.grid.shape[a], self.scan.grid.shape[b]

    @property
    def plane_spacing_mm(self) -> tuple[float, float]:
        """Size of a pixel along its two axes."""
        a, b = self.plane_axes
        return self.scan.grid.spacing_mm[a], self.scan.grid.spacing_mm[b]

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) the axes of the slices' frame in the world, as columns."""
        columns = self.scan.grid.affine[:3, list(self.plane_axes)] / np.asarray(self.plane_spacing_mm)
        return np.column_stack([columns, np.cross(columns[:, 0], columns[:, 1])])

    @property
    def distance_mm(self) -> float:
        """d, between the planes of neighbouring slices."""
        return float(abs(self.directions[:, 2] @ self.scan.grid.affine[:3, self.slice_axis]))

    @property
    def gap_mm(self) -> float:
        """d - t; negative where slices overlap, 0 where there is one slice."""
        return self.distance_mm - self.thickness_mm if self.count > 1 else 0.0

    @property
    def order(self) -> tuple[int, ...]:
        """The shot of each slice."""
        return tuple(range(self.count)) if self.shots is None else self.shots

    def poses(self) -> np.ndarray:
        """(slices, 4, 4) float64: where the file says that the slices are, slice frame -> world."""
        index = np.tile((np.asarray(self.scan.grid.shape) - 1) / 2, (self.count, 1))
        index[:, self.slice_axis] = np.arange(self.count)
        poses = np.tile(np.eye(4), (self.count, 1, 1))
        poses[:, :3, :3] = self.directions
        poses[:, :3, 3] = index @ self.scan.grid.affine[:3, :3].T + self.scan.grid.affine[:3, 3]
        return poses

    def planes(self, values: Tensor) -> Tensor:
        """A volume of the stack's shape as (slices, pixels, pixels)."""
        return values.movedim(self.slice_axis, 0)

    def passes(self) -> list[list[int]]:
        """The slices of each pass of the scanner through the body, in the order of their acquisition.

        One pass for slices taken one after the other, k of them where every k-th slice is taken at a time. Within a
        pass neighbours in space are neighbours in time: they share most of the motion.
        """
        groups = itertools.groupby(sorted(range(self.count), key=self.order.__getitem__), self._shot)
        together = [sorted(group) for _, group in groups]
        steps = np.sign(np.diff([group[0] for group in together]))
        upwards = 1 if steps.sum() >= 0 else -1
        passes = [list(together[0])]
        for group, step in zip(together[1:], steps, strict=True):
            if step == upwards:
                passes[-1] += group
            else:  # back to the other end
                passes.append(list(group))
        return passes

    def _shot(self, number: int) -> int:
        return self.order[number]


def read_stack(
    path: str | Path,
    thickness_mm: float | None = None,
    *,
    slice_axis: int | None = None,
    interleave: int | None = None,
    multiband: int | None = None,
) -> Stack:
    """A stack from a NIfTI file with any affine.

    Args:
        thickness_mm: t; None: the distance of the slices, that is, no gap.
        slice_axis: None: the axis with one voxel, else the one with the largest voxels, else the third.
        interleave: every k-th slice is acquired in one pass (None: see below).
        multiband: slices acquired together (None: see below).

    Without `interleave` and `multiband` the order is that of `SliceTiming` (seconds; BIDS) in the JSON file beside the
    image, else one slice after the other.

    Raises:
        InputError: see `read_nifti` (4-D files, NaN, damaged headers), `Stack` and `acquisition_shots`.
    """
    scan = read_nifti(path)
    axis = _slice_axis(scan.grid) if slice_axis is None else slice_axis
    count = scan.grid.shape[axis] if axis in (0, 1, 2) else 1
    with located(path):
        if interleave is None and multiband is None:
            shots = _shots_beside(Path(path), count)
        else:
            shots = acquisition_shots(count, interleave or 1, multiband or 1)
        if thickness_mm is None:
            return assumed_contiguous(scan, axis, shots)
    return Stack(scan, float(thickness_mm), axis, shots)


def assumed_contiguous(scan: Scan, slice_axis: int, shots: tuple[int, ...] | None = None) -> Stack:
    """The stack whose slices are as thick as they are apart."""
    spacing = Stack(scan, scan.grid.spacing_mm[slice_axis], slice_axis, shots)
    return replace(spacing, thickness_mm=spacing.distance_mm)


def acquisition_shots(count: int, interleave: int = 1, multiband: int = 1) -> tuple[int, ...]:
    """The shot of each of `count` slices.

    Slices 0, k, 2k, ... come first, then 1, k + 1, ... with k = `interleave`. With b = `multiband`, this is the order
    within the first count / b slices, and slices count / b apart are acquired together.

    Raises:
        InputError: a factor is not positive, or the slices cannot be divided into bands.
    """
    if interleave < 1 or multiband < 1:
        raise InputError(f"interleave and multi-band factors are at least 1, got {interleave} and {multiband}")
    if count % multiband:
        raise InputError(
            f"{count} slices cannot be acquired {multiband} at a time",
            where="multi-band",
            fix=f"give a factor that divides {count}",
        )
    one_band = count // multiband
    order = [k for first in range(interleave) for k in range(first, one_band, interleave)]
    shot = {number: rank for rank, number in enumerate(order)}
    return tuple(shot[number % one_band] for number in range(count))


def check_stacks(stacks: Sequence[Stack], *, allow_parallel: bool = False) -> None:
    """Refuses stacks that cannot be one body seen from several sides.

    Args:
        allow_parallel: accept slices of one orientation, along whose normal nothing is finer than their thickness.

    Raises:
        InputError: there is no stack, one was given twice, all are parallel, or one overlaps with no other.
    """
    if not stacks:
        raise InputError("at least one stack is needed")
    for a, b in itertools.combinations(stacks, 2):
        if a.scan.grid.same_as(b.scan.grid) and torch.equal(a.scan.values, b.scan.values):
            raise InputError(
                "two stacks are the same image",
                where=f"{a.scan.source}, {b.scan.source}",
                fix="give every stack once",
            )
    if not allow_parallel and largest_tilt_deg(stacks) < LEAST_TILT_DEG:
        all_of_them = "there is one stack" if len(stacks) == 1 else f"all {len(stacks)} stacks are parallel"
        raise InputError(
            f"{all_of_them}: across the slices nothing is finer than their thickness of {stacks[0].thickness_mm:g} mm",
            where=", ".join(stack.scan.source for stack in stacks),
            fix="add a stack of another orientation, or accept it with --allow-parallel",
        )
    _check_overlap(stacks)


def largest_tilt_deg(stacks: Sequence[Stack]) -> float:
    """The largest angle between the slices of two stacks, 0 to 90 degrees."""
    normals = np.array([stack.directions[:, 2] for stack in stacks])
    return float(np.degrees(np.arccos(np.clip(np.abs(normals @ normals.T), 0, 1).min())))


def mask_points(stack: Stack, most: int = _PROBES) -> Float[Tensor, "n 3"]:
    """World positions (mm, float64) of at most about `most` voxels of a stack's mask, evenly strided."""
    grid, mask = stack.scan.grid, stack.scan.mask
    flat = torch.arange(grid.size) if mask is None else mask.reshape(-1).nonzero()[:, 0]
    return grid.to_world(grid.voxels(flat[:: max(1, len(flat) // most)]).double())


def _slice_axis(grid: Grid) -> int:
    single = [axis for axis, n in enumerate(grid.shape) if n == 1]
    if len(single) == 1:
        return single[0]
    axes = sorted(range(3), key=grid.spacing_mm.__getitem__)
    return axes[2] if grid.spacing_mm[axes[2]] > CLEARLY_COARSER * grid.spacing_mm[axes[1]] else 2


def _shots_beside(path: Path, count: int) -> tuple[int, ...] | None:
    """From `SliceTiming` in the JSON file beside the image."""
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        timing = json.loads(beside.read_text(encoding="utf-8"))["SliceTiming"]
        seconds = np.asarray(timing, dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is no such file, or it says nothing about slices
    if seconds.shape != (count,) or not np.isfinite(seconds).all():
        raise InputError(
            f"SliceTiming has {seconds.size} times for {count} slices",
            where=str(beside),
            fix="correct it, or give the order with --interleave and --multiband",
        )
    return tuple(int(rank) for rank in np.unique(seconds, return_inverse=True)[1])


def _check_right_angles(directions: np.ndarray) -> None:
    cosine = abs(float(directions[:, 0] @ directions[:, 1]))
    if cosine > 5e-3:  # 0.3 degrees
        angle = np.degrees(np.arccos(cosine))
        raise InputError(
            f"the axes of the pixels form an angle of {angle:.1f} degrees, slices need right angles",
            fix="resample the stack, or repair its affine",
        )


def _check_thickness(stack: Stack) -> None:
    t, d = stack.thickness_mm, stack.distance_mm
    if not 0 < t < float("inf"):
        raise InputError(
            f"the thickness of a slice must be a positive number of mm, got {t:g}",
            where="thickness",
            fix=f"give the thickness that the scanner was set to; the slices are {d:.3g} mm apart",
        )
    if stack.count > 1:
        extent, what = stack.count * d, f"the whole stack of {stack.count} slices measures {stack.count * d:.3g} mm"
    else:
        extent = max(n * s for n, s in zip(stack.plane_shape, stack.plane_spacing_mm, strict=True))
        what = f"the slice measures {extent:.3g} mm"
    fix = "give the thickness of one slice in mm"
    if t > extent:
        raise InputError(f"slices of {t:g} mm are thicker than the field of view: {what}", where="thickness", fix=fix)
    if stack.count > 1 and d > LARGEST_GAP * t:
        raise InputError(
            f"slices of {t:g} mm lie {d:.3g} mm apart: {100 * (1 - t / d):.0f} % of the body would be missing",
            where="thickness",
            fix=f"the thickness is not the gap; without a gap it is {d:.3g} mm",
        )
    if stack.count > 1 and t > LARGEST_OVERLAP * d:
        raise InputError(
            f"slices of {t:g} mm lie {d:.3g} mm apart: each would overlap with {2 * int(t / d)} others",
            where="thickness",
            fix=f"{fix}; without overlap it is {d:.3g} mm",
        )


def _check_overlap(stacks: Sequence[Stack]) -> None:
    """Every stack's mask must lie, in part, in boxes that are connected with the first stack's."""
    if len(stacks) < 2:
        return
    touches = np.eye(len(stacks), dtype=bool)
    for (i, a), (j, b) in itertools.permutations(enumerate(stacks), 2):
        place = b.scan.grid.to_voxel(mask_points(a))
        inside = ((place >= -0.5) & (place <= torch.tensor(b.scan.grid.shape) - 0.5)).all(dim=-1)
        touches[i, j] = touches[j, i] = touches[i, j] or float(inside.double().mean()) >= LEAST_OVERLAP
    reached = np.linalg.matrix_power(touches.astype(np.int64), len(stacks))[0] > 0
    if not reached.all():
        lost, first = stacks[int(np.flatnonzero(~reached)[0])], stacks[0]
        apart = float((mask_points(lost).mean(0) - mask_points(first).mean(0)).norm())
        raise InputError(
            f"the stacks do not overlap: their centres are {apart:.0f} mm apart",
            where=f"{first.scan.source}, {lost.scan.source}",
            fix="check that they show one subject in one session, and the positions in their headers",
        )
