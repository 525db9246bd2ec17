"""Filtered backprojection for parallel and fan beams, in absolute units.

A. C. Kak, M. Slaney, Principles of Computerized Tomographic Imaging, 1988, chapter 3. With p the line integrals, h the
band-limited ramp and R the distance from source to axis,

    parallel    mu(x) = sum_theta w  (h * p)(s)                                    s = x . u
    fan, flat   mu(x) = sum_theta w (R / l)^2 (h * p cos g)(s)                     s on the detector scaled to the axis
    fan, arc    mu(x) = sum_theta w (1 / l)^2 (h_arc * p R cos g)(g)               h_arc = (g / sin g)^2 h

with l the distance of x from the source (along the central ray, or to x itself for the arc). The weight w is the angle
each view stands for times the share of its ray among all that measured the same line (`ray_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from scanfield.errors import InputError
from scanfield.operators.pixels import detector_pixels
from scanfield.operators.voxel_rays import stacked_rows
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

Window = Literal["ram-lak", "shepp-logan", "cosine", "hann"]
WEDGE = 4.0
"""A gap between neighbouring views this many times wider than usual is taken for a missing wedge."""
WOBBLE = 0.05
"""How far a cone beam's circle may be from a perfect one: in radians of tilt, and relative to its distances."""
SAMPLES_PER_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Coverage:
    """The part of the circle that views cover.

    Args:
        weight: (V,) the angle in radians each view stands for.
        start_deg, extent_deg: the covered interval; its ends lie half a gap beyond the outermost views.
        closed: whether the views go all the way round.
    """

    weight: np.ndarray
    start_deg: float
    extent_deg: float
    closed: bool


def coverage(angles_deg: np.ndarray, period_deg: float) -> Coverage:
    """Angular weights of views in any order and spacing: half the gaps to both neighbours modulo `period_deg`.

    Views at the same angle share it. The widest gap is a missing wedge if it is more than `WEDGE` times the median of
    the others, or half a turn of 360 degrees; the views next to it then count half of their other gap on its side.
    """
    folded = np.mod(np.asarray(angles_deg, dtype=np.float64), period_deg)
    folded[period_deg - folded < 1e-6] = 0.0
    order = np.argsort(folded, kind="stable")
    after = np.diff(np.append(folded[order], folded[order[0]] + period_deg))
    widest = int(after.argmax())
    others = np.delete(after, widest)
    others = others[others > 1e-6]
    closed = len(others) == 0 or (after[widest] <= WEDGE * np.median(others) and after[widest] < 180 - 1e-6)
    before = np.roll(after, 1)
    first = (widest + 1) % len(after)
    start = float(folded[order[first]])
    if not closed:
        usual = float(np.median(others))
        before[first] = after[first] if after[first] > 1e-6 else usual
        after[widest] = before[widest] if before[widest] > 1e-6 else usual
        start -= before[first] / 2
    gap = (before + after) / 2
    weight = np.empty_like(gap)
    weight[order] = np.deg2rad(gap)
    return Coverage(weight, float(start), float(gap.sum()), bool(closed))


@dataclass(frozen=True, eq=False)
class CircularScan:
    """What filtered backprojection needs of a scan, per view: everything in mm and degrees, gantry frame.

    Args:
        angles_deg: (V,) direction of the detector's columns about +z.
        step: detector column spacing scaled to the axis (mm), or in radians for an arc.
        place: (V, C) position of each column on the axis-scaled detector (mm), or fan angle in radians for an arc.
        fan_angle: (V, C) radians from the central ray; zero for a parallel beam.
        source_to_axis_mm: (V,); zero for a parallel beam.
    """

    angles_deg: np.ndarray
    step: float
    place: np.ndarray
    fan_angle: np.ndarray
    source_to_axis_mm: np.ndarray


