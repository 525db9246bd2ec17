"""How voxel planes stand on screen: radiological convention, whatever the affine.

World coordinates are RAS+ (x to the patient's right, y to the front, z to the head). On screen every axis runs towards
smaller world coordinates, which is the radiologist's habit: on axial and coronal planes the patient's right is on the
left, on sagittal planes the front is on the left; the front (axial) or the head (coronal, sagittal) is at the top.
The letters at the edges come from the affine's own columns, so flipped and oblique volumes are labelled as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLANES = ("sagittal", "coronal", "axial")  # by the world axis (x, y, z) across the plane
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # (towards smaller, towards larger) x, y, z
LETTER_THRESHOLD = 0.26  # sin 15 deg: a direction is named after every axis it leans to by more than that
OBLIQUE_DEG = 5.0
THINNEST = 0.1  # of a plane's length


@dataclass(frozen=True)
class View:
    """One voxel plane and how it is drawn.

    Args:
        axis, index: the voxel axis across the plane and the voxel shown along it.
        row_axis, column_axis: the voxel axes that run down and across the screen.
        flip_rows, flip_columns: whether that voxel axis is reversed on screen.
        spacing_mm: pixel height and width.
        plane: 'axial', 'coronal' or 'sagittal': the anatomical plane nearest to it.
        tilt_deg: angle between the plane's normal and that anatomical plane's normal.
        left, right, top, bottom: letters at the edges of the screen (R L A P S I; two or three for oblique axes).
    """

    axis: int
    index: int
    row_axis: int
    column_axis: int
    flip_rows: bool
    flip_columns: bool
    spacing_mm: tuple[float, float]
    plane: str
    tilt_deg: float
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The plane of a volume (n0, n1, n2), as rows (downwards) x columns (to the right) on screen."""
        plane = np.take(volume, self.index, axis=self.axis)
        if self.row_axis > self.column_axis:
            plane = plane.T
        plane = plane[::-1] if self.flip_rows else plane
        return plane[:, ::-1] if self.flip_columns else plane

    @property
    def name(self) -> str:
        """'axial', or 'oblique axial (12° tilt)'."""
        return self.plane if self.tilt_deg < OBLIQUE_DEG else f"oblique {self.plane} ({self.tilt_deg:.0f}° tilt)"


def views(shape: Sequence[int], affine: np.ndarray) -> tuple[View, ...]:
    """The planes worth showing, through the middle of the volume: across the third voxel axis first.

    One view for a slice, three for a volume; a plane that would be a strip thinner than a tenth of its length is left
    out, unless there is no other.

    Args:
        shape: (n0, n1, n2).
        affine: (4, 4), voxel index -> mm, RAS+.
    """
    extent_mm = np.asarray(shape) * np.linalg.norm(affine[:3, :3], axis=0)
    wide = []
    for axis in (2, 1, 0):
        first, second = (k for k in range(3) if k != axis)
        sides = sorted((extent_mm[first], extent_mm[second]))
        if min(shape[first], shape[second]) > 1 and sides[0] >= THINNEST * sides[1]:
            wide.append(axis)
    return tuple(_view(axis, shape, affine) for axis in wide or [2])


def _view(axis: int, shape: Sequence[int], affine: np.ndarray) -> View:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    unit = affine[:3, :3] / spacing
    world = _nearest_axes(unit)
    first, second = (k for k in range(3) if k != axis)
    # Screen columns take the in-plane axis of the lower world coordinate: x before y before z.
    column_axis, row_axis = (first, second) if world[first] < world[second] else (second, first)
    flip_rows = bool(unit[world[row_axis], row_axis] > 0)
    flip_columns = bool(unit[world[column_axis], column_axis] > 0)
    down = unit[:, row_axis] * (-1 if flip_rows else 1)
    across = unit[:, column_axis] * (-1 if flip_columns else 1)
    normal = np.cross(down, across)
    tilt = np.degrees(np.arccos(min(1.0, abs(normal[world[axis]]) / float(np.linalg.norm(normal)))))
    return View(
        axis=axis,
        index=shape[axis] // 2,
        row_axis=row_axis,
        column_axis=column_axis,
        flip_rows=flip_rows,
        flip_columns=flip_columns,
        spacing_mm=(float(spacing[row_axis]), float(spacing[column_axis])),
        plane=PLANES[world[axis]],
        tilt_deg=float(tilt),
        left=_letters(-across),
        right=_letters(across),
        top=_letters(-down),
        bottom=_letters(down),
    )


def _nearest_axes(unit: np.ndarray) -> tuple[int, int, int]:
    """The world axis nearest to each voxel axis, each taken once, by the best total agreement."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(orders, key=lambda order: sum(abs(unit[order[k], k]) for k in range(3)))


def _letters(direction: np.ndarray) -> str:
    """What a direction in the world points to, the strongest component first: 'R', 'AL', 'SPR', ..."""
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(LETTERS[k][int(direction[k] > 0)] for k in order if abs(direction[k]) > LETTER_THRESHOLD)
