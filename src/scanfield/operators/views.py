"""More views than were measured: dense geometries that contain the measured views, and interpolation in angle.

Dense view `factor * v` is measured view v, exactly, also with unequal angles: every interval between neighbouring views
is divided into `factor` equal parts. A scan that closes (half a turn in a parallel beam, a full turn in any) has an
interval between its last view and the repeated first one, so it gives `factor * V` views; an open scan gives
`factor * (V - 1) + 1`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from scipy.ndimage import shift

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError
from scanfield.space.projection import ProjectionGeometry

WRAPPED_VIEWS = 6
"""Views repeated beyond each end of a closed scan; a cubic spline forgets its ends by a factor 4 per view."""


def closing_deg(geometry: ProjectionGeometry) -> float | None:
    """After which turn the views repeat: 180 (parallel beam, mirrored) or 360 degrees, or None for an open scan.

    A scan closes if the step from its last view to the repeated first one is at most twice its usual step.

    Raises:
        InputError: fewer than two views, or angles that neither rise nor fall throughout.
    """
    steps = np.diff(geometry.angles_deg)
    if len(steps) == 0 or not ((steps > 0).all() or (steps < 0).all()):
        raise InputError(
            "dense views need at least two views in the order of their angles, rising or falling",
            where="geometry.angles_deg",
            fix="sort the views by angle and merge repeated ones",
        )
    swept, usual = float(np.abs(steps).sum()), float(np.median(np.abs(steps)))
    for turn in (180.0, 360.0) if geometry.beam == "parallel" else (360.0,):
        if 0 < turn - swept <= 2 * usual + 1e-6:
            return turn
    return None


def dense_geometry(geometry: ProjectionGeometry, factor: int) -> ProjectionGeometry:
    """The scan with every interval between views divided into `factor`; acquisition times are dropped.

    Raises:
        InputError: a factor below 1, per-view vectors, or angles out of order.
    """
    if factor < 1:
        raise InputError(f"the number of dense views per measured view must be at least 1, got {factor}")
    if geometry.vectors is not None:
        raise InputError("dense views need a circular scan given by its angles, not by per-view vectors")
    turn = closing_deg(geometry)
    angles = geometry.angles_deg
    if turn is not None:
        angles = np.append(angles, angles[0] + np.sign(angles[1] - angles[0]) * turn)
    dense = angles[:-1, None] + np.diff(angles)[:, None] * np.arange(factor) / factor
    ends = [] if turn is not None else [angles[-1]]
    return replace(geometry, angles_deg=np.append(dense.reshape(-1), ends), time_s=None)


def interpolate_views(
    measurement: Measurement[ProjectionGeometry], factor: int, *, kind: Literal["linear", "cubic"] = "linear"
) -> Measurement[ProjectionGeometry]:
    """The measurement on `dense_geometry`, interpolated in angle at fixed detector pixels; measured views stay.

    Closed scans are continued beyond their ends: after half a turn of a parallel beam p(theta + 180, s) =
    p(theta, -s), after a full turn the views repeat.
    """
    geometry = measurement.acquisition
    dense = dense_geometry(geometry, factor)
    turn = closing_deg(geometry)
    angles, values = geometry.angles_deg, measurement.values.double().cpu().numpy()
    if turn is not None:
        forward = np.sign(angles[1] - angles[0]) * turn
        wrapped = min(WRAPPED_VIEWS, len(angles) - 1)
        image = _mirrored(values, geometry) if turn == 180.0 else values
        angles = np.concatenate([angles[-wrapped:] - forward, angles, angles[:wrapped] + forward])
        values = np.concatenate([image[-wrapped:], values, image[:wrapped]])
    degree = min({"linear": 1, "cubic": 3}[kind], len(angles) - 1)
    order = np.argsort(angles)
    spline = make_interp_spline(angles[order], values[order], k=degree, axis=0)
    filled = torch.tensor(spline(dense.angles_deg)).to(measurement.values)
    filled[::factor] = measurement.values
    return replace(measurement, values=filled, acquisition=dense)


def _mirrored(
    values: Float[np.ndarray, "views rows columns"], geometry: ProjectionGeometry
) -> Float[np.ndarray, "views rows columns"]:
    """The views half a turn later: every row read at -s (cubic splines between pixels), zero beyond the detector."""
    pixels = 2 * geometry.detector.offset[1] / geometry.detector.spacing[1]
    return np.asarray(shift(values[..., ::-1], (0, 0, -pixels), order=3, mode="grid-constant"))
