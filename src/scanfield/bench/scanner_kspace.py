"""Raw data of scanners that several protocols use: still objects, all of the data, no coil maps."""

from __future__ import annotations

import numpy as np
import torch

from scanfield.bench.protocol import data_path
from scanfield.data.rawmri import KSpace, centred_volume
from scanfield.operators.trajectories import cartesian
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry


def brain_lines() -> KSpace:
    """A Cartesian brain slice: 180 lines, 8 coils."""
    with np.load(data_path("kspace/brain_8ch_cart.npz"), allow_pickle=False) as file:
        values = file["ksp"]
    volume = centred_volume((230, 180), (230, 180))
    return _of(values.transpose(2, 0, 1), cartesian(volume, np.arange(180)), volume)


def phantom_spokes() -> KSpace:
    """A radial slice of a phantom: 69 spokes over the full turn, 16 coils, twofold oversampling."""
    with np.load(data_path("kspace/radial_sp69_top_16ch.npz"), allow_pickle=False) as file:
        values = file["ksp"]
    spokes, samples = values.shape[1:]
    angle, radius = 2 * np.pi * np.arange(spokes)[:, None] / spokes, (np.arange(samples) - samples // 2) / samples
    k = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros((spokes, samples))], axis=-1)
    return _of(values.transpose(1, 0, 2), k, centred_volume((192, 192), (192, 192)))


def phantom_spirals() -> KSpace:
    """A spiral slice of another phantom: 60 interleaves, 8 coils. Its pixels are taken as 1 mm."""
    with np.load(data_path("kspace/phantom_8ch_spiral.npz"), allow_pickle=False) as file:
        values, in_plane = file["ksp"], file["traj"].astype(np.float64)  # cycles per pixel
    k = np.concatenate([in_plane, np.zeros_like(in_plane[..., :1])], axis=-1)
    return _of(values.transpose(1, 0, 2), k, centred_volume((240, 240), (240, 240)))


def _of(values: np.ndarray, trajectory: np.ndarray, volume: Grid) -> KSpace:
    geometry = KSpaceGeometry(trajectory, values.shape[1], volume)
    return KSpace(torch.from_numpy(np.ascontiguousarray(values)), geometry)
