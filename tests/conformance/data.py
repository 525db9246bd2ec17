"""Tiny data of every kind a method can accept, on an oblique, left-handed grid, with the truth it was made from.

The object is two discs (cylinders) off the centre of a slice. In the gantry frame the slice is axis-aligned and centred
at the origin; the world sees it turned, tilted, mirrored along its first voxel axis and far from the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.dose import Dose
from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.nifti import write_nifti
from scanfield.data.pair import Pair
from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.data.rawmri import KSpace
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.data.sequences import MaskSequence, write_sequence
from scanfield.data.slices import SliceSet, slice_set
from scanfield.data.stacks import Stack
from scanfield.fields.image import ImageField
from scanfield.operators.coils import analytic_sensitivities
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.trajectories import golden_angle_radial
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry
from scanfield.space.projection import Detector, ProjectionGeometry

SIZE, SPACING_MM = 24, 2.0
DISCS = Phantom(
    (
        Ellipsoid((9.0, 5.0, 0.0), (7.0, 7.0, math.inf), value=0.02),
        Ellipsoid((-4.0, 11.0, 0.0), (4.0, 4.0, math.inf), value=0.02),
    )
)


def frame() -> np.ndarray:
    """Gantry mm -> world mm: a rotation about an oblique axis, then a long way off."""
    axis = np.array([1.0, -2.0, 0.7]) / np.linalg.norm([1.0, -2.0, 0.7])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(0.8) * cross + (1 - np.cos(0.8)) * cross @ cross
    matrix[:3, 3] = (-120.0, 45.0, 300.0)
    return matrix


def in_gantry(shape: tuple[int, int, int], spacing: tuple[float, float, float], turn_deg: float = 0.0) -> np.ndarray:
    """Affine of a grid centred at the gantry's origin; a negative spacing mirrors an axis."""
    turn = np.deg2rad(turn_deg)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


GRID = Grid((SIZE, SIZE, 1), frame() @ in_gantry((SIZE, SIZE, 1), (-SPACING_MM, SPACING_MM, 3.0)))
OTHER_GRID = Grid((40, 34, 1), frame() @ in_gantry((40, 34, 1), (1.3, -1.7, 3.0), turn_deg=33.0))


def true_values(grid: Grid, phantom: Phantom = DISCS) -> torch.Tensor:
    """The object at the voxel centres of a grid."""
    inverse = torch.tensor(np.linalg.inv(frame()))
    gantry = grid.points().double() @ inverse[:3, :3].T + inverse[:3, 3]
    return phantom.values(gantry).float().reshape(grid.shape)


def centre_of_mass_mm(image: torch.Tensor, grid: Grid) -> np.ndarray:
    """World centre of what is brighter than half of the maximum."""
    weight = (image - 0.5 * image.max()).clamp(min=0).reshape(-1, 1).double()
    return ((weight * grid.points().double()).sum(0) / weight.sum()).numpy()


@dataclass(frozen=True)
class Case:
    """Data to fit, and data of the same object that the fit does not see; the unit of the image, and the grid that the
    data ask for (None: the method makes one around them)."""

    data: Any
    held_out: Any
    unit: str = "1/mm"
    grid: Grid | None = GRID


def measured(data: Any) -> torch.Tensor:
    """What a prediction is compared with."""
    return data.pixels if isinstance(data, SliceSet) else data.values


def _projections(beam: str) -> Case:
    views, bins = 24, 36
    sizes = {} if beam == "parallel" else {"source_to_axis_mm": 150.0, "source_to_detector_mm": 250.0}
    pitch = 1.8 if beam == "parallel" else 3.2
    arc = 180.0 if beam == "parallel" else 360.0
    detector = Detector("flat", (1, bins), (3.0, pitch))
    flat = Grid(GRID.shape, np.linalg.inv(frame()) @ GRID.affine)
    gantry = ProjectionGeometry(beam, np.arange(views) * arc / views, detector, flat, **sizes)
    rays = gantry.rays(torch.arange(gantry.count), dtype=torch.float64)
    values = DISCS.line_integrals(rays).float().reshape(gantry.shape)
    scan = Measurement(values, replace(gantry, frame=frame(), volume=GRID), Noise("none"), source="phantom")
    return Case(*scan.hold_out(4))


def _image() -> Case:
    unseen = torch.zeros(GRID.shape, dtype=torch.bool)
    unseen[::5, ::5] = True
    values = true_values(GRID)
    return Case(Scan(values, GRID, "1/mm", ~unseen), Scan(values, GRID, "1/mm", unseen))


