"""Interpolate the sinogram in angle, then filtered backprojection: the rival of every view-synthesis method."""

from __future__ import annotations

from math import ceil
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.views import interpolate_views
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry


def reconstruct(
    measurement: Measurement[ProjectionGeometry],
    grid: Grid,
    *,
    kind: Literal["linear", "cubic"] = "linear",
    views: int = 720,
) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm from at least `views` views, interpolated between the measured ones, which are kept."""
    factor = max(1, ceil(views / measurement.acquisition.views))
    dense = interpolate_views(measurement, factor, kind=kind)
    return filtered_backprojection(dense.values, dense.acquisition, grid)
