"""Classical corrections of metal and of beam hardening in the projections, each followed by filtered backprojection.

Notation: p projections, T the metal trace (the rays that meet metal). Raw polychromatic projections are first corrected
for the hardening by water, as scanners do; metal is put back as the uncorrected image shows it.

    LI     p inside T interpolated linearly along the detector from its neighbours outside T
           (Kalender, Hebel, Ebersberger, Radiology 164:576-577, 1987)
    NMAR   the same for p / q, times q, with q the projections of a prior: the LI image with air set to zero, soft
           tissue to water, and bone as it is (Meyer, Raupach, Lell, Schmidt, Kachelriess, Med. Phys. 37:5482, 2010)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.materials import attenuation_per_mm
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.data.spectra import REFERENCE_KEV
from scanfield.errors import InputError
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.metal import metal_trace
from scanfield.operators.resample import resample
from scanfield.operators.siddon import project_voxels
from scanfield.operators.spectral import water_equivalent
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

AIR_BELOW, BONE_ABOVE = 0.5, 1.25
"""Of the attenuation of water: what NMAR's prior takes for air (-500 HU) and for bone (250 HU)."""
SMOOTH_VOXELS = 1.0


def corrected(measurement: Measurement[ProjectionGeometry]) -> Measurement[ProjectionGeometry]:
    """Raw polychromatic projections corrected for the hardening by water, at 70 keV; others as they are."""
    spectrum = measurement.spectrum
    if spectrum is None:
        return measurement
    water = attenuation_per_mm("water", np.append(spectrum.energies_kev, REFERENCE_KEV))
    values = water_equivalent(measurement.values, spectrum, water[:-1], float(water[-1]))
    return replace(measurement, values=values, spectrum=None)


def water_corrected_fbp(measurement: Measurement[ProjectionGeometry], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm by filtered backprojection of projections corrected for the hardening by water."""
    return _backproject(corrected(measurement), grid)


def linear_interpolation(measurement: Measurement[ProjectionGeometry], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm by LI; see the module.

    Raises:
        InputError: the measurement has no metal mask.
    """
    measurement = corrected(measurement)
    mask = _mask(measurement)
    trace = metal_trace(mask.values, mask.grid, measurement.acquisition)
    inpainted = replace(measurement, values=interpolate_across(measurement.values, trace))
    return _with_metal(_backproject(inpainted, grid), measurement, grid)


def nmar(
    measurement: Measurement[ProjectionGeometry], grid: Grid, *, mu_water_per_mm: float = MU_WATER_PER_MM
) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm by NMAR; see the module.

    Raises:
        InputError: the measurement has no metal mask.
    """
    measurement = corrected(measurement)
    mask = _mask(measurement)
    geometry = measurement.acquisition
    trace = metal_trace(mask.values, mask.grid, geometry)
    first = _backproject(replace(measurement, values=interpolate_across(measurement.values, trace)), mask.grid)
    prior = tissue_classes(first, mask.values, mu_water_per_mm)
    expected = project_voxels(prior, mask.grid, geometry)
    # Short paths through the prior would blow up what lies outside the body.
    divisor = torch.where(expected > 0.05 * expected.max(), expected, 1.0)
    values = interpolate_across(measurement.values / divisor, trace) * divisor
    values = torch.where(trace, values, measurement.values)
    return _with_metal(_backproject(replace(measurement, values=values), grid), measurement, grid)


def tissue_classes(
    image: Float[Tensor, "n0 n1 n2"], metal: Bool[Tensor, "n0 n1 n2"], mu_water_per_mm: float
) -> Float[Tensor, "n0 n1 n2"]:
    """NMAR's prior: air 0, soft tissue and metal as water, bone as it is; classes from the slightly smoothed image."""
    from scipy.ndimage import gaussian_filter

    sigma = [SMOOTH_VOXELS if n > 1 else 0.0 for n in image.shape]
    smooth = torch.from_numpy(gaussian_filter(image.numpy(), sigma)) / mu_water_per_mm
    prior = torch.where(smooth < AIR_BELOW, 0.0, torch.full_like(image, mu_water_per_mm))
    prior = torch.where(smooth > BONE_ABOVE, image, prior)
    return torch.where(metal, mu_water_per_mm, prior)


def interpolate_across(
    values: Float[Tensor, "views rows columns"], trace: Bool[Tensor, "views rows columns"]
) -> Float[Tensor, "views rows columns"]:
    """The values with those inside the trace interpolated linearly along the columns; constant at the detector's ends.

    A row that is all trace is left as it is.
    """
    filled, inside = values.double().numpy().copy(), trace.numpy()
    columns = np.arange(values.shape[-1])
    for place in zip(*np.nonzero(inside.any(axis=-1) & ~inside.all(axis=-1)), strict=True):
        row, missing = filled[place], inside[place]
        row[missing] = np.interp(columns[missing], columns[~missing], row[~missing])
    return torch.from_numpy(filled).to(values)


def _mask(measurement: Measurement[ProjectionGeometry]) -> Scan:
    if measurement.metal is None:
        raise InputError("a correction of metal needs to know where it is", fix="--metal-mask MASK")
    return measurement.metal


def _backproject(measurement: Measurement[ProjectionGeometry], grid: Grid) -> Tensor:
    return filtered_backprojection(measurement.values, measurement.acquisition, grid)


def _with_metal(image: Tensor, measurement: Measurement[ProjectionGeometry], grid: Grid) -> Tensor:
    """The image with the metal of the uncorrected one."""
    mask = _mask(measurement)
    metal = mask.values if mask.grid.same_as(grid) else resample(mask.values.float(), mask.grid, grid) >= 0.5
    return torch.where(metal, _backproject(measurement, grid), image)