def circular_scan(geometry: ProjectionGeometry) -> CircularScan:
    """The circular trajectory behind a scan, from its per-view vectors.

    A cone beam may wobble as a C-arm does (see `WOBBLE`): its backprojection follows the vectors themselves, and only
    the filter takes the circle for granted.

    Raises:
        InputError: the vectors are not those of a circular scan about the gantry's z axis.
    """
    wobble = WOBBLE if geometry.beam == "cone" else 0.0
    vectors = geometry.view_vectors()
    columns = geometry.detector.shape[1]
    u_mm, v_mm = np.linalg.norm(vectors.u, axis=1), np.linalg.norm(vectors.v, axis=1)
    u = vectors.u / u_mm[:, None]
    d = np.stack([-u[:, 1], u[:, 0], np.zeros(len(u))], axis=1)
    across = np.arange(columns) - (columns - 1) / 2
    problem = ""
    along, climb_mm = vectors.centre, 1e-2 * v_mm.min()
    if geometry.beam == "cone":
        along, climb_mm = vectors.source, 1e-2 * np.linalg.norm(vectors.centre - vectors.source, axis=1).min()
    if max(np.abs(u[:, 2]).max(), np.abs(vectors.v[:, :2] / v_mm[:, None]).max()) > max(1e-3, wobble):
        problem = "the detector is tilted against the axis of rotation"
    elif np.ptp(along[:, 2]) > climb_mm:
        problem = "the detector moves along the axis of rotation"
    elif geometry.detector.kind == "flat" and np.ptp(u_mm) > 1e-3 * u_mm.mean():
        problem = "the pixel size changes between views"
    angles = np.rad2deg(np.arctan2(u[:, 1], u[:, 0]))
    if geometry.beam == "parallel":
        distance = np.zeros(len(u))
        place = across * u_mm[:, None] + (vectors.centre * u).sum(axis=1)[:, None]
        step, fan_angle = float(u_mm.mean()), np.zeros_like(place)
    else:
        distance = -(vectors.source * d).sum(axis=1)
        detector = ((vectors.centre - vectors.source) * d).sum(axis=1)
        lateral = (vectors.source * u).sum(axis=1)
        if distance.min() <= 0 or detector.min() <= 0 or np.abs(lateral).max() > max(0.02, wobble) * distance.min():
            problem = problem or "the source does not face the detector across the axis of rotation"
        elif max(np.ptp(distance) / distance.mean(), np.ptp(detector) / detector.mean()) > max(0.01, wobble):
            percent = 100 * max(0.01, wobble)
            problem = problem or f"the distances of source and detector change between views by more than {percent:g} %"
        if geometry.detector.kind == "arc":
            step = float(np.deg2rad(geometry.detector.spacing[1]))
            offset = np.deg2rad(geometry.detector.offset[1])
            place = fan_angle = np.broadcast_to(across * step + offset, (len(u), columns))
        else:
            on_detector = across * u_mm[:, None] + ((vectors.centre - vectors.source) * u).sum(axis=1)[:, None]
            place = on_detector * (distance / detector)[:, None]
            step = float((u_mm * distance / detector).mean())
            fan_angle = np.arctan(on_detector / detector[:, None])
    if problem:
        raise InputError(
            f"filtered backprojection needs a circular scan, but {problem}",
            where="geometry",
            fix="use an iterative baseline (sirt, cgls, tv), which take any vectors",
        )
    return CircularScan(angles, step, place, fan_angle, distance)


def ray_weights(scan: CircularScan, *, parallel: bool) -> Float[np.ndarray, "views columns"]:
    """Radians each ray stands for: its view's angle times its share among the rays that measured the same line.

    The conjugate of ray (theta, g) is (theta + 180 - 2 g, -g); a line measured twice is shared in proportion to
    c(theta, g), a coverage that falls smoothly to zero at the ends of the arc and of the detector:
    w = c / (c + c_conjugate) (F. Noo et al., Phys. Med. Biol. 47:2525-2546, 2002, equation 32). It serves full, short
    (Parker) and longer scans, and detectors displaced for a larger field of view, alike. A parallel scan with a
    centred detector needs no such care: its views are folded to half a turn.
    """
    views, columns = scan.place.shape
    turn = coverage(scan.angles_deg, 360.0)
    low = scan.place.min(axis=1, keepdims=True) - scan.step / 2
    high = scan.place.max(axis=1, keepdims=True) + scan.step / 2
    if parallel and not (turn.closed and np.abs(high + low).max() > scan.step):
        return np.broadcast_to(coverage(scan.angles_deg, 180.0).weight[:, None], (views, columns))

    ramp_deg = float(np.clip(turn.extent_deg - 180.0, 10.0, 60.0))

    def covered(angle_deg: np.ndarray, place: np.ndarray) -> np.ndarray:
        edge = np.minimum(place - low, high - place) / (0.1 * (high - low))
        share = _smooth_step(edge)
        if not turn.closed:
            into = np.mod(angle_deg - turn.start_deg + 1e-6, 360.0)
            share = share * _smooth_step(np.minimum(into, turn.extent_deg - into) / ramp_deg)
        return share

    angle = np.broadcast_to(scan.angles_deg[:, None], scan.place.shape)
    own = covered(angle, scan.place)
    conjugate = covered(angle + 180.0 - 2 * np.rad2deg(scan.fan_angle), -scan.place)
    return turn.weight[:, None] * own / (own + conjugate)


