"""From a volume to stacks of thick slices of a moving body: what slice-to-volume reconstruction is tried on.

Notation: V volume, p pixel of slice i in the frame of the slice, T_i its pose as the header says, M_i the rigid motion
of the body when it was acquired (about the body's middle), w the point-spread function (`slice_profile`).

    y_i(p) = int w(q) V(M_i T_i (p + q)) dq,   true pose M_i T_i: slice frame -> world of the volume

The integral is a sum over a lattice finer than pixel, slice and voxel, of V interpolated by a cubic spline: no operator
that any method fits with. Noise is Rician, as in magnitude images. The motion of a *walk* is a stationary smooth random
process in time, through all shots of all stacks: neighbours in time are alike, neighbours in an interleaved stack are
not. Its rotation vector and its translation have, along each axis, the given standard deviation at every moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.interpolate import make_interp_spline
from scipy.ndimage import binary_fill_holes, gaussian_filter1d, label
from torch import Tensor
from torch.nn import functional

from scanfield.data.guard import check_memory
from scanfield.data.scan import Scan
from scanfield.data.slices import intensity_scale
from scanfield.data.stack_masks import mask_at
from scanfield.data.stacks import Stack, acquisition_shots
from scanfield.errors import InputError
from scanfield.operators.slice_profile import (
    Psf,
    across_reach_mm,
    across_weights,
    along_reach_mm,
    along_weights,
)
from scanfield.space.grid import Grid
from scanfield.space.pose import rotation_matrix

ORIENTATIONS = ("axial", "coronal", "sagittal")
_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # of RAS+: two along the slices, one across
OUTLIERS = ("dropout", "void", "noise")
DROPOUT, NOISE = 0.3, 0.3  # of the signal; of the 99th percentile
BACKGROUND = 0.1  # of the 99th percentile: what is darker and not enclosed is not the body
SHOWS_THE_BODY = 0.1  # of the largest slice's area; only such slices become outliers
FINER = 2  # spline lattice points per voxel; least number of points of the sum per pixel
STEP = 0.75  # voxels, between points of the sum at most


@dataclass(frozen=True)
class StackScanOptions:
    """How to scan.

    Args:
        orientations: 'axial', 'coronal' or 'sagittal' of each stack, along the volume's own axes; a repeated one is
            shifted by a part of the slices' distance.
        thickness_mm, gap_mm: of the slices; a negative gap is an overlap.
        in_plane_mm: size of a pixel (None: the volume's smallest voxel spacing).
        motion: 'walk', smooth in time; or 'independent', another pose in every shot.
        motion_deg, motion_mm: standard deviation of the rotation vector and of the translation, along each axis.
        correlation_shots: standard deviation in time of the Gaussian that a walk is smoothed with.
        interleave, multiband: see `acquisition_shots`.
        outliers: share of the slices that show the body which are corrupted: by a loss of signal everywhere or in one
            place, or by strong noise.
        noise_percent: standard deviation of the Rician noise in percent of the volume's 99th percentile.
        psf: see `slice_profile`.
        margin_mm: of the stacks around the body.
        seed: of motion, outliers and noise.
    """

    orientations: tuple[str, ...] = ORIENTATIONS
    thickness_mm: float = 4.0
    gap_mm: float = 0.0
    in_plane_mm: float | None = None
    motion: Literal["walk", "independent"] = "walk"
    motion_deg: float = 0.0
    motion_mm: float = 0.0
    correlation_shots: float = 4.0
    interleave: int = 2
    multiband: int = 1
    outliers: float = 0.0
    noise_percent: float = 0.0
    psf: Psf = "box-sinc"
    margin_mm: float = 10.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SimulatedStack:
    """A stack and the truth about it.

    Args:
        stack: as the scanner would give it; its mask is the body's, moved with every slice.
        orientation: 'axial', 'coronal' or 'sagittal'.
        poses: (slices, 4, 4) float64 true poses, slice frame -> world of the volume.
        outliers: the corrupted slices and how: 'dropout', 'void' or 'noise'.
    """

    stack: Stack
    orientation: str
    poses: np.ndarray
    outliers: dict[int, str]


def simulate_stacks(volume: Scan, options: StackScanOptions) -> list[SimulatedStack]:
    """Stacks of slices of `volume`, whose mask says where the body is (None: `body_mask`).

    Raises:
        InputError: the volume is no volume or empty, or an option is out of range.
    """
    _check(volume, options)
    if volume.mask is None:
        volume = replace(volume, mask=body_mask(volume))
    generator = torch.Generator().manual_seed(options.seed)
    in_plane = options.in_plane_mm or min(volume.grid.spacing_mm)
    grids = stack_grids(volume, options, in_plane)
    shots = [acquisition_shots(grid.shape[2], options.interleave, options.multiband) for grid in grids]
    motions = body_motion([1 + max(shot) for shot in shots], options, generator)
    fine = _FineVolume(volume)
    out = []
    for orientation, grid, shot, motion in zip(options.orientations, grids, shots, motions, strict=True):
        empty = Scan(torch.zeros(grid.shape), grid, source=f"{orientation} stack")
        stack = Stack(empty, options.thickness_mm, 2, shot)
        poses = np.stack([about(fine.middle_mm, motion[k]) @ pose for k, pose in zip(shot, stack.poses(), strict=True)])
        values = torch.stack([fine.slice(stack, pose, options.psf) for pose in poses], dim=-1)
        mask = torch.stack([fine.shown(stack, pose) for pose in poses], dim=-1)
        outliers = _corrupt(values, mask, options, fine.scale, generator)
        if options.noise_percent:
            sigma = fine.scale * options.noise_percent / 100
            real, imaginary = (sigma * torch.randn(values.shape, generator=generator) for _ in range(2))
            values = ((values + real).square() + imaginary.square()).sqrt()
        scan = replace(empty, values=values, mask=mask, unit=volume.unit)
        out.append(SimulatedStack(replace(stack, scan=scan), orientation, poses, outliers))
    return out


def body_mask(volume: Scan) -> Bool[Tensor, "n0 n1 n2"]:
    """The largest connected part of what is not dark, holes filled.

    Raises:
        InputError: there is nothing brighter than zero.
    """
    values = volume.values.float()
    scale = intensity_scale(values.reshape(-1))
    if scale <= 0:
        raise InputError("the volume is empty: its 99th percentile is not above zero", where=volume.source)
    parts, count = label((values > BACKGROUND * scale).numpy())
    largest = 1 + int(np.bincount(parts.reshape(-1), minlength=count + 1)[1:].argmax())
    return torch.from_numpy(binary_fill_holes(parts == largest))


def stack_grids(volume: Scan, options: StackScanOptions, in_plane_mm: float) -> list[Grid]:
    """The lattice of each stack, slices along its third axis, around the volume's mask."""
    axes, grid = _anatomical(volume.grid), volume.grid
    assert volume.mask is not None
    x = grid.to_world(volume.mask.nonzero().double()).numpy() @ axes
    low, high = x.min(axis=0) - options.margin_mm, x.max(axis=0) + options.margin_mm
    distance = options.thickness_mm + options.gap_mm
    grids = []
    for k, orientation in enumerate(options.orientations):
        use = list(_AXES[orientation])
        step = np.array([in_plane_mm, in_plane_mm, distance])
        shape = np.ceil((high - low)[use] / step).astype(int)
        shape[2] += -shape[2] % options.multiband
        middle = (low + high)[use] / 2
        earlier = options.orientations[:k].count(orientation)
        middle[2] += distance * earlier / options.orientations.count(orientation)
        affine = np.eye(4)
        affine[:3, :3] = axes[:, use] * step
        affine[:3, 3] = axes[:, use] @ (middle - step * (shape - 1) / 2)
        grids.append(Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine))
    return grids


