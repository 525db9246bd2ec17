"""The classical rivals of a CT reconstruction, on the same measurement and the same grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from scanfield.baselines import fbp, interpolation, iterative, tv
from scanfield.data.measurement import Measurement
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry


@dataclass(frozen=True)
class Baseline:
    """A rival: `reconstruct(measurement, grid)` gives attenuation in 1/mm, (n0, n1, n2).

    Args:
        label: short name for tables.
        note: what it is, in one sentence.
        fast: direct, in seconds; the others iterate.
        beams: the beams it takes.
        reconstruct: the rival itself; raises `InputError` for a scan it cannot take.
    """

    label: str
    note: str
    fast: bool
    beams: tuple[str, ...]
    reconstruct: Callable[[Measurement[ProjectionGeometry], Grid], Tensor]


CIRCULAR = ("parallel", "fan")
EVERY = ("parallel", "fan", "cone")

BASELINES: dict[str, Baseline] = {
    "fbp": Baseline(
        "FBP", "Filtered backprojection of the measured views with the plain ramp.", True, CIRCULAR, fbp.reconstruct
    ),
    "linear-fbp": Baseline(
        "linear + FBP",
        "Sinogram interpolated linearly in angle to at least 720 views, then filtered backprojection.",
        True,
        CIRCULAR,
        partial(interpolation.reconstruct, kind="linear"),
    ),
    "cubic-fbp": Baseline(
        "cubic + FBP",
        "Sinogram interpolated by cubic splines in angle to at least 720 views, then filtered backprojection.",
        True,
        CIRCULAR,
        partial(interpolation.reconstruct, kind="cubic"),
    ),
    "sirt": Baseline(
        "SIRT",
        "Simultaneous iterations, non-negative, stopped at the noise where known or after 100.",
        False,
        EVERY,
        lambda measurement, grid: iterative.sirt(measurement, grid).volume,
    ),
    "sart": Baseline(
        "SART",
        "Algebraic reconstruction view by view, non-negative, stopped at the noise where known or after 10 sweeps.",
        False,
        EVERY,
        lambda measurement, grid: iterative.sart(measurement, grid).volume,
    ),
    "cgls": Baseline(
        "CGLS",
        "Least squares by conjugate gradients, stopped at the noise where known or after 10 iterations.",
        False,
        EVERY,
        lambda measurement, grid: iterative.cgls(measurement, grid).volume,
    ),
    "tv": Baseline(
        "TV",
        "Least squares with total variation and non-negativity, its weight chosen on held-out views.",
        False,
        EVERY,
        tv.reconstruct,
    ),
}
