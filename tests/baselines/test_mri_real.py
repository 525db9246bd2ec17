"""Raw data of scanners: the classical rivals give the expected picture, judged against all of the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.baselines.mri import cg_sense, gridding
from scanfield.data.rawmri import KSpace, centred_volume
from scanfield.operators.calibration import sensitivities_on
from scanfield.operators.coils import root_sum_of_squares
from scanfield.operators.fourier import centred_ifft
from scanfield.operators.trajectories import cartesian, random_lines
from scanfield.space.kspace import KSpaceGeometry

pytest.importorskip("finufft")
pytestmark = pytest.mark.data


def arrays(folder, name):
    with np.load(folder / "kspace" / name) as file:
        return {key: file[key] for key in file.files}


def scan(values, trajectory, matrix):
    """`values` (coils, views, samples); `trajectory` in cycles per voxel, two columns; 1 mm voxels."""
    k = np.zeros((*trajectory.shape[:2], 3))
    k[..., :2] = trajectory
    views = torch.from_numpy(np.ascontiguousarray(values.transpose(1, 0, 2)))
    kspace = KSpace(views, KSpaceGeometry(k, len(values), centred_volume(matrix, matrix)))
    return replace(kspace, sensitivities=sensitivities_on(kspace, kspace.acquisition.volume))


def error(found, truth):
    """NRMSE of the magnitude after the best common factor: the data have no unit."""
    found = found.abs()
    return float(((found * truth).sum() / (found * found).sum() * found - truth).norm() / truth.norm())


def test_cartesian_brain_of_a_third_of_the_lines(development_data):
    values = arrays(development_data, "brain_8ch_cart.npz")["ksp"]
    truth = root_sum_of_squares(centred_ifft(torch.from_numpy(values)[..., None]))
    volume = centred_volume((230, 180), (230, 180))
    lines = random_lines(180, 60, np.random.default_rng(0))
    views = torch.from_numpy(np.ascontiguousarray(values[:, :, lines].transpose(2, 0, 1)))
    kspace = KSpace(views, KSpaceGeometry(cartesian(volume, lines), 8, volume))
    aliased, unfolded = (f(kspace, volume)[0] for f in (gridding, lambda k, g: cg_sense(k, g, iterations=10)))
    assert error(unfolded, truth) < 0.11 < 0.14 < error(aliased, truth) < 0.2


def test_spiral_phantom(development_data):
    held = arrays(development_data, "phantom_8ch_spiral.npz")
    kspace = scan(held["ksp"], held["traj"], (240, 240))
    volume = kspace.acquisition.volume
    truth = cg_sense(kspace, volume, iterations=10)[0].abs()
    assert error(gridding(kspace, volume)[0], truth) < 0.09
    half = kspace.subset(np.arange(0, 60, 2))
    unfolded, aliased = cg_sense(half, volume, iterations=10)[0], gridding(half, volume)[0]
    assert error(unfolded, truth) < 0.1 < 0.11 < error(aliased, truth)


def test_radial_phantom_of_29_and_69_spokes(development_data):
    """Two scans of one phantom: CG-SENSE of the fewer spokes is nearer to the many than gridding is."""

    def phantom(count):
        values = arrays(development_data, f"radial_sp{count}_top_16ch.npz")["ksp"]
        angle = 2 * np.pi * np.arange(count)[:, None] / count
        radius = (np.arange(384) - 192) / 384
        kspace = scan(values, np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1), (192, 192))
        return kspace, kspace.acquisition.volume

    truth = cg_sense(*phantom(69), iterations=10)[0].abs()
    few = phantom(29)
    assert error(cg_sense(*few, iterations=10)[0], truth) < 0.23 < 0.25 < error(gridding(*few)[0], truth)