def body_motion(
    shots: Sequence[int], options: StackScanOptions, generator: torch.Generator
) -> list[Float[Tensor, "shots 6"]]:
    """The body's motion at every shot of every stack: rotation vector (rad) and translation (mm)."""
    total = sum(shots)
    if options.motion == "independent":
        unit = torch.randn(total, 6, generator=generator, dtype=torch.float64)
    else:
        reach = math.ceil(4 * options.correlation_shots) + 1
        white = torch.randn(total + 2 * reach, 6, generator=generator, dtype=torch.float64).numpy()
        pulse = np.eye(1, 2 * reach + 1, reach)[0]
        gain = np.linalg.norm(gaussian_filter1d(pulse, options.correlation_shots, mode="constant"))
        unit = torch.from_numpy(gaussian_filter1d(white, options.correlation_shots, axis=0)[reach:-reach] / gain)
    size = torch.tensor([math.radians(options.motion_deg)] * 3 + [options.motion_mm] * 3, dtype=torch.float64)
    return list((unit * size).split(list(shots)))


def about(middle_mm: np.ndarray, motion: Float[Tensor, " 6"]) -> np.ndarray:
    """x -> R (x - c) + c + t as a 4x4 matrix, of a rotation vector (rad) and a translation (mm)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(motion[:3].double()).numpy()
    matrix[:3, 3] = middle_mm - matrix[:3, :3] @ middle_mm + motion[3:].double().numpy()
    return matrix


class _FineVolume:
    """A volume on a lattice `FINER` times finer, by the cubic spline through its voxels, linear in between."""

    def __init__(self, volume: Scan) -> None:
        assert volume.mask is not None
        self.grid, self.mask = volume.grid, volume.mask
        check_memory(3 * 4 * volume.grid.size * FINER**3, volume.source)
        values = volume.values.float()
        fine = values
        for axis, n in enumerate(values.shape):
            place = np.linspace(0, n - 1, FINER * (n - 1) + 1)
            spline = torch.from_numpy(make_interp_spline(np.arange(n), np.eye(n), k=min(3, n - 1))(place)).float()
            fine = torch.movedim(torch.tensordot(spline, fine, dims=([1], [axis])), 0, axis)
        self.values = fine.clamp(values.min(), values.max())[None, None].contiguous()
        self.scale = intensity_scale(values[self.mask])
        self.middle_mm = volume.grid.to_world(self.mask.nonzero().double()).mean(dim=0).numpy()
        self.step_mm = min(volume.grid.spacing_mm) * STEP
        scale = np.diag([2 / (n - 1) for n in reversed(volume.grid.shape)])  # grid_sample: -1..1, last axis first
        to_voxel = np.linalg.inv(volume.grid.affine)[:3][::-1]
        self.world_to_query = scale @ to_voxel
        self.world_to_query[:, 3] -= 1

    def slice(self, stack: Stack, pose: np.ndarray, psf: Psf) -> Float[Tensor, "n0 n1"]:
        """What a slice shows; zero outside the volume."""
        places, filters = [], []
        for n, pixel in zip(stack.plane_shape, stack.plane_spacing_mm, strict=True):
            count = max(FINER, math.ceil(pixel / self.step_mm - 1e-6))  # points per pixel
            extra = max(0, math.ceil((along_reach_mm(psf, pixel) / pixel - 0.5) * count))
            index = torch.arange(-extra, n * count + extra, dtype=torch.float64)
            place = ((index + 0.5) / count - n / 2) * pixel
            centre = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pixel
            weights = along_weights(psf, pixel, place - centre[:, None])
            places.append(place)
            filters.append((weights / weights.sum(dim=1, keepdim=True)).float())
        reach = across_reach_mm(psf, stack.thickness_mm)
        count = max(2 * FINER, math.ceil(2 * reach / self.step_mm))
        z = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1) * reach
        across = across_weights(psf, stack.thickness_mm, z)
        total = torch.zeros(len(places[0]), len(places[1]))
        matrix = self.world_to_query @ pose
        middle = torch.stack(
            [places[0][:, None] * matrix[k, 0] + places[1] * matrix[k, 1] + matrix[k, 3] for k in range(3)],
            dim=-1,
        ).float()
        across_mm = torch.from_numpy(matrix[:3, 2])
        for height, weight in zip(z, across / across.sum(), strict=True):
            query = (middle + (height * across_mm).float())[None, None]
            total += float(weight) * functional.grid_sample(self.values, query, align_corners=True)[0, 0, 0]
        return filters[0] @ total @ filters[1].T

    def shown(self, stack: Stack, pose: np.ndarray) -> Bool[Tensor, "n0 n1"]:
        """Which pixels' centres lie in the body."""
        axes = [
            (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pixel
            for n, pixel in zip(stack.plane_shape, stack.plane_spacing_mm, strict=True)
        ]
        p = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.zeros(stack.plane_shape)], dim=-1)
        matrix = torch.from_numpy(pose)
        return mask_at(self.mask, self.grid, p @ matrix[:3, :3].T + matrix[:3, 3])


