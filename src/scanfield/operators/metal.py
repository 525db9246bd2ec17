"""Metal in a CT scan: where it is, and which rays meet it."""

from __future__ import annotations

import math
from dataclasses import replace

from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.fov import field_of_view
from scanfield.operators.siddon import project_voxels
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

METAL_PER_MM = 0.07
"""Attenuation above which a voxel of a first reconstruction counts as metal: 2600 HU, denser than enamel's mean."""
MOST_STARVED = 0.5
"""Share of the metal trace without photons above which there is nothing to reconstruct from."""


def metal_mask(mask: Scan, measurement: Measurement[ProjectionGeometry]) -> Scan:
    """A given mask, checked against the scan it is for.

    Args:
        mask: voxels that are not zero are metal; on the scan's grid, or on any grid of the same size and place.

    Raises:
        InputError: several channels, another grid than the scan's, empty, or outside the field of view.
    """
    grid = measurement.acquisition.volume
    if mask.values.ndim != 3:
        raise InputError(f"a metal mask has one channel, got shape {tuple(mask.values.shape)}", where=mask.source)
    if not mask.grid.same_as(grid):
        raise InputError(
            f"the metal mask lies on another grid ({'x'.join(map(str, mask.grid.shape))}) than the scan asks for "
            f"({'x'.join(map(str, grid.shape))})",
            where=mask.source,
            fix="draw it on a first reconstruction of this scan",
        )
    metal = mask.values != 0
    if not bool(metal.any()):
        raise InputError("the metal mask is empty", where=mask.source, fix="leave it out where there is no metal")
    if not bool((metal & field_of_view(measurement.acquisition, grid)).any()):
        raise InputError(
            "the metal mask lies outside the field of view: no ray of every view meets it",
            where=mask.source,
            fix="check the mask's affine, or the scan's geometry",
        )
    return replace(mask, values=metal)


def segment_metal(measurement: Measurement[ProjectionGeometry], threshold_per_mm: float = METAL_PER_MM) -> Scan:
    """Metal as what a smooth filtered backprojection shows above a threshold inside the field of view.

    Returns:
        The mask on the scan's grid; it may be empty.
    """
    grid = measurement.acquisition.volume
    image = filtered_backprojection(measurement.values, measurement.acquisition, grid, window="hann")
    metal = (image > threshold_per_mm) & field_of_view(measurement.acquisition, grid)
    return Scan(metal, grid, unit="1", source=measurement.source)


def starved_rays(measurement: Measurement[ProjectionGeometry], metal: Scan | None) -> int:
    """How many rays counted no photon, or a single one; zero where the number of photons in air is not known.

    Raises:
        InputError: more than half of the rays through the metal are among them: they only say 'at least so much'.
    """
    if measurement.noise.kind != "poisson":
        return 0
    starved = measurement.values >= math.log(measurement.noise.level) - 1e-6
    if metal is not None and bool(metal.values.any()):
        trace = metal_trace(metal.values, metal.grid, measurement.acquisition)
        share = float(starved[trace].float().mean())
        if share > MOST_STARVED:
            raise InputError(
                f"the projections are saturated: {100 * share:.0f} % of the rays through the metal counted no photon",
                where=measurement.source,
                fix="scan with more photons or a harder spectrum",
            )
    return int(starved.sum())


def metal_trace(
    metal: Bool[Tensor, "n0 n1 n2"], grid: Grid, geometry: ProjectionGeometry
) -> Bool[Tensor, "views rows columns"]:
    """The rays that run through metal voxels for more than a hundredth of a voxel, and their neighbours in the row."""
    length: Float[Tensor, "views rows columns"] = project_voxels(metal.float(), grid, geometry)
    met = length > 1e-2 * min(grid.spacing_mm)
    grown = met.clone()
    grown[..., 1:] |= met[..., :-1]
    grown[..., :-1] |= met[..., 1:]
    return grown
