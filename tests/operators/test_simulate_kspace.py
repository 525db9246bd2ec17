from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.simulate_kspace import KSpaceScanOptions, simulate_kspace, true_series
from scanfield.space.grid import Grid

pytest.importorskip("finufft")
TURN = np.array([[0.0, -1, 0, 30], [1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
SMALL = KSpaceScanOptions(coils=3, frames=4, views_per_frame=5, motion_mm=3.0, period_s=0.1)


def head(shape=(24, 20, 3), spacing=(3.0, 3.5, 5.0), affine=TURN):
    """Two blobs in an ellipse: smooth, so that grids agree."""
    local = Grid.centred(shape, spacing)
    x = local.points()
    body = 100 * torch.exp(-(((x[:, :2] / torch.tensor([18.0, 16.0])) ** 2).sum(-1) ** 2))
    spot = 60 * torch.exp(-(x[:, :2] - torch.tensor([4.0, 2.0])).square().sum(-1) / 40)
    return Scan((body + spot).reshape(shape), local.moved(affine))


@pytest.mark.parametrize("trajectory", ["radial", "spiral", "cartesian"])
def test_the_scan_explains_the_truth(trajectory):
    """Without motion the finer grid's k-space is that of the truth on the reconstruction's grid, for smooth images."""
    made = simulate_kspace(head(), replace(SMALL, trajectory=trajectory))
    kspace = made.kspace
    assert kspace.acquisition.shape[:2] == (20, 3) and made.truth.shape == (4, 24, 20, 1)
    again = KSpaceEncoding(kspace.acquisition, kspace.acquisition.volume, kspace.sensitivities).apply(made.truth)
    assert (again - kspace.values).norm() / kspace.values.norm() < 0.01
    assert torch.equal(made.truth[0], made.truth[3]) and kspace.noise.kind == "none"


def test_the_truth_is_the_image_where_it_lies():
    scan = head()
    made = simulate_kspace(scan, replace(SMALL, phase_rad=0.0))
    error = (made.truth[0] - scan.values[:, :, 1:2]).abs().max() / scan.values.max()
    assert error < 0.03
    assert np.array_equal(made.kspace.acquisition.volume.affine, scan.grid.slice(1).affine)


def test_a_coarser_reconstruction():
    scan = head((48, 40, 1), (1.5, 1.75, 5.0))
    grid = scan.grid.resampled((3.0, 3.5, 5.0))
    made = simulate_kspace(scan, replace(SMALL, phase_rad=0.0), grid=grid)
    expected = scan.values.reshape(24, 2, 20, 2).mean(dim=(1, 3))
    assert (made.truth[0, :, :, 0] - expected).abs().max() / expected.max() < 0.04


def test_phase_stays_within_its_bound():
    truth = simulate_kspace(head(), replace(SMALL, phase_rad=0.8)).truth[0]
    bright = truth.abs() > 30
    assert 0.5 < truth[bright].angle().abs().max() < 0.82


def test_beating_moves_the_middle_and_comes_back():
    options = replace(SMALL, motion="beating", frames=20, views_per_frame=1)  # 20 views of 5 ms: one period
    truth = simulate_kspace(head(), options).truth.abs()
    assert (truth[10] - truth[0]).abs().max() > 5
    torch.testing.assert_close(truth[1], truth[19], atol=0.2, rtol=0)
    assert (truth[10] - truth[0]).abs()[:3].max() < 0.2  # far from the region


def test_the_beat_has_r_peaks_and_a_truth_at_any_time():
    beat = replace(SMALL, motion="beating", period_s=0.04)
    made = simulate_kspace(head(), beat)
    times = made.kspace.acquisition.time_s
    np.testing.assert_allclose(np.diff(made.kspace.r_peaks_s), 0.04)
    assert made.kspace.r_peaks_s[0] == 0 and 0 <= times.max() + beat.repetition_s - made.kspace.r_peaks_s[-1] < 0.04
    middle = float(times[made.kspace.acquisition.frame_of_view == 1].mean())
    found = true_series(head(), beat, [middle, middle + 0.04, 0.0, 0.02])
    assert torch.allclose(found[0], made.truth[1], atol=1e-5) and torch.allclose(found[1], found[0], atol=1e-3)
    assert not torch.allclose(found[2], found[3], atol=1e-2)
    assert simulate_kspace(head(), SMALL).kspace.r_peaks_s is None


def test_brightening_rises_through_the_scan():
    options = replace(SMALL, motion="brightening", brightening_percent=50.0, frames=20, views_per_frame=1)
    middle = simulate_kspace(head(), options).truth.abs()[:, 11:14, 9:12].mean(dim=(1, 2, 3))
    assert (middle[1:] >= middle[:-1]).all() and 1.35 < float(middle[-1] / middle[0]) < 1.5


def test_every_view_sees_its_own_time():
    """Within one long frame the object changes; the last view of it is not that of the frame's middle."""
    moving = replace(SMALL, motion="brightening", frames=1, views_per_frame=12, trajectory="radial", coils=1)
    still = simulate_kspace(head(), replace(moving, motion="none")).kspace.values
    excess = (simulate_kspace(head(), moving).kspace.values - still).abs().sum(dim=(1, 2))
    assert (excess[1:] > excess[:-1]).float().mean() > 0.9 and excess[-1] > 20 * excess[0]


def test_noise_has_its_standard_deviation_and_seed():
    quiet = simulate_kspace(head(), SMALL).kspace
    options = replace(SMALL, noise_percent=3.0, seed=5)
    noisy = simulate_kspace(head(), options).kspace
    noise = torch.view_as_real(noisy.values - quiet.values)
    sigma = 0.03 * np.percentile(head().values[:, :, 1], 99)
    assert noisy.noise.level == pytest.approx(sigma)
    assert float(noise.std()) == pytest.approx(sigma, rel=0.05) and abs(float(noise.mean())) < 0.1 * sigma
    assert torch.equal(simulate_kspace(head(), options).kspace.values, noisy.values)
    assert not torch.equal(simulate_kspace(head(), replace(options, seed=6)).kspace.values, noisy.values)


def test_frames_of_cartesian_lines_differ():
    geometry = simulate_kspace(head(), replace(SMALL, trajectory="cartesian")).kspace.acquisition
    lines = [set(geometry.trajectory[geometry.frame_of_view == f, 0, 1].round(9)) for f in range(4)]
    assert len({frozenset(one) for one in lines}) > 1 and all(len(one) == 5 for one in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coils": 0}, "at least one coil"),
        ({"frames": 0}, "one frame"),
        ({"motion": "beating", "motion_mm": 50.0}, "fold a region"),
        ({"noise_percent": -1.0}, "noise_percent must be finite"),
        ({"period_s": 0.0}, "period_s must be a positive"),
        ({"trajectory": "cartesian", "samples": 5}, "matrix's 24 samples"),
        ({"trajectory": "cartesian", "views_per_frame": 21}, "20 Cartesian lines cannot have 21"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(InputError, match=message):
        simulate_kspace(head(), replace(SMALL, **change))


def test_refuses_other_grids_and_slices():
    scan = head()
    with pytest.raises(InputError, match="own field of view"):
        simulate_kspace(scan, SMALL, grid=Grid.centred((24, 20, 1), (6.0, 7.0, 5.0)))
    with pytest.raises(InputError, match="slice 3 does not exist"):
        simulate_kspace(scan, SMALL, slice_index=3)
    with pytest.raises(InputError, match="zero everywhere"):
        simulate_kspace(Scan(0 * scan.values, scan.grid), SMALL)