def _dose() -> Case:
    unseen = torch.zeros(GRID.shape, dtype=torch.bool)
    unseen[::5, ::5] = True
    values = true_values(GRID)
    return Case(Dose(values, GRID, ~unseen), Dose(values, GRID, unseen), "Gy")


# A pair: a shipped chest slice, and the same slice deformed, on another grid of the same plane.
PAIR_SIZE, PAIR_SPACING_MM = 64, 3.0
FIXED_GRID = Grid((PAIR_SIZE, PAIR_SIZE, 1), frame() @ in_gantry((PAIR_SIZE, PAIR_SIZE, 1), (-3.0, 3.0, 3.0)))
MOVING_GRID = Grid((72, 66, 1), frame() @ in_gantry((72, 66, 1), (2.8, -3.1, 3.0), turn_deg=15.0))


def true_inverse(y: torch.Tensor) -> torch.Tensor:
    """Where points of the moving image lie in the fixed one: up to 10 mm away, within the slice's plane."""
    turn = torch.tensor(frame()[:3, :3])
    gantry = (y.double() - torch.tensor(frame()[:3, 3])) @ turn
    u, v = gantry[:, 0] / 60, gantry[:, 1] / 60
    shift = torch.stack([7 * torch.cos(v), 5 * torch.sin(u + 0.5) + 3, torch.zeros_like(u)], dim=-1)
    return y.double() + shift @ turn.T


def pair_landmarks() -> tuple[torch.Tensor, torch.Tensor]:
    """The same places of the body in the fixed and in the moving image, (n, 3) mm each."""
    y = MOVING_GRID.points().reshape(*MOVING_GRID.shape, 3)[16:-16:5, 16:-16:5].reshape(-1, 3).double()
    return true_inverse(y), y


