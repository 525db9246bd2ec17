"""What a raw MR scan measures of an image series: coil sensitivities, then the Fourier transform along the trajectory.

    y[v, c, j] = scale sum_i S_c(x_i) m_f(v)(x_i) exp(-2 pi i k_vj . (x_i - x0))      (notation of `space.kspace`)

on any grid, finer ones included: scale = (voxel volume / that of the scan's own volume) / sqrt(N), so that a finer
grid approaches the integral that the scan's own grid approximates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from scanfield.errors import InputError
from scanfield.operators.nufft import nufft, nufft_adjoint
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

TOGETHER = 2**24
"""Complex numbers of the coils' images that are transformed at a time, where they are those of several frames."""


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
        self._factor = (scale * torch.exp(1j * torch.from_numpy(shift))).to(device, complex_type)
        waves = torch.from_numpy(frequency).to(device, sensitivities.real.dtype)
        self._groups = [
            (torch.from_numpy(frames).to(device), views, waves[views].flatten(1, 2))
            for frames, views in self._frames_alike(device)
        ]
        seen = torch.cat([frames for frames, _, _ in self._groups])
        unseen = torch.from_numpy(np.setdiff1d(np.arange(geometry.frame_count), geometry.frame_of_view)).to(device)
        self._unseen = len(unseen)
        self._order_of_views = torch.argsort(torch.cat([views.flatten() for _, views, _ in self._groups]))
        self._order_of_frames = torch.argsort(torch.cat([seen, unseen]))

    def _frames_alike(self, device: torch.device | str) -> list[tuple[np.ndarray, Tensor]]:
        """(frames, their views (frames, views)): frames with equally many views are transformed together."""
        frame = self.geometry.frame_of_view
        counts = np.bincount(frame, minlength=self.geometry.frame_count)
        by_frame = np.split(np.argsort(frame, kind="stable"), np.cumsum(counts)[:-1])
        largest = max(1, TOGETHER // (self.geometry.coils * self.grid.size))
        groups = []
        for count in np.unique(counts[counts > 0]):
            alike = np.flatnonzero(counts == count)
            for part in np.split(alike, range(largest, len(alike), largest)):
                views = np.stack([by_frame[f] for f in part])
                groups.append((part, torch.from_numpy(views).to(device)))
        return groups

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
        for frames, views, waves in self._groups:
            along = nufft(series[frames][:, None] * self.sensitivities, waves)
            values = along.unflatten(2, (views.shape[1], -1)).transpose(1, 2)
            parts.append((values * self._factor[views][:, :, None]).flatten(0, 1))
        return torch.cat(parts)[self._order_of_views]

    def adjoint(self, values: Complex[Tensor, "views coils samples"]) -> Complex[Tensor, "frames n0 n1 n2"]:
        """m = A^H y: not the inverse; frames without views are zero."""
        maps = self.sensitivities.conj()
        return self._back(values, lambda images: (images * maps).sum(dim=1))

    def coil_adjoint(self, values: Complex[Tensor, "views coils samples"]) -> Complex[Tensor, "frames coils n0 n1 n2"]:
        """The adjoint of the Fourier part alone: the images of the single coils."""
        return self._back(values, lambda images: images)

    def _back(self, values: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """`finish` of the coils' images (frames, coils, n0, n1, n2), group by group, in the order of the frames."""
        if tuple(values.shape) != self.shape:
            raise InputError(f"k-space of shape {tuple(values.shape)} does not fit {self.shape}")
        parts = []
        for _, views, waves in self._groups:
            weighted = values[views] * self._factor[views].conj()[:, :, None]
            images = nufft_adjoint(weighted.transpose(1, 2).flatten(2), waves, self.grid.shape)
            parts.append(finish(images))
        if self._unseen:
            parts.append(parts[0].new_zeros(self._unseen, *parts[0].shape[1:]))
        return torch.cat(parts)[self._order_of_frames]

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
