"""The classical rivals of a CT reconstruction, on the same measurement and the same grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from scanfield.baselines import fbp, interpolation, iterative, metal, piccs, tv
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.operators.fdk import feldkamp
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
    "fdk": Baseline(
        "FDK",
        "Filtered backprojection of the measured views of a cone beam (Feldkamp) with the plain ramp.",
        True,
        ("cone",),
        lambda measurement, grid: feldkamp(measurement.values, measurement.acquisition, grid),
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


def with_prior(prior: Scan) -> dict[str, Baseline]:
    """All rivals of a method that takes a prior: `BASELINES`, and those that take one, too.

    Args:
        prior: attenuation in 1/mm, on any grid.
    """
    text = "TV of the image and of its difference to the prior, weights chosen on held-out views."
    takes = Baseline("PICCS", text, False, EVERY, lambda measurement, grid: piccs.reconstruct(measurement, grid, prior))
    return BASELINES | {"piccs": takes}


def for_metal(measurement: Measurement[ProjectionGeometry]) -> dict[str, Baseline]:
    """The rivals for a scan with a known spectrum or known metal; none for other scans."""
    found = {}
    if measurement.spectrum is not None:
        text = "Filtered backprojection of projections corrected for the hardening by water."
        found["water-fbp"] = Baseline("water-corrected FBP", text, True, CIRCULAR, metal.water_corrected_fbp)
    if measurement.metal is not None:
        text = "The metal trace interpolated linearly along the detector, then filtered backprojection."
        found["li"] = Baseline("LI", text, True, CIRCULAR, metal.linear_interpolation)
        text = "The metal trace interpolated after division by the projections of a prior of air, water and bone."
        found["nmar"] = Baseline("NMAR", text, True, CIRCULAR, metal.nmar)
    return found