def _pair() -> Case:
    chest = sample("ct_chest_slice").values.float().reshape(1, 512, 512)
    values = torch.nn.functional.avg_pool2d(chest, 512 // PAIR_SIZE).reshape(FIXED_GRID.shape)
    moved = ImageField(values, FIXED_GRID)(true_inverse(MOVING_GRID.points()).float())
    moving = Scan(moved.reshape(MOVING_GRID.shape), MOVING_GRID, "HU")
    unseen = torch.zeros(FIXED_GRID.shape, dtype=torch.bool)
    unseen[::5, ::5] = True
    seen, hidden = Scan(values, FIXED_GRID, "HU", ~unseen), Scan(values, FIXED_GRID, "HU", unseen)
    return Case(Pair(seen, moving), Pair(hidden, moving))


# Stacks of thick slices through the discs, along and across them, mirrored, with the body at rest.
STACKS = (((-2.0, 2.0, 4.0), (24, 24, 5), (0, 1, 2)), ((2.0, 2.0, 4.0), (10, 24, 12), (2, 1, 0)))


def _stack(spacing: tuple[float, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> Stack:
    """Slices across the last of the gantry's `axes`; a voxel is the mean over its slice's thickness."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    grid = Grid((shape[0], shape[1], shape[2]), frame() @ affine)
    values = torch.zeros(shape)
    for part in (-0.375, -0.125, 0.125, 0.375):
        shifted = grid.affine.copy()
        shifted[:3, 3] += part * grid.affine[:3, 2]
        values += true_values(Grid(grid.shape, shifted)) / 4
    return Stack(Scan(values, grid), abs(spacing[2]))


def _stacks() -> Case:
    slices = slice_set([_stack(*stack) for stack in STACKS])
    unseen = (slices.number == 2) & (slices.stack_index == 0)
    return Case(slices.subset(~unseen), slices.subset(unseen), "arbitrary", None)


# The discs as one image of a radial scan with four coils, made on a grid four times finer than the reconstruction's.
SPOKES, COILS = 40, 4


def _kspace() -> Case:
    fine = GRID.resampled((SPACING_MM / 4, SPACING_MM / 4, 3.0))
    geometry = KSpaceGeometry(golden_angle_radial(GRID, SPOKES), COILS, GRID)
    image = true_values(fine).to(torch.complex64)[None]
    values = KSpaceEncoding(geometry, fine, analytic_sensitivities(fine, COILS)).apply(image)
    maps = analytic_sensitivities(GRID, COILS)
    scan = KSpace(values, geometry, Noise("none"), unit="arbitrary", source="phantom", sensitivities=maps)
    return Case(*scan.hold_out(4), "arbitrary")


KINDS: dict[str, Callable[[], Case]] = {
    "projections:parallel": lambda: _projections("parallel"),
    "projections:fan": lambda: _projections("fan"),
    "projections:cone": lambda: _projections("cone"),
    "image": _image,
    "dose": _dose,
    "image-pair": _pair,
    "stacks": _stacks,
    "kspace": _kspace,
}


# Cohorts for methods that learn from many: discs elsewhere in the slice, the case's own are not among them.
PEOPLE = (
    ("train", 4.0, -6.0),
    ("train", -9.0, 2.0),
    ("train", 0.0, 8.0),
    ("train", 7.0, 3.0),
    ("validation", -3.0, 6.0),
)


def _image_cohort(folder: Path) -> Cohort:
    """Images and their table in a folder."""
    lines = ["path,subject,split"]
    for k, (split, a, b) in enumerate(PEOPLE):
        discs = Phantom(
            (
                Ellipsoid((a, b, 0.0), (6.0 + k / 2, 6.0 + k / 2, math.inf), value=0.02),
                Ellipsoid((-b - 6, a - 8, 0.0), (4.5, 4.5, math.inf), value=0.02),
            )
        )
        write_nifti(folder / f"{k}.nii.gz", true_values(GRID, discs), GRID, unit="1/mm")
        lines.append(f"{k}.nii.gz,person {k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


LABELS = LabelTable((0, 3, 7), ("background", "bright", "dark"))


UNSEEN = (6.5, -1.0, 7.0)  # a person whom no cohort lists


def labelled_discs(a: float, b: float, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A slice with a bright disc at (a, b) and a darker one across from it, and its label map (values of `LABELS`)."""
    bright = Ellipsoid((a, b, 0.0), (radius, radius, math.inf), value=0.02)
    dark = Ellipsoid((-a, -b, 0.0), (4.5, 4.5, math.inf), value=0.01)
    labels = torch.zeros(GRID.shape, dtype=torch.uint8)
    for value, disc in zip(LABELS.values[1:], (bright, dark), strict=True):
        labels[true_values(GRID, Phantom((disc,))) > 0] = value
    return true_values(GRID, Phantom((bright, dark))), labels


def _labelled_cohort(folder: Path) -> Cohort:
    """Images, label maps and their tables in a folder."""
    lines = ["path,label,subject,split"]
    for k, (split, a, b) in enumerate(PEOPLE):
        values, labels = labelled_discs(a, b, 6.0 + k / 2)
        write_nifti(folder / f"{k}.nii.gz", values, GRID, unit="1/mm")
        write_nifti(folder / f"{k}_label.nii.gz", labels, GRID)
        lines.append(f"{k}.nii.gz,{k}_label.nii.gz,person {k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    write_label_table(folder / "labels.csv", LABELS)
    return read_cohort(folder / "cohort.csv", labels=folder / "labels.csv")


def growing(k: int) -> MaskSequence:
    """A ball that grows and moves for 9 s, on an oblique, left-handed grid of its own, far away from the origin."""
    shape = (15 + k % 2, 16, 14)
    affine = frame() @ in_gantry(shape, (-1.0 - 0.1 * k, 1.0, 1.1), turn_deg=10.0 * k)
    affine[:3, 3] += 30.0 * k
    grid, frames = Grid(shape, affine), 4 - k % 2
    x, times = grid.points().double() - torch.tensor(grid.centre_mm), torch.linspace(0, 1, frames)
    moved = torch.tensor([0.8, -0.4, 0.3]) * (1 - 0.3 * k)
    masks = [((x - (t - 0.5) * moved).norm(dim=1) < 2.6 + 0.3 * k + t).reshape(shape) for t in times]
    return MaskSequence(torch.stack(masks), grid, 9.0 / (frames - 1))


def _sequence_cohort(folder: Path) -> Cohort:
    """Sequences of masks and their table in a folder."""
    lines = ["path,subject,split"]
    for k, (split, _, _) in enumerate(PEOPLE):
        write_sequence(folder / f"{k}.nii.gz", growing((k + 1) % len(PEOPLE)))
        lines.append(f"{k}.nii.gz,cell {k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


COHORTS: dict[str, Callable[[Path], Cohort]] = {
    "image": _image_cohort,
    "labelled-image": _labelled_cohort,
    "mask-sequence": _sequence_cohort,
}
