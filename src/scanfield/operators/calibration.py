"""Coil sensitivities from the scan itself: its low frequencies as coil images, then adaptive combination.

The centre of k-space of all views together, whatever their frames, is weighted by its density and a Hann window, so
that little aliases and nothing rings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.operators.coils import combine, estimate_sensitivities
from scanfield.operators.density import density_weights
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.space.grid import Grid

WIDTH = 24
"""Width of the window, in frequencies of the field of view; half of it is the resolution of the coil images."""


def low_resolution_images(kspace: KSpace, grid: Grid, width: int = WIDTH) -> Complex[Tensor, "coils n0 n1 n2"]:
    """Images of the single coils from the frequencies |k_a| < width / (2 FOV_a) of all views.

    Raises:
        InputError: no sample lies there.
    """
    geometry = replace(kspace.acquisition, frame=None, frames=None)
    volume = geometry.volume
    place = geometry.trajectory * np.asarray(volume.shape) * np.asarray(volume.spacing_mm) / (width / 2)
    window = np.where(np.abs(place) < 1, (1 + np.cos(np.pi * place)) / 2, 0.0).prod(axis=-1)
    if not window.any():
        raise InputError(f"no sample lies in the {width} lowest frequencies, sensitivities cannot be estimated")
    weights = density_weights(geometry) * torch.from_numpy(window).float()
    views = np.flatnonzero(window.any(axis=1))
    chosen = geometry.subset(views)
    unseen = torch.ones(geometry.coils, *grid.shape, dtype=torch.complex64)
    operator = KSpaceEncoding(chosen, grid, unseen)
    values = kspace.values.cpu()[torch.from_numpy(views)] * weights[torch.from_numpy(views)][:, None]
    return operator.coil_adjoint(values)[0]


def mean_image(
    kspace: KSpace, grid: Grid, sensitivities: Complex[Tensor, "coils n0 n1 n2"]
) -> Complex[Tensor, "n0 n1 n2"]:
    """The density-compensated adjoint of all views together, whatever their frames: what stands still."""
    geometry = replace(kspace.acquisition, frame=None, frames=None)
    maps = sensitivities.to(kspace.values.device)
    weighted = kspace.values * density_weights(geometry)[:, None].to(maps.device)
    return combine(KSpaceEncoding(geometry, grid, maps, device=maps.device).coil_adjoint(weighted), maps)[0]


def sensitivities_on(kspace: KSpace, grid: Grid) -> Complex[Tensor, "coils n0 n1 n2"]:
    """The scan's own sensitivities where `grid` is its volume, else estimated ones.

    Raises:
        InputError: the scan has sensitivities, but on another grid; or no sample lies at low frequencies.
    """
    if kspace.sensitivities is not None:
        grid.check_same(
            kspace.acquisition.volume, mine="grid", theirs="sensitivities", fix="reconstruct on the scan's own grid"
        )
        return kspace.sensitivities
    return estimate_sensitivities(low_resolution_images(kspace, grid))