def _corrupt(
    values: Tensor, mask: Tensor, options: StackScanOptions, scale: float, generator: torch.Generator
) -> dict[int, str]:
    """Spoils some slices in place; which, and how."""
    area = mask.sum(dim=(0, 1))
    candidates = (area >= SHOWS_THE_BODY * area.max()).nonzero()[:, 0]
    chosen = candidates[torch.randperm(len(candidates), generator=generator)]
    found = {}
    for k in sorted(chosen[: round(options.outliers * len(candidates))].tolist()):
        kind = OUTLIERS[int(torch.randint(len(OUTLIERS), (), generator=generator))]
        found[k] = kind
        if kind == "dropout":
            values[..., k] *= DROPOUT
        elif kind == "noise":
            noise = NOISE * scale * torch.randn(values.shape[:2], generator=generator)
            values[..., k] = (values[..., k] + noise).abs()
        else:  # the signal of a round part is lost
            inside = mask[..., k].nonzero().float()
            centre = inside[int(torch.randint(len(inside), (), generator=generator))]
            width = 0.35 * float(len(inside)) ** 0.5
            i, j = torch.meshgrid(*(torch.arange(float(n)) for n in values.shape[:2]), indexing="ij")
            values[..., k] *= 1 - torch.exp(-((i - centre[0]) ** 2 + (j - centre[1]) ** 2) / (2 * width**2))
    return found