def columns_beyond(geometry: ProjectionGeometry, grid: Grid) -> tuple[int, int]:
    """Columns by which a grid's box projects (below, above) the detector, at most one detector width each.

    A filtered projection does not end where the detector does: its tails are needed for voxels that some views miss,
    and on a displaced detector that is half of them.
    """
    columns = geometry.detector.shape[1]
    reach = detector_pixels(geometry, torch.tensor(grid.corners_mm())).column
    below, above = -float(reach.min()), float(reach.max()) - (columns - 1)
    return int(np.clip(np.ceil(below), 0, columns)), int(np.clip(np.ceil(above), 0, columns))


def filtered_backprojection(
    projections: Float[Tensor, "views rows columns"],
    geometry: ProjectionGeometry,
    grid: Grid,
    *,
    window: Window = "ram-lak",
) -> Float[Tensor, "n0 n1 n2"]:
    """Reconstructs attenuation (1/mm) from line integrals; see the module for the equations.

    Args:
        projections: line integrals, dimensionless, in the geometry's shape.
        geometry: a circular parallel or fan scan, of full, half or partial turn, with equal or unequal angles.
        grid: where to reconstruct, with any affine. Voxels beyond the detector's rows are zero.
        window: what damps the ramp towards the Nyquist frequency; 'ram-lak' does not.

    Raises:
        InputError: a cone beam, a trajectory that is not circular, or no voxel within the detector's rows.
    """
    if geometry.beam == "cone":
        raise InputError(
            "filtered backprojection takes parallel and fan beams",
            where="geometry.type",
            fix="use 'fdk' for a cone beam, or an iterative baseline (sirt, cgls, tv), which take every beam",
        )
    if tuple(projections.shape) != geometry.shape:
        raise InputError(f"the projections have shape {tuple(projections.shape)}, their geometry {geometry.shape}")
    scan = circular_scan(geometry)
    scale = ray_weights(scan, parallel=geometry.beam == "parallel") * np.cos(scan.fan_angle)
    arc = geometry.detector.kind == "arc"
    if arc:
        scale = scale * scan.source_to_axis_mm[:, None]
    weighted = projections * torch.tensor(scale).to(projections)[:, None, :]
    below, above = columns_beyond(geometry, grid)
    filtered = ramp_filtered(pad(weighted, (below, above)), scan.step, window, arc=arc)
    reference_mm = np.ones(geometry.views) if arc else scan.source_to_axis_mm
    return _backproject(filtered, below, geometry, grid, torch.tensor(reference_mm).to(projections))


