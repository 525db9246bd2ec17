"""What a raw MR scan measures of an image series: coil sensitivities, then the Fourier transform along the trajectory.

    y[v, c, j] = scale sum_i S_c(x_i) m_f(v)(x_i) exp(-2 pi i k_vj . (x_i - x0))      (notation of `space.kspace`)

on any grid, finer ones included: scale = (voxel volume / that of the scan's own volume) / sqrt(N), so that a finer
grid approaches the integral that the scan's own grid approximates.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from scanfield.errors import InputError
from scanfield.operators.nufft import nufft, nufft_adjoint
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry


@final
class KSpaceEncoding:
    """The linear map from an image series to k-space, and its exact adjoint; differentiable to any order.

    Args:
        geometry: the scan; its `frame` says which image of the series every view sees.
        grid: the voxels of the images.
        sensitivities: on `grid`; None for a single coil that sees everything alike.
        device: where the maps live and the results are returned.

    Raises:
        InputError: the sensitivities fit neither the grid nor the scan, or the grid's voxels are too large for the
            trajectory.
    """

    def __init__(
        self,
        geometry: KSpaceGeometry,
        grid: Grid,
        sensitivities: Complex[Tensor, "coils n0 n1 n2"] | None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if sensitivities is None:
            if geometry.coils != 1:
                raise InputError(
                    f"a scan with {geometry.coils} coils needs their sensitivities",
                    fix="add 'sensitivities' to the file, or estimate them",
                )
            sensitivities = torch.ones(1, *grid.shape, dtype=torch.complex64)
        if tuple(sensitivities.shape) != (geometry.coils, *grid.shape):
            raise InputError(
                f"sensitivities of shape {tuple(sensitivities.shape)} do not fit {geometry.coils} coils on a grid of "
                f"shape {grid.shape}",
                where="sensitivities",
            )
        self.geometry, self.grid = geometry, grid
        self.sensitivities = sensitivities.to(device)
        k = geometry.world_trajectory()
        frequency = 2 * np.pi * k @ grid.affine[:3, :3]
        frequency[..., np.asarray(grid.shape) == 1] = 0.0
        if np.abs(frequency).max() > np.pi * (1 + 2e-3):
            raise InputError(
                "the grid's voxels are larger than the scan resolves: its frequencies would be taken for lower ones",
                fix="choose the scan's own grid or a finer one",
            )
        middle = grid.affine[:3, :3] @ (np.asarray(grid.shape) // 2) + grid.affine[:3, 3]
        shift = -2 * np.pi * k @ (middle - geometry.phase_centre_mm())
        scale = grid.voxel_volume_mm3 / geometry.volume.voxel_volume_mm3 / math.sqrt(geometry.volume.size)
        complex_type = sensitivities.dtype
        self._frequency = torch.from_numpy(frequency).to(device, sensitivities.real.dtype)
        self._factor = (scale * torch.exp(1j * torch.from_numpy(shift))).to(device, complex_type)
        views = [np.flatnonzero(geometry.frame_of_view == f) for f in range(geometry.frame_count)]
        self._views = [torch.from_numpy(v).to(device) for v in views]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the k-space: (views, coils, samples)."""
        return self.geometry.shape

    @property
    def series_shape(self) -> tuple[int, int, int, int]:
        """Shape of the images: (frames, n0, n1, n2)."""
        return (self.geometry.frame_count, *self.grid.shape)

    def apply(self, series: Complex[Tensor, "frames n0 n1 n2"]) -> Complex[Tensor, "views coils samples"]:
        """y = A m."""
        if tuple(series.shape) != self.series_shape:
            raise InputError(f"a series of shape {tuple(series.shape)} does not fit {self.series_shape}")
        parts = []
        for image, views in zip(series, self._views, strict=True):
            if len(views):
                along = nufft(self.sensitivities * image, self._frequency[views].flatten(0, 1))
                values = along.unflatten(1, (len(views), -1)).transpose(0, 1)
                parts.append(values * self._factor[views][:, None])
        order = torch.cat(self._views)
        return torch.cat(parts)[torch.argsort(order)]

    def adjoint(self, values: Complex[Tensor, "views coils samples"]) -> Complex[Tensor, "frames n0 n1 n2"]:
        """m = A^H y: not the inverse; frames without views are zero."""
        return (self.coil_adjoint(values) * self.sensitivities.conj()).sum(dim=1)

    def coil_adjoint(self, values: Complex[Tensor, "views coils samples"]) -> Complex[Tensor, "frames coils n0 n1 n2"]:
        """The adjoint of the Fourier part alone: the images of the single coils."""
        if tuple(values.shape) != self.shape:
            raise InputError(f"k-space of shape {tuple(values.shape)} does not fit {self.shape}")
        images = []
        for views in self._views:
            weighted = (values[views] * self._factor[views].conj()[:, None]).transpose(0, 1).flatten(1)
            images.append(nufft_adjoint(weighted, self._frequency[views].flatten(0, 1), self.grid.shape))
        return torch.stack(images)

    def norm(self, iterations: int = 10) -> float:
        """Largest singular value by power iteration from the all-one series; approaches it from below."""
        x = torch.ones(self.series_shape, dtype=self.sensitivities.dtype, device=self.sensitivities.device)
        value = 0.0
        with torch.no_grad():
            for _ in range(iterations):
                x = x / x.norm()
                x = self.adjoint(self.apply(x))
                value = float(x.norm())
        return math.sqrt(value)
