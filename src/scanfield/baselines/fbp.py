"""Filtered backprojection as a rival; see `operators.fbp`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.operators.fbp import Window, filtered_backprojection
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry


def reconstruct(
    measurement: Measurement[ProjectionGeometry], grid: Grid, *, window: Window = "ram-lak"
) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm by filtered backprojection of the measured views."""
    return filtered_backprojection(measurement.values, measurement.acquisition, grid, window=window)