def ramp_filtered(
    values: Float[Tensor, "*n columns"], step: float, window: Window, *, arc: bool
) -> Float[Tensor, "*n columns"]:
    """Convolution with the band-limited ramp (Kak and Slaney, equation 61), zero-padded against wrap-around.

    Args:
        values: weighted rows of the detector.
        step: column spacing on the axis, in mm, or in radians for an arc detector.
        window: what damps the ramp.
        arc: filter in the fan angle, h (g / sin g)^2.
    """
    columns = values.shape[-1]
    length = 2 ** int(np.ceil(np.log2(2 * columns)))
    n = np.minimum(np.arange(length), length - np.arange(length)).astype(np.float64)
    kernel = np.zeros(length)
    odd = n % 2 == 1
    kernel[odd] = -1 / (np.pi * n[odd] * step) ** 2
    kernel[0] = 1 / (4 * step**2)
    if arc:
        angle = np.where(n < columns, n * step, 0.0)
        kernel = kernel * np.where(angle > 0, angle / np.sin(np.where(angle > 0, angle, 1.0)), 1.0) ** 2
    frequency = np.arange(length // 2 + 1) / (length // 2)
    damping = {
        "ram-lak": np.ones_like(frequency),
        "shepp-logan": np.sinc(frequency / 2),
        "cosine": np.cos(np.pi * frequency / 2),
        "hann": (1 + np.cos(np.pi * frequency)) / 2,
    }[window]
    response = torch.tensor(np.fft.rfft(kernel).real * damping * step).to(values)
    return torch.fft.irfft(torch.fft.rfft(values, length) * response, length)[..., :columns]


def _backproject(
    filtered: Tensor, first_column: int, geometry: ProjectionGeometry, grid: Grid, reference_mm: Tensor
) -> Tensor:
    """Sum over views of the filtered rows, read bilinearly where each voxel projects, times (reference / distance)^2.

    The detector's column 0 is at `first_column` of the (padded) filtered rows.
    If rays run within slices, one slice's positions serve all rows, which are read together as channels.
    """
    _, rows, _ = filtered.shape
    stack = stacked_rows(geometry, grid)
    index = torch.arange(grid.size)
    if stack is not None:
        index = index.reshape(grid.shape).select(stack.axis, 0).reshape(-1)
        slice_rows = _row_weights(stack.position, grid.shape[stack.axis]).to(filtered)
        if not bool(slice_rows.any()):
            raise InputError("no slice of the grid lies within the detector's rows", where="geometry.detector")
    points = grid.points()[index].to(filtered)
    channels = rows if stack is not None else 1
    total = filtered.new_zeros(channels, len(index))
    size = max(1, SAMPLES_PER_CHUNK // (len(index) * max(3, channels)))
    for start in range(0, geometry.views, size):
        views = np.arange(start, min(start + size, geometry.views))
        pixels = detector_pixels(geometry.subset(views), points)
        row = torch.zeros_like(pixels.row) if stack is not None else pixels.row
        image = filtered[views][:, None] if stack is None else filtered[views][:, :, None]
        values = read_bilinear(image, row, pixels.column + first_column)
        if geometry.beam == "fan":
            values = values * ((reference_mm[views, None] / pixels.distance_mm) ** 2)[:, None]
        if stack is None:
            values = values * ((pixels.row >= -0.5) & (pixels.row <= rows - 0.5))[:, None]
        total += values.sum(dim=0)
    if stack is None:
        return total.reshape(grid.shape)
    plane = [n for a, n in enumerate(grid.shape) if a != stack.axis]
    return (slice_rows @ total).reshape(-1, *plane).movedim(0, stack.axis).contiguous()


def read_bilinear(
    images: Float[Tensor, "views channels rows columns"],
    row: Float[Tensor, "views n"],
    column: Float[Tensor, "views n"],
) -> Float[Tensor, "views channels n"]:
    """Images at fractional pixels: zero beyond the columns, the outermost row beyond the rows."""
    rows, columns = images.shape[2:]
    x = column * (2 / max(columns - 1, 1)) - 1
    y = row.clamp(0, rows - 1) * (2 / max(rows - 1, 1)) - 1
    return grid_sample(images, torch.stack([x, y], dim=-1)[:, None], align_corners=True)[:, :, 0]


def _row_weights(position: np.ndarray, slices: int) -> Float[Tensor, "slices rows"]:
    """What each detector row contributes to each slice: linear between rows, constant for half a pixel beyond."""
    rows = len(position)
    pitch = position[1] - position[0] if rows > 1 else 1.0
    row = (np.arange(slices) - position[0]) / pitch
    hat = np.maximum(0.0, 1.0 - np.abs(np.clip(row, 0, rows - 1)[:, None] - np.arange(rows)))
    return torch.tensor(hat * ((row >= -0.5 - 1e-3) & (row <= rows - 0.5 + 1e-3))[:, None])


def _smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below zero, 1 above one, sin^2 between."""
    return np.asarray(np.sin(np.pi / 2 * np.clip(x, 0.0, 1.0)) ** 2)