def _anatomical(grid: Grid) -> np.ndarray:
    """(3, 3) the volume's axes, as columns, in the order and with the signs nearest to RAS+."""
    best = max(
        ([a, b, 3 - a - b] for a in range(3) for b in range(3) if a != b),
        key=lambda use: np.abs(np.diag(grid.directions[:, use])).sum(),
    )
    axes = grid.directions[:, best]
    return axes * np.sign(np.diag(axes))


def _check(volume: Scan, options: StackScanOptions) -> None:
    if volume.values.ndim != 3 or min(volume.grid.shape) < 2:
        raise InputError(
            f"stacks are simulated from a volume of one channel, this image has shape {tuple(volume.values.shape)}",
            where=volume.source,
        )
    unknown = [name for name in options.orientations if name not in ORIENTATIONS]
    if unknown or not options.orientations:
        raise InputError(
            f"unknown orientation '{unknown[0]}'" if unknown else "at least one orientation is needed",
            fix=f"give some of {', '.join(ORIENTATIONS)}, separated by commas",
        )
    positive = {"thickness_mm": options.thickness_mm, "distance of the slices": options.thickness_mm + options.gap_mm}
    positive |= {"correlation_shots": options.correlation_shots}
    if options.in_plane_mm is not None:
        positive["in_plane_mm"] = options.in_plane_mm
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be positive, got {value:g}")
    least_zero = ("motion_deg", "motion_mm", "noise_percent", "margin_mm", "outliers")
    for name in least_zero:
        value = vars(options)[name]
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be finite and not negative, got {value:g}")
    if options.outliers > 0.5:
        raise InputError(f"at most half of the slices can be outliers, got a share of {options.outliers:g}")
