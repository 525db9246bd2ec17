"""Simulated stacks against what is known in closed form: linear ramps, poses, the statistics of motion and noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.errors import InputError
from scanfield.operators.simulate_stacks import (
    StackScanOptions,
    body_mask,
    body_motion,
    simulate_stacks,
    stack_grids,
)
from scanfield.space.grid import Grid

SLOPE = torch.tensor([0.7, -0.4, 0.9])
OPTIONS = StackScanOptions(thickness_mm=4.0, in_plane_mm=2.0, margin_mm=0.0)


def ramp(turn=(0.0, 0, 0), flip=1.0, shape=(24, 20, 22)):
    """Intensity linear in the world; the body is the middle, so that no slice reaches past the volume."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * [flip, 1.0, 1.0] * 1.5
    affine[:3, 3] = [5.0, -9.0, 4.0]
    grid = Grid(shape, affine)
    values = (grid.points() - torch.tensor(grid.centre_mm).float()) @ SLOPE + 100
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[8:16, 7:13, 7:15] = True
    return Scan(values.reshape(shape), grid, mask=mask, source="v.nii")


@pytest.mark.parametrize("psf", ["gaussian", "box-sinc"])
@pytest.mark.parametrize(("turn", "flip"), [((0.0, 0, 0), 1.0), ((0.2, -0.1, 0.3), -1.0)])
def test_a_linear_image_stays_itself_at_the_true_poses(psf, turn, flip):
    """The point-spread function is symmetric: a ramp passes through it. Everything about poses and lattices shows."""
    volume = ramp(turn, flip)
    options = replace(OPTIONS, psf=psf, thickness_mm=3.0, motion_deg=5.0, motion_mm=1.0, seed=4)
    middle = torch.tensor(volume.grid.centre_mm)
    for s in simulate_stacks(volume, options):
        slices = slice_set([s.stack])
        poses = torch.from_numpy(s.poses)[slices.number]
        expected = (slices.world(poses) - middle) @ SLOPE.double() + 100
        found = slices.pixels * slices.scale[0]
        assert float((found - expected).abs().max()) < 2e-3
        assert float((slices.world() - slices.world(poses)).norm(dim=-1).mean()) > 0.5  # the header knows no motion


def test_a_point_spreads_as_far_as_the_slice_is_thick():
    """The mean over all slices of a point's brightness, by distance across: its variance is that of the profile."""
    grid = Grid.centred((21, 21, 61), 1.0)
    values = torch.zeros(grid.shape)
    values[8:13, 8:13, 30] = 1.0
    volume = Scan(values, grid, mask=torch.ones(grid.shape, dtype=torch.bool))
    for psf, sigma in [("gaussian", 6 / 2.35482), ("box-sinc", None)]:
        options = StackScanOptions(("axial",), 6.0, -4.5, 1.0, psf=psf, margin_mm=0.0)
        stack = simulate_stacks(volume, options)[0].stack
        column = stack.scan.values[10, 10].double()
        z = torch.from_numpy(stack.poses()[:, 2, 3])
        width = float((column > column.max() / 2).sum()) * 1.5
        assert width == pytest.approx(6.0, abs=1.5)
        assert float((column * z).sum() / column.sum()) == pytest.approx(0.0, abs=0.02)
        if sigma:
            spread = float((column * z**2).sum() / column.sum())
            assert spread == pytest.approx(sigma**2, rel=0.12)  # cut off at 3 sigma, widened by the voxel


def test_stacks_cover_the_body_in_three_orientations():
    volume = ramp((0.2, -0.1, 0.3))
    stacks = simulate_stacks(volume, OPTIONS)
    normals = np.array([s.stack.directions[:, 2] for s in stacks])
    assert np.allclose(np.abs(normals @ normals.T), np.eye(3), atol=1e-6)
    assert [int(np.abs(n).argmax()) for n in normals] == [2, 1, 0]  # axial slices are stacked along z, and so on
    inside = volume.grid.to_world(volume.mask.nonzero().double())
    for s in stacks:
        place = s.stack.scan.grid.to_voxel(inside)
        assert ((place > -0.51) & (place < torch.tensor(s.stack.scan.grid.shape) - 0.49)).all()
        assert s.stack.thickness_mm == 4 and s.stack.gap_mm == pytest.approx(0, abs=1e-9)
        assert s.stack.plane_spacing_mm == pytest.approx((2, 2))


