"""Series on other grids and at other moments."""

import numpy as np
import pytest
import torch

from scanfield.data.rawmri import KSpace
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.trajectories import cartesian
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry, consecutive_frames
from scanfield.tasks.series import middle, moments, on_grid, series_spec, step_s

pytest.importorskip("finufft")
TURN = np.array([[0.0, -1, 0, 30], [1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
OWN = Grid((8, 6, 1), Grid.centred((8, 6, 1), (2.0, 2.5, 5.0)).moved(TURN).affine @ np.diag([-1.0, 1, 1, 1]))


def scan(frames=4):
    lines = np.tile(np.arange(6), frames)
    geometry = KSpaceGeometry(
        cartesian(OWN, lines), 1, OWN, time_s=np.arange(6 * frames) * 0.01, frame=consecutive_frames(6 * frames, frames)
    )
    return KSpace(torch.ones(geometry.shape, dtype=torch.complex64), geometry)


def waves(points):
    """Two of the plane waves that the volume's lattice of frequencies holds."""
    x = (points.double() - torch.tensor(scan(1).acquisition.phase_centre_mm())) @ torch.tensor(OWN.directions)
    return (torch.exp(2j * torch.pi * (2 * x[:, 0] / 16 - x[:, 1] / 15)) + 0.5).to(torch.complex64)


def test_band_limited_images_are_exact_on_any_grid():
    own = waves(OWN.points()).reshape(1, *OWN.shape)
    turned = Grid((5, 4, 1), OWN.affine @ np.array([[0.6, -0.8, 0, 2], [0.8, 0.6, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    found = on_grid(own, OWN, turned)
    inside = found[0].flatten() != 0
    assert 8 < int(inside.sum()) < 20
    assert torch.allclose(found[0].flatten()[inside], waves(turned.points())[inside], atol=1e-4)


def test_its_own_grid_and_places_outside():
    own = torch.randn(2, *OWN.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert on_grid(own, OWN, OWN) is own
    same = on_grid(own, OWN, OWN.resampled((1.0, 1.25, 5.0)))  # finer voxels share no centre: values of the encoding
    assert same.shape == (2, 16, 12, 1)
    far = Grid(OWN.shape, OWN.affine + np.array([[0, 0, 0, 100], [0] * 4, [0] * 4, [0] * 4]))
    assert not on_grid(own, OWN, far).any()


def test_the_finer_image_has_the_same_k_space():
    """The scan of an image by its Fourier series is, on a grid twice as fine, the scan of the image."""
    own = torch.randn(1, 8, 6, 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    geometry = scan(1).acquisition
    inner = KSpaceGeometry(
        geometry.trajectory[1:, 1:], 1, OWN
    )  # the lowest frequency of an even axis is its own mirror
    fine = OWN.resampled((1.0, 1.25, 5.0))
    assert torch.allclose(
        KSpaceEncoding(inner, fine, None).apply(on_grid(own, OWN, fine)),
        KSpaceEncoding(inner, OWN, None).apply(own),
        atol=1e-4,
    )


def test_spec_carries_the_axis_of_time():
    spec = series_spec(scan(), 2.0, Run(seed=1), {"mine": 3})
    assert [axis.name for axis in spec.domain.axes] == ["x", "y", "t"] and spec.grid is OWN and spec.scale == 2.0
    assert spec.facts["mine"] == 3 and len(spec.facts["moments"]) == 4
    assert np.allclose(moments(spec), moments(spec, 4))
    assert step_s(spec, 4) == pytest.approx(0.06) and step_s(spec, 8) == pytest.approx(0.03)
    assert middle(spec)[0] == pytest.approx(0.115)
    assert step_s(series_spec(scan(1), 1.0, Run()), 1) is None
    assert spec.facts["weights_seed"] == series_spec(scan(), 2.0, Run(seed=1)).facts["weights_seed"]
