"""From a CT image to a CT scan, with noise: what every method and every rival is tried on.

Notation: R radius of the circle about the volume's centre that holds its slices, a source-to-axis and s source-to-
detector distance. The gantry turns about the volume's centre, its z axis along the third voxel axis and its x axis
along the first. A detector that sees the whole circle is 2 R wide for a parallel beam, 2 s tan(asin(R / a)) for a flat
and 2 s asin(R / a) (arc length) for a curved fan-beam detector. Every slice is one detector row; in a cone beam, the
rows cover the volume's height h where it comes nearest to the source: s h / (a - R).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.attenuation import CtUnit, attenuation
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.noise import gaussian_noise, poisson_noise, sigma_of_percent
from scanfield.operators.siddon import project_voxels
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

SOURCE_TO_AXIS_MM, SOURCE_TO_DETECTOR_MM = 541.0, 949.0
"""A diagnostic scanner; scaled up together where the volume would not leave room for the gantry."""
_WIDEST_FAN = 0.5  # R / a of the default distances: a fan of 60 degrees


@dataclass(frozen=True)
class CtScanOptions:
    """How to scan. What is None follows from the volume.

    Args:
        beam: 'parallel', 'fan' or 'cone'.
        detector: 'flat' or, for a fan or cone, 'arc'.
        views: number of views, evenly over the arc; its end is not a view.
        arc_deg: angle the views cover (None: 180 for a parallel beam, 360 for a fan or cone).
        start_deg: angle of the first view.
        bins: detector columns (None: as many as cover the volume's diagonal).
        bin_mm: width of a column on the detector (None: the voxel size, magnified for a fan or cone; with `bins`, what
            makes them cover the diagonal). For an arc detector, the arc length.
        rows, row_mm: detector rows of a cone beam and their height (None: the slices' thickness, magnified, and as many
            as cover the volume's height).
        offset_mm: shift of the detector (along its rows' axis, along its columns'); the first is for a cone beam.
        source_to_axis_mm, source_to_detector_mm: of a fan or cone (None: 541 and 949 mm, scaled up for a large volume).
        photons: mean number of photons per detector pixel in air; adds Poisson noise.
        noise_percent: standard deviation of Gaussian noise in percent of the largest line integral.
        seed: of the noise.
        subrays: rays averaged over the width of a column; in a cone beam, the root of it over either side of a pixel.
    """

    beam: Literal["parallel", "fan", "cone"] = "parallel"
    detector: Literal["flat", "arc"] = "flat"
    views: int = 60
    arc_deg: float | None = None
    start_deg: float = 0.0
    bins: int | None = None
    bin_mm: float | None = None
    rows: int | None = None
    row_mm: float | None = None
    offset_mm: tuple[float, float] = (0.0, 0.0)
    source_to_axis_mm: float | None = None
    source_to_detector_mm: float | None = None
    photons: float | None = None
    noise_percent: float | None = None
    seed: int = 0
    subrays: int = 4


def simulate_ct(
    scan: Scan,
    options: CtScanOptions,
    *,
    slice_index: int | None = None,
    grid: Grid | None = None,
    unit: CtUnit = "auto",
    mu_water_per_mm: float = MU_WATER_PER_MM,
) -> Measurement[ProjectionGeometry]:
    """A scan of a CT image: exact line integrals through its voxels (not the operator any method fits with).

    Args:
        scan: the image, in HU or 1/mm; attenuation below zero is taken as zero.
        options: the scanner.
        slice_index: scan only this slice along the third voxel axis; None scans all, one detector row each.
        grid: where to reconstruct, stated in the scan (None: the scanned voxels).
        unit: of the image, see `attenuation`.
        mu_water_per_mm: attenuation of water, for images in HU.

    Returns:
        Line integrals (views, slices, bins), dimensionless; the geometry's frame puts the volume where it lies in the
        world.

    Raises:
        InputError: the slice does not exist, an option is out of range, the source would be inside the volume, or
            `attenuation` cannot tell the unit.
    """
    image = attenuation(scan, unit, mu_water_per_mm)
    if slice_index is not None:
        inner = image.grid.slice(slice_index)
        image = Scan(image.values[:, :, slice_index, None], inner, unit=image.unit, source=image.source)
    geometry = scanner(image.grid, options)
    exact = project_voxels(image.values.clamp(min=0.0), image.grid, geometry, subsamples=subsamples(options))
    if float(exact.max()) <= 0:
        raise InputError("no ray meets any attenuation: the image is empty", where=scan.source)
    noisy, noise = with_noise(exact, options)
    if grid is not None:
        geometry = replace(geometry, volume=grid)
    return Measurement(noisy, geometry, noise, unit="1", source=scan.source)


def subsamples(options: CtScanOptions) -> tuple[int, int]:
    """Rays over the height and the width of a detector pixel."""
    side = max(1, math.isqrt(options.subrays))
    return (side, side) if options.beam == "cone" else (1, options.subrays)


def scanner(grid: Grid, options: CtScanOptions) -> ProjectionGeometry:
    """The geometry that `options` describe about the centre of `grid`.

    Raises:
        InputError: an option is out of range, or the source would be inside the volume.
    """
    _check(options)
    fan = options.beam != "parallel"
    radius = field_radius_mm(grid)
    voxel = min(grid.spacing_mm[0], grid.spacing_mm[1])
    a, s = _distances(options, radius) if fan else (0.0, 0.0)
    half = _half_width(options, radius, a, s)
    bin_mm, bins = options.bin_mm, options.bins
    if bin_mm is None:
        bin_mm = 2 * half / bins if bins is not None else voxel * (s / a if fan else 1.0)
    if bins is None:
        bins = math.ceil(2 * half / bin_mm - 1e-6)
    rows, row_mm = grid.shape[2], grid.spacing_mm[2]
    if options.beam == "cone":
        row_mm = row_mm * s / a if options.row_mm is None else options.row_mm
        rows = math.ceil(height_on_detector_mm(grid, a, s) / row_mm - 1e-6) if options.rows is None else options.rows
    along_rows, along_columns = options.offset_mm
    arc = options.detector == "arc"
    detector = Detector(
        kind=options.detector,
        shape=(rows, bins),
        spacing=(row_mm, math.degrees(bin_mm / s) if arc else bin_mm),
        offset=(along_rows, math.degrees(along_columns / s) if arc else along_columns),
    )
    turn = options.arc_deg if options.arc_deg is not None else (360.0 if fan else 180.0)
    return ProjectionGeometry(
        beam=options.beam,
        angles_deg=options.start_deg + turn * np.arange(options.views) / options.views,
        detector=detector,
        volume=grid,
        source_to_axis_mm=a,
        source_to_detector_mm=s,
        frame=gantry_frame(grid),
    )


def gantry_frame(grid: Grid) -> np.ndarray:
    """Gantry mm -> world mm: origin at the grid's centre, x along its first voxel axis, z along its third."""
    x, _, z = grid.directions.T
    frame = np.eye(4)
    frame[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    frame[:3, 3] = grid.centre_mm
    return frame


def field_radius_mm(grid: Grid) -> float:
    """Radius of the circle about the centre that holds a slice of the grid: half its diagonal."""
    extent = np.asarray(grid.shape[:2]) * np.asarray(grid.spacing_mm[:2])
    return float(np.hypot(*extent)) / 2


def height_on_detector_mm(grid: Grid, source_to_axis_mm: float, source_to_detector_mm: float) -> float:
    """How high the volume can appear on the detector of a cone beam: the part of it nearest to the source."""
    height = grid.shape[2] * grid.spacing_mm[2]
    return height * source_to_detector_mm / (source_to_axis_mm - field_radius_mm(grid))


def measured_radius_mm(geometry: ProjectionGeometry) -> float:
    """Radius of the circle about the axis that is measured, from one side at least; beyond it a scan is truncated."""
    _, columns = geometry.detector.shape
    half = columns / 2 * geometry.detector.spacing[1] + abs(geometry.detector.offset[1])
    if geometry.beam == "parallel":
        return half
    angle = math.radians(half) if geometry.detector.kind == "arc" else math.atan(half / geometry.source_to_detector_mm)
    return geometry.source_to_axis_mm * math.sin(min(angle, math.pi / 2))


def _distances(options: CtScanOptions, radius: float) -> tuple[float, float]:
    """Source-to-axis and source-to-detector distance (mm): given, or the defaults in their proportion."""
    a, s = options.source_to_axis_mm, options.source_to_detector_mm
    if a is None:
        a = max(SOURCE_TO_AXIS_MM, radius / _WIDEST_FAN) if s is None else s * SOURCE_TO_AXIS_MM / SOURCE_TO_DETECTOR_MM
    if s is None:
        s = a * SOURCE_TO_DETECTOR_MM / SOURCE_TO_AXIS_MM
    if not radius < a < s - radius:
        raise InputError(
            f"source at {a:.4g} mm and detector at {s - a:.4g} mm from the axis do not clear the volume, "
            f"which reaches {radius:.4g} mm from it",
            where="source_to_axis_mm, source_to_detector_mm",
            fix=f"a source-to-axis distance above {2 * radius:.0f} mm and a source-to-detector distance twice that",
        )
    return a, s


def _half_width(options: CtScanOptions, radius: float, a: float, s: float) -> float:
    """Half the width (mm) of a detector that sees the circle of `radius`."""
    if options.beam == "parallel":
        return radius
    angle = math.asin(radius / a)
    return s * (angle if options.detector == "arc" else math.tan(angle))


def _check(options: CtScanOptions) -> None:
    fan = options.beam != "parallel"
    if options.beam not in ("parallel", "fan", "cone"):
        raise InputError(f"a scan has a parallel, a fan or a cone beam, got '{options.beam}'", where="beam")
    if options.beam != "cone" and (options.rows is not None or options.row_mm is not None or options.offset_mm[0]):
        raise InputError(
            f"in a {options.beam} beam every slice is one detector row",
            where="rows, row_mm, offset_mm",
            fix="leave them out, or choose a cone beam",
        )
    if not fan and options.detector == "arc":
        raise InputError("a parallel beam has no arc detector", where="detector", fix="choose a flat one or a fan")
    if not fan and (options.source_to_axis_mm is not None or options.source_to_detector_mm is not None):
        raise InputError("a parallel beam has no source distances", fix="leave them out, or choose a fan beam")
    if options.photons is not None and options.noise_percent is not None:
        raise InputError("noise comes from photons or in percent, not both", fix="give one of them")
    for name in ("views", "bins", "rows", "subrays"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}", where=name)
    for name in ("bin_mm", "row_mm", "source_to_axis_mm", "source_to_detector_mm"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be positive, got {value}", where=name)
    if len(options.offset_mm) != 2 or not all(math.isfinite(mm) for mm in options.offset_mm):
        raise InputError(f"a detector's offset is two finite numbers in mm, got {options.offset_mm}", where="offset_mm")
    if options.arc_deg is not None and not 0 < options.arc_deg <= 360:
        raise InputError(f"an arc is above 0 and up to 360 degrees, got {options.arc_deg}", where="arc_deg")


def with_noise(exact: Float[Tensor, "views rows bins"], options: CtScanOptions) -> tuple[Tensor, Noise]:
    """Line integrals with the noise that the options ask for, and its model."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.photons is not None:
        noisy, _ = poisson_noise(exact, options.photons, generator)
        return noisy, Noise("poisson", options.photons)
    if options.noise_percent:
        sigma = sigma_of_percent(exact, options.noise_percent)
        return gaussian_noise(exact, sigma, generator), Noise("gaussian", sigma)
    return exact, Noise("none")