def test_gaps_margins_and_repeated_orientations():
    volume = ramp()
    options = replace(OPTIONS, orientations=("axial", "axial"), thickness_mm=3.0, gap_mm=1.0)
    first, second = stack_grids(volume, options, 2.0)
    assert first.spacing_mm == pytest.approx((2, 2, 4)) and first.shape == second.shape
    assert second.affine[2, 3] - first.affine[2, 3] == pytest.approx(2.0)  # half the distance
    wide = stack_grids(volume, replace(options, margin_mm=8.0), 2.0)[0]
    assert wide.shape == tuple(n + step for n, step in zip(first.shape, (8, 8, 4), strict=True))
    bands = stack_grids(volume, replace(options, multiband=5), 2.0)[0]
    assert bands.shape[2] % 5 == 0


def test_the_mask_is_the_body_where_it_was():
    volume = ramp()
    s = simulate_stacks(volume, replace(OPTIONS, motion_deg=10.0, motion_mm=3.0, seed=2, margin_mm=6.0))[1]
    slices = slice_set([s.stack])
    x = slices.world(torch.from_numpy(s.poses)[slices.number])
    index = volume.grid.to_voxel(x).round().long()
    assert volume.mask[tuple(index.T)].all() and len(x) > 50


def test_without_motion_poses_are_those_of_the_file():
    for s in simulate_stacks(ramp(), OPTIONS):
        assert np.allclose(s.poses, s.stack.poses(), atol=1e-9) and s.outliers == {}


@pytest.mark.parametrize("motion", ["walk", "independent"])
def test_motion_has_its_standard_deviation(motion):
    options = replace(OPTIONS, motion=motion, motion_deg=4.0, motion_mm=1.5)
    draws = torch.Generator().manual_seed(0)
    path = torch.cat(body_motion([3000, 5000], options, draws))
    sd = path.square().mean(0).sqrt()
    assert sd[:3].rad2deg().tolist() == pytest.approx([4] * 3, rel=0.15)
    assert sd[3:].tolist() == pytest.approx([1.5] * 3, rel=0.15)
    step = path.diff(dim=0).square().mean(0).sqrt() / sd
    # of a process smoothed by a Gaussian of sigma s: correlation exp(-1 / 4 s^2) from one moment to the next
    expected = math.sqrt(2) if motion == "independent" else math.sqrt(2 - 2 * math.exp(-1 / (4 * 4.0**2)))
    assert step.tolist() == pytest.approx([expected] * 6, rel=0.1)


def test_slices_of_one_shot_move_together_and_time_runs_on_through_stacks():
    volume, options = ramp(), replace(OPTIONS, motion_deg=4.0, motion_mm=2.0, interleave=2, multiband=2)
    for s in simulate_stacks(volume, options):
        moves = s.poses @ np.linalg.inv(s.stack.poses())
        shots = np.array(s.stack.order)
        for shot in set(shots.tolist()):
            assert np.ptp(moves[shots == shot], axis=0).max() < 1e-9
    path = torch.cat(body_motion([10, 10], replace(options, correlation_shots=8.0), torch.Generator().manual_seed(1)))
    assert float((path[10] - path[9]).norm()) < float((path[0] - path[19]).norm())


