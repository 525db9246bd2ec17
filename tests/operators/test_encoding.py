from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.operators.coils import analytic_sensitivities
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.fourier import centred_fft
from scanfield.operators.trajectories import cartesian, golden_angle_radial
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

pytest.importorskip("finufft")
GRID = Grid.centred((12, 10, 1), (2.0, 2.5, 5.0))


def noise(*shape):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def test_a_cartesian_scan_is_the_centred_unitary_transform():
    geometry = KSpaceGeometry(cartesian(GRID, np.array([7, 0, 3])), 3, GRID)
    maps, image = noise(3, *GRID.shape), noise(1, *GRID.shape)
    expected = centred_fft(maps * image[0])[:, :, [7, 0, 3], 0].permute(2, 0, 1)
    found = KSpaceEncoding(geometry, GRID, maps).apply(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_views_see_their_own_frame_in_any_order():
    frame = np.array([2, 0, 2, 0, 3])
    geometry = KSpaceGeometry(golden_angle_radial(GRID, 5), 2, GRID, frame=frame, frames=5)
    maps, series = noise(2, *GRID.shape), noise(5, *GRID.shape)
    operator = KSpaceEncoding(geometry, GRID, maps)
    together = operator.apply(series)
    for v in range(5):
        alone = replace(geometry.subset(np.array([v])), frame=None, frames=None)
        one = KSpaceEncoding(alone, GRID, maps).apply(series[frame[v]][None])
        torch.testing.assert_close(together[v], one[0], atol=1e-5, rtol=1e-4)
    back = operator.adjoint(together)
    assert not back[1].any() and not back[4].any() and back[0].any()


def gaussian(grid):
    """A smooth blob of 6 mm away from the centre, small at the borders."""
    x = grid.points().double() - torch.tensor([3.0, -2.0, 0.0])
    return torch.exp(-x.square().sum(-1) / (2 * 2.0**2)).reshape(1, *grid.shape).to(torch.complex64)


@pytest.mark.parametrize("finer", [2, 3])
def test_a_finer_grid_measures_the_same_object(finer):
    """Also where the centres of the two grids' middle voxels differ."""
    volume = Grid.centred((24, 20, 1), (1.5, 1.5, 5.0))
    geometry = KSpaceGeometry(golden_angle_radial(volume, 7), 1, volume)
    fine = volume.resampled((1.5 / finer, 1.5 / finer, 5.0))
    coarse = KSpaceEncoding(geometry, volume, None).apply(gaussian(volume))
    found = KSpaceEncoding(geometry, fine, None).apply(gaussian(fine))
    assert (found - coarse).norm() / coarse.norm() < 2e-3


def test_turned_volumes_measure_the_same():
    """The trajectory turns with the volume: an oblique scan of an object turned likewise has the same k-space."""
    angle = 0.7
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (30, -50, 10)
    geometry = KSpaceGeometry(golden_angle_radial(GRID, 5), 1, GRID)
    oblique = replace(geometry, volume=GRID.moved(turn))
    image = noise(1, *GRID.shape)
    torch.testing.assert_close(
        KSpaceEncoding(geometry, GRID, None).apply(image),
        KSpaceEncoding(oblique, oblique.volume, None).apply(image),
        atol=1e-4,
        rtol=1e-3,
    )


def test_norm_of_a_full_scan_is_that_of_the_coils():
    geometry = KSpaceGeometry(cartesian(GRID, np.arange(10)), 4, GRID)
    maps = analytic_sensitivities(GRID, 4)
    largest = float(maps.abs().square().sum(0).max().sqrt())
    found = KSpaceEncoding(geometry, GRID, maps).norm(60)
    assert 0.97 * largest < found < 1.0001 * largest


def test_refuses():
    geometry = KSpaceGeometry(golden_angle_radial(GRID, 3), 2, GRID)
    with pytest.raises(InputError, match="needs their sensitivities"):
        KSpaceEncoding(geometry, GRID, None)
    with pytest.raises(InputError, match="do not fit 2 coils"):
        KSpaceEncoding(geometry, GRID, noise(3, *GRID.shape))
    coarse = GRID.resampled((4.0, 4.0, 5.0))
    with pytest.raises(InputError, match="voxels are larger than the scan resolves"):
        KSpaceEncoding(geometry, coarse, noise(2, *coarse.shape))
    operator = KSpaceEncoding(geometry, GRID, noise(2, *GRID.shape))
    with pytest.raises(InputError, match="does not fit"):
        operator.apply(noise(2, *GRID.shape))
    with pytest.raises(InputError, match="does not fit"):
        operator.adjoint(noise(3, 2, 4))
