"""Samplers of registration: where the points are, how they are distributed, and their seeds."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.losses.image import lattice_gradient
from scanfield.space.grid import Grid
from scanfield.space.lattice import MaskedVoxels, lattice_samples, strided_lattice


def oblique(shape: tuple[int, int, int]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix() @ np.diag([0.7, 1.1, -2.5])
    affine[:3, 3] = (-80.5, 30.25, 7.0)
    return Grid(shape, affine)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def l_shape(shape: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:2], mask[:, :1] = True, True
    return mask


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_points_are_uniform_in_the_mask(shape: tuple[int, int, int], masked: bool) -> None:
    grid = oblique(shape)
    mask = l_shape(shape) if masked else None
    voxels = MaskedVoxels(grid, mask)
    allowed = np.ones(shape, bool) if mask is None else mask.numpy()
    assert len(voxels) == allowed.sum()
    n = 40_000
    place = grid.to_voxel(voxels.points(n, seeded()).double()).numpy()
    index = np.rint(place).astype(int)
    counts = np.zeros(shape)
    np.add.at(counts, tuple(index.T), 1)
    expected = n / allowed.sum()
    assert (counts[~allowed] == 0).all()
    assert np.abs(counts[allowed] - expected).max() < 5 * expected**0.5
    within = (place - index)[:, [axis for axis in range(3) if shape[axis] > 1]]
    assert np.abs(within.mean(axis=0)).max() < 0.01 and np.abs(within.std(axis=0) - 12**-0.5).max() < 0.01
    if shape[2] == 1:
        assert np.abs(place[:, 2]).max() < 1e-4  # a slice stays a slice


def test_without_jitter_points_are_voxel_centres() -> None:
    grid = oblique((6, 5, 4))
    place = grid.to_voxel(MaskedVoxels(grid, l_shape((6, 5, 4))).points(500, seeded(), jitter=False).double())
    assert (place - place.round()).abs().max() < 1e-4
    assert l_shape((6, 5, 4))[tuple(place.round().long().T)].all()


def test_equal_seeds_give_equal_draws_and_the_global_state_is_left_alone() -> None:
    voxels = MaskedVoxels(oblique((6, 5, 4)))
    before = torch.get_rng_state()
    assert torch.equal(voxels.points(50, seeded(3)), voxels.points(50, seeded(3)))
    assert not torch.equal(voxels.points(50, seeded(3)), voxels.points(50, seeded(4)))
    a, b = (voxels.patches(5, 3, seeded(3), jitter=True) for _ in range(2))
    assert all(x.same_as(y) for x, y in zip(a, b, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_patches_lie_in_the_grid_around_voxels_of_the_mask() -> None:
    grid = oblique((12, 10, 4))
    mask = l_shape(grid.shape)
    found = set()
    for patch in MaskedVoxels(grid, mask).patches(300, (5, 3, 8), seeded()):
        assert patch.shape == (5, 3, 4) and patch.spacing_mm == pytest.approx(grid.spacing_mm)
        index = grid.to_voxel(patch.points().double())
        assert (index - index.round()).abs().max() < 1e-4
        index = index.round().long()
        assert (index >= 0).all() and (index < torch.tensor(grid.shape)).all()
        assert mask[tuple(index.T)].any()
        found.add(tuple(index[0].tolist()))
    assert {start[0] for start in found} == set(range(8))  # 12 - 5 + 1 starts along the arm of the mask
    assert {start[1] for start in found} == set(range(8)) and {start[2] for start in found} == {0}


def test_jittered_patches_lie_between_voxel_centres() -> None:
    grid = oblique((12, 10, 1))
    starts = np.stack([grid.to_voxel(p.points(0, 1).double())[0].numpy() for p in _patches(grid)])
    part = starts - np.rint(starts)
    assert np.abs(part[:, :2].std(axis=0) - 12**-0.5).max() < 0.03 and np.abs(part[:, 2]).max() < 1e-4


def _patches(grid: Grid) -> list[Grid]:
    return MaskedVoxels(grid).patches(500, 4, seeded(), jitter=True)


@pytest.mark.parametrize("steps", [1, 3, (2, 4, 1), 100])
def test_a_strided_lattice_spans_the_image(steps: int | tuple[int, int, int]) -> None:
    grid = oblique((11, 9, 4))
    step = np.minimum(np.broadcast_to(steps, 3), grid.shape)
    seen = np.zeros(grid.shape, bool)
    for seed in range(200 if steps != 100 else 4000):
        lattice = strided_lattice(grid, steps, seeded(seed))
        assert lattice.spacing_mm == pytest.approx(step * grid.spacing_mm)
        index = grid.to_voxel(lattice.points().double()).round().long().numpy()
        assert (index.min(axis=0) >= 0).all() and (index.min(axis=0) < step).all()
        assert (index.max(axis=0) < grid.shape).all() and (index.max(axis=0) >= np.asarray(grid.shape) - step).all()
        seen[tuple(index.T)] = True
    assert seen.all()  # in time every voxel


def test_without_a_generator_the_strided_lattice_is_centred() -> None:
    lattice = strided_lattice(oblique((11, 9, 4)), (3, 4, 4))
    assert lattice.shape == (4, 3, 1)
    index = oblique((11, 9, 4)).to_voxel(lattice.points().double()).round().numpy()
    assert index.min(axis=0).tolist() == [0, 0, 1] and index.max(axis=0).tolist() == [9, 8, 1]


def test_samples_carry_their_lattice() -> None:
    """A windowed loss or a difference on the samples means what it means on the grid."""
    grid = oblique((12, 10, 8))
    patches = MaskedVoxels(grid).patches(3, 4, seeded())
    samples = lattice_samples(patches)
    assert samples.x.shape == (3, 4, 4, 4, 3) and samples.lattice == (4, 4, 4)
    assert torch.equal(samples.x[1].reshape(-1, 3), patches[1].points())
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gradient = lattice_gradient(samples.x.double() @ slope, patches[0].spacing_mm)
    torch.testing.assert_close(
        gradient @ torch.from_numpy(grid.directions).T, slope.expand_as(gradient), atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="one shape"):
        lattice_samples([Grid.centred((2, 2, 2), 1.0), Grid.centred((2, 2, 3), 1.0)])
    with pytest.raises(ValueError, match="one shape"):
        lattice_samples([])


def test_masks_that_cannot_be_sampled() -> None:
    grid = oblique((4, 4, 4))
    with pytest.raises(InputError, match="the mask is empty"):
        MaskedVoxels(grid, torch.zeros(4, 4, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="shape"):
        MaskedVoxels(grid, torch.ones(4, 4, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="too large"):
        MaskedVoxels(Grid.centred((2048, 2048, 1024), 0.1))
    for wrong in (0, (1, -1, 1)):
        with pytest.raises(ValueError, match="positive"):
            strided_lattice(grid, wrong)
        with pytest.raises(ValueError, match="positive"):
            MaskedVoxels(grid).patches(1, wrong, seeded())