def test_outliers_are_where_the_truth_says():
    volume, plain = ramp(), replace(OPTIONS, thickness_mm=1.5, seed=3)
    kinds = set()
    for s, clean in zip(
        simulate_stacks(volume, replace(plain, outliers=0.4)), simulate_stacks(volume, plain), strict=True
    ):
        changed = {
            k
            for k in range(s.stack.count)
            if not torch.allclose(s.stack.scan.values[..., k], clean.stack.scan.values[..., k])
        }
        shows = (s.stack.scan.mask.sum(dim=(0, 1)) > 0).sum()
        assert set(s.outliers) == changed and len(changed) == round(0.4 * int(shows))
        kinds |= set(s.outliers.values())
        for k, how in s.outliers.items():
            a, b = s.stack.scan.values[..., k], clean.stack.scan.values[..., k]
            if how == "dropout":
                assert torch.allclose(a, 0.3 * b)
            if how == "void":
                assert (a <= b + 1e-5).all() and float((a / b).min()) < 0.1 and float((a / b).max()) > 0.5
    assert kinds == {"dropout", "void", "noise"}


def test_noise_is_rician():
    volume = ramp()
    volume = replace(volume, values=volume.values * volume.mask)  # nothing around the body
    options = replace(OPTIONS, in_plane_mm=0.5, seed=1, margin_mm=8.0)
    sigma = 0.05 * float(volume.values[volume.mask].quantile(0.99))
    clean = simulate_stacks(volume, options)[0].stack.scan.values
    noisy = simulate_stacks(volume, replace(options, noise_percent=5.0))[0].stack.scan.values
    bright, empty = clean > 50, clean == 0
    assert float((noisy - clean)[bright].std()) == pytest.approx(sigma, rel=0.05)
    assert float(noisy[empty].mean()) == pytest.approx(math.sqrt(math.pi / 2) * sigma, rel=0.02)  # Rayleigh
    assert float(noisy[empty].square().mean()) == pytest.approx(2 * sigma**2, rel=0.03)


def test_the_same_seed_gives_the_same_stacks():
    options = replace(OPTIONS, motion_deg=3.0, outliers=0.2, noise_percent=2.0, in_plane_mm=3.0)
    a, b, c = (simulate_stacks(ramp(), replace(options, seed=seed))[0].stack.scan.values for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_body_is_found():
    values = torch.zeros(20, 20, 20)
    values[4:16, 4:16, 4:16] = 50.0
    values[8:11, 8:11, 8:11] = 0.0  # a ventricle
    values[0, 0, 0] = 60.0  # something else
    expected = torch.zeros(20, 20, 20, dtype=torch.bool)
    expected[4:16, 4:16, 4:16] = True
    assert torch.equal(body_mask(Scan(values, Grid.centred((20, 20, 20), 1.0))), expected)


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (lambda: Scan(torch.ones(5, 5, 1), Grid.centred((5, 5, 1), 1.0)), OPTIONS, "from a volume of one channel"),
        (lambda: Scan(torch.ones(5, 5, 5, 2), Grid.centred((5, 5, 5), 1.0)), OPTIONS, "from a volume of one channel"),
        (lambda: Scan(torch.zeros(5, 5, 5), Grid.centred((5, 5, 5), 1.0)), OPTIONS, "the volume is empty"),
        (ramp, replace(OPTIONS, orientations=("axial", "obliq")), "unknown orientation 'obliq'"),
        (ramp, replace(OPTIONS, orientations=()), "at least one orientation"),
        (ramp, replace(OPTIONS, thickness_mm=0.0), "thickness_mm must be positive, got 0"),
        (ramp, replace(OPTIONS, gap_mm=-4.0), "distance of the slices must be positive"),
        (ramp, replace(OPTIONS, in_plane_mm=-1.0), "in_plane_mm must be positive"),
        (ramp, replace(OPTIONS, correlation_shots=0.0), "correlation_shots must be positive"),
        (ramp, replace(OPTIONS, motion_deg=-1.0), "motion_deg must be finite and not negative"),
        (ramp, replace(OPTIONS, noise_percent=math.inf), "noise_percent must be finite"),
        (ramp, replace(OPTIONS, outliers=0.6), "at most half of the slices"),
        (ramp, replace(OPTIONS, thickness_mm=200.0), "thicker than the field of view"),
        (ramp, replace(OPTIONS, interleave=0), "at least 1"),
    ],
)
def test_impossible_scans_are_refused(volume, options, message):
    with pytest.raises(InputError, match=message):
        simulate_stacks(volume(), options)
