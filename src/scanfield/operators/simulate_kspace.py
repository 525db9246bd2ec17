"""From a slice to k-space of a moving, brightening object: what dynamic MR reconstruction is tried on.

Notation: m image, c middle and R radius of the moving region, r = |x - c| / R, b(r) = (1 - r^2)^2 inside and 0 outside,
T period, D duration of the scan.

    m_t(x) = e^{i phi(x)} g_t(x) m(c + (x - c) (1 + a_t b(r)))
    beating       a_t = A (1 - cos(2 pi t / T)) / 2, A from the peak displacement
    brightening   g_t = 1 + B b(r) / (1 + exp(-(t - D / 2) / (D / 12)))

Every view sees the object at its own time: nothing stands still within a frame. The image is interpolated by a cubic
spline on a grid twice as fine as the reconstruction's, where the coils are evaluated as well, so that no method fits
with the model that made the data. The truth of a frame is what a complete, noise-free Cartesian scan of the object at
the middle of the frame's time shows on the reconstruction's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex
from scipy.ndimage import map_coordinates, spline_filter
from torch import Tensor

from scanfield.data.measurement import Noise
from scanfield.data.rawmri import KSpace
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.coils import analytic_sensitivities
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.fourier import centred_ifft
from scanfield.operators.trajectories import cartesian, golden_angle_radial, random_lines, spiral
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry, consecutive_frames

Trajectory = Literal["radial", "spiral", "cartesian"]
Motion = Literal["none", "beating", "brightening", "both"]
FINER = 2  # voxels of the simulated image per voxel of the reconstruction, along both axes of the slice
REGION = 0.3  # radius of the moving region, of the smaller side of the field of view
SPIRAL_FULL = 16  # interleaves that cover k-space together
_PEAK = math.sqrt(1 / 5) * (1 - 1 / 5) ** 2  # largest r b(r), at r^2 = 1 / 5
_FOLDS = 1.25  # A from which the region would fold over itself


@dataclass(frozen=True)
class KSpaceScanOptions:
    """How to scan.

    Args:
        trajectory: 'radial' and 'spiral' turn by the golden angle, 'cartesian' takes random lines in every frame.
        coils: receiver coils on a cylinder about the slice.
        frames, views_per_frame: of the series; a view is a spoke, an interleaf, a line.
        samples: per view (None: twice the matrix for radial, enough along the curve for spiral; Cartesian lines have
            the matrix size).
        motion: 'beating', 'brightening', 'both' or 'none'.
        motion_mm: peak displacement of the beating region.
        brightening_percent: by how much its middle gets brighter.
        period_s: of the beating.
        repetition_s: from view to view.
        phase_rad: largest phase of the image itself, a smooth wave across the slice.
        noise_percent: standard deviation of the noise's real and imaginary part, in percent of the image's 99th
            percentile; a full Cartesian scan's image has as much in every coil.
        seed: of noise and of random lines.
    """

    trajectory: Trajectory = "radial"
    coils: int = 8
    frames: int = 20
    views_per_frame: int = 8
    samples: int | None = None
    motion: Motion = "none"
    motion_mm: float = 4.0
    brightening_percent: float = 60.0
    period_s: float = 0.8
    repetition_s: float = 0.005
    phase_rad: float = 1.0
    noise_percent: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SimulatedKSpace:
    """The scan, with the true sensitivities, and the true series (frames, n0, n1, n2) complex64."""

    kspace: KSpace
    truth: Tensor


def simulate_kspace(
    scan: Scan, options: KSpaceScanOptions, *, slice_index: int | None = None, grid: Grid | None = None
) -> SimulatedKSpace:
    """A raw scan of one slice of an image, whose values keep their unit.

    Args:
        slice_index: along the third voxel axis (None: the middle one).
        grid: where to reconstruct: one slice over the image's field of view (None: the slice's own voxels).

    Raises:
        InputError: the slice does not exist or is empty, the grid lies elsewhere, or an option is out of range.
    """
    slice_index = scan.grid.shape[2] // 2 if slice_index is None else slice_index
    own = scan.grid.slice(slice_index)
    volume = own if grid is None else grid
    image = scan.values[:, :, slice_index].numpy().astype(np.float64)
    if image.ndim != 2:
        raise InputError("an image with one value a voxel is needed", where=scan.source)
    if not np.abs(image).max() > 0:
        raise InputError(f"slice {slice_index} is zero everywhere", where=scan.source, fix="choose another slice")
    _check(options, volume, own)
    duration = options.frames * options.views_per_frame * options.repetition_s
    moving = _MovingImage(image, own, _finer(volume), options, duration)
    geometry = _geometry(volume, options)
    maps = analytic_sensitivities(moving.grid, options.coils)
    assert geometry.time_s is not None
    parts, truth = [], []
    for frame in range(options.frames):
        views = np.flatnonzero(geometry.frame_of_view == frame)
        times = geometry.time_s[views]
        one_each = KSpaceGeometry(geometry.trajectory[views], options.coils, volume, frame=np.arange(len(views)))
        series = torch.stack([moving.at(float(t)) for t in times])
        parts.append(KSpaceEncoding(one_each, moving.grid, maps).apply(series))
        truth.append(_complete_scan(moving.at(float(times.mean())), moving.grid, volume))
    exact = torch.cat(parts)
    sigma = options.noise_percent / 100 * float(np.percentile(np.abs(image), 99))
    generator = torch.Generator().manual_seed(options.seed)
    noise = math.sqrt(2) * sigma * torch.randn(exact.shape, dtype=exact.dtype, generator=generator)
    kspace = KSpace(
        exact + noise,
        geometry,
        Noise("gaussian", sigma) if sigma > 0 else Noise("none"),
        unit=scan.unit,
        source=scan.source,
        sensitivities=analytic_sensitivities(volume, options.coils),
        r_peaks_s=_r_peaks(options, duration),
    )
    return SimulatedKSpace(kspace, torch.stack(truth))


def true_series(
    scan: Scan,
    options: KSpaceScanOptions,
    times_s: Sequence[float] | np.ndarray,
    *,
    slice_index: int | None = None,
    grid: Grid | None = None,
) -> Complex[Tensor, "t n0 n1 n2"]:
    """What a complete, noise-free Cartesian scan shows of the object at any times; arguments as `simulate_kspace`."""
    slice_index = scan.grid.shape[2] // 2 if slice_index is None else slice_index
    own = scan.grid.slice(slice_index)
    volume = own if grid is None else grid
    image = scan.values[:, :, slice_index].numpy().astype(np.float64)
    duration = options.frames * options.views_per_frame * options.repetition_s
    moving = _MovingImage(image, own, _finer(volume), options, duration)
    return torch.stack([_complete_scan(moving.at(float(t)), moving.grid, volume) for t in times_s])


def _r_peaks(options: KSpaceScanOptions, duration_s: float) -> np.ndarray | None:
    """The beats of a beating region begin with an R-peak; the last one ends with another."""
    if options.motion not in ("beating", "both"):
        return None
    return np.arange(math.floor(duration_s / options.period_s + 1e-9) + 1) * options.period_s


class _MovingImage:
    """The object on the fine grid at any time."""

    def __init__(self, image: np.ndarray, own: Grid, fine: Grid, options: KSpaceScanOptions, duration_s: float) -> None:
        self.grid, self._options, self._duration = fine, options, duration_s
        self._coefficients = spline_filter(image, order=3, mode="nearest")
        points = fine.to_world(torch.cartesian_prod(*(torch.arange(n).double() for n in fine.shape)))
        index = own.to_voxel(points)[:, :2].numpy().reshape(*fine.shape[:2], 2)
        spacing = np.asarray(own.spacing_mm[:2])
        middle = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"), axis=-1)
        weight = np.abs(image)[..., None]
        self._centre = (middle * weight).sum(axis=(0, 1)) / weight.sum()
        self._away = index - self._centre
        radius = REGION * float(min(np.asarray(own.shape[:2]) * spacing))
        distance = np.linalg.norm(self._away * spacing, axis=-1) / radius
        self._bump = np.where(distance < 1, (1 - distance**2) ** 2, 0.0)
        self._strength = options.motion_mm / (_PEAK * radius)
        if options.motion in ("beating", "both") and self._strength >= _FOLDS:
            raise InputError(
                f"a displacement of {options.motion_mm:g} mm would fold a region of {radius:.3g} mm radius over itself",
                fix=f"choose less than {_FOLDS * _PEAK * radius:.2g} mm",
            )
        u, v = (2 * (index[..., a] + 0.5) / image.shape[a] - 1 for a in range(2))
        self._phase = np.exp(1j * options.phase_rad * np.sin(2 * u + 0.5) * np.cos(1.5 * v - 0.3))

    def at(self, time_s: float) -> Complex[Tensor, "n0 n1 n2"]:
        """m_t on the fine grid."""
        place, gain = self._centre + self._away, np.ones_like(self._bump)
        if self._options.motion in ("beating", "both"):
            swing = (1 - math.cos(2 * math.pi * time_s / self._options.period_s)) / 2
            place = self._centre + self._away * (1 + self._strength * swing * self._bump)[..., None]
        if self._options.motion in ("brightening", "both"):
            arrival = 1 / (1 + math.exp(-12 * (time_s / self._duration - 0.5)))
            gain = 1 + self._options.brightening_percent / 100 * arrival * self._bump
        where = np.moveaxis(place, -1, 0)
        values = map_coordinates(self._coefficients, where, order=3, mode="nearest", prefilter=False)
        return torch.from_numpy((values * gain * self._phase).astype(np.complex64))[..., None]


def _geometry(volume: Grid, options: KSpaceScanOptions) -> KSpaceGeometry:
    views = options.frames * options.views_per_frame
    if options.trajectory == "radial":
        trajectory = golden_angle_radial(volume, views, options.samples)
    elif options.trajectory == "spiral":
        matrix = max(volume.shape[:2])
        samples = options.samples or math.ceil(math.pi * matrix * max(1.0, matrix / 2 / SPIRAL_FULL))
        trajectory = spiral(volume, views, samples, SPIRAL_FULL)
    else:
        generator = np.random.default_rng(options.seed)
        each = [random_lines(volume.shape[1], options.views_per_frame, generator) for _ in range(options.frames)]
        trajectory = cartesian(volume, np.concatenate(each))
    return KSpaceGeometry(
        trajectory,
        options.coils,
        volume,
        time_s=np.arange(views) * options.repetition_s,
        frame=consecutive_frames(views, options.frames),
        frames=options.frames,
    )


def _complete_scan(image: Tensor, fine: Grid, volume: Grid) -> Complex[Tensor, "n0 n1 n2"]:
    """What a noise-free Cartesian scan with a single even coil shows of `image` on `volume`."""
    full = KSpaceGeometry(cartesian(volume, np.arange(volume.shape[1])), 1, volume)
    lines = KSpaceEncoding(full, fine, None).apply(image[None])
    return centred_ifft(lines[:, 0].T[..., None])


def _finer(volume: Grid) -> Grid:
    s0, s1, s2 = volume.spacing_mm
    return volume.resampled((s0 / FINER, s1 / FINER, s2))


def _check(options: KSpaceScanOptions, volume: Grid, own: Grid) -> None:
    if min(options.coils, options.frames, options.views_per_frame) < 1:
        raise InputError("a scan needs at least one coil, one frame and one view in it")
    if options.trajectory == "cartesian" and options.samples not in (None, volume.shape[0]):
        raise InputError(f"a Cartesian line has the matrix's {volume.shape[0]} samples, not {options.samples}")
    for name in ("motion_mm", "brightening_percent", "phase_rad", "noise_percent"):
        if not 0 <= getattr(options, name) < math.inf:
            raise InputError(f"{name} must be finite and not negative, got {getattr(options, name)}")
    for name in ("period_s", "repetition_s"):
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"{name} must be a positive number of seconds, got {getattr(options, name)}")
    if (
        min(volume.shape[:2]) < 2
        or volume.shape[2] != 1
        or not np.allclose(volume.corners_mm(), own.corners_mm(), atol=1e-3 + 0.5 * max(volume.spacing_mm[:2]))
    ):
        raise InputError("the reconstruction's grid is one slice over the image's own field of view")
