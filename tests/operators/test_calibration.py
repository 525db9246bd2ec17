from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.operators.calibration import low_resolution_images, sensitivities_on
from scanfield.operators.coils import analytic_sensitivities, root_sum_of_squares
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.trajectories import cartesian, golden_angle_radial
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

pytest.importorskip("finufft")
GRID = Grid.centred((32, 28, 1), (4.0, 4.0, 5.0))


def scan(trajectory, coils=5):
    x = GRID.points() / torch.tensor([50.0, 42.0, 1.0])
    inside = (x[:, :2].square().sum(-1) < 1).reshape(GRID.shape)
    maps = analytic_sensitivities(GRID, coils)
    geometry = KSpaceGeometry(trajectory, coils, GRID, frame=np.arange(len(trajectory)) % 2)
    series = torch.stack([inside, 0.9 * inside]).to(torch.complex64)
    return KSpace(KSpaceEncoding(geometry, GRID, maps).apply(series), geometry), maps, inside


@pytest.mark.parametrize("trajectory", [golden_angle_radial(GRID, 60), cartesian(GRID, np.arange(28))])
def test_sensitivities_are_found_from_the_scan_itself(trajectory):
    kspace, maps, inside = scan(trajectory)
    found = sensitivities_on(kspace, GRID)
    overlap = (found.conj() * maps / root_sum_of_squares(maps)).sum(0).abs()[inside]
    assert overlap.mean() > 0.995 and overlap.quantile(0.02) > 0.97


def test_low_resolution_images_show_the_coils_images():
    kspace, maps, inside = scan(golden_angle_radial(GRID, 60))
    found = low_resolution_images(kspace, GRID)
    deep = torch.zeros_like(inside)
    deep[10:22, 9:19] = True
    ratio = (found / (0.95 * maps))[:, deep]
    assert (ratio - 1).abs().max() < 0.1


def test_own_sensitivities_are_used_where_they_are():
    kspace, maps, _ = scan(golden_angle_radial(GRID, 10))
    own = replace(kspace, sensitivities=maps)
    assert sensitivities_on(own, GRID) is maps
    with pytest.raises(InputError, match="not on the same grid"):
        sensitivities_on(own, GRID.resampled((2.0, 2.0, 5.0)))


def test_a_scan_without_low_frequencies():
    kspace, _, _ = scan(cartesian(GRID, np.array([0, 1])))
    with pytest.raises(InputError, match="no sample lies in the 24 lowest"):
        low_resolution_images(kspace, GRID)
