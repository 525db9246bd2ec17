"""The record of all slices against the stacks it was made of."""

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.data.slices import intensity_scale, slice_set
from scanfield.data.stacks import Stack, acquisition_shots
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def stack(seed=0, axis=2, shape=(7, 6, 5), source="a.nii", empty=(0,)):
    draws = torch.Generator().manual_seed(seed)
    spacing = np.insert([1.25, 1.5], axis, 4.0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-5, 4, 3]
    affine[0, 0] *= -1
    values = 100 * torch.rand(shape, generator=draws)
    mask = torch.rand(shape, generator=draws) > 0.4
    for k in empty:
        mask.select(axis, k).fill_(False)
    count = shape[axis]
    return Stack(
        Scan(values, Grid(shape, affine), mask=mask, source=source), 3.0, axis, acquisition_shots(count, interleave=2)
    )


@pytest.fixture
def stacks():
    return [stack(0), stack(1, axis=0, shape=(4, 6, 8), source="b.nii", empty=(1, 3))]


def test_every_masked_pixel_is_there_once_at_its_place(stacks):
    s = slice_set(stacks)
    assert s.kind == "stacks" and s.stacks == 2 and s.count == 4 + 2
    assert len(s.pixels) == sum(int(x.scan.mask.sum()) for x in stacks)
    assert s.pixels.dtype == torch.float32 and s.initial.dtype == torch.float64
    assert s.number.tolist() == [1, 2, 3, 4, 0, 2] and s.stack_index.tolist() == [0, 0, 0, 0, 1, 1]
    assert s.shot.tolist() == [3, 1, 4, 2, 0, 1]
    assert s.sources == ("a.nii", "b.nii") and s.thickness_mm.tolist() == [3.0] * 6
    assert (s.slice_index.diff() >= 0).all() and (s.local_mm[:, 2] == 0).all()
    values = (s.pixels * s.scale[s.stack_index[s.slice_index]]).double()
    for k, x in enumerate(stacks):
        mine = s.stack_index[s.slice_index] == k
        voxels = x.planes(x.scan.mask).nonzero()
        index = torch.stack([voxels[:, 1], voxels[:, 2]], dim=1)
        index = torch.cat([index[:, : x.slice_axis], voxels[:, :1], index[:, x.slice_axis :]], dim=1)
        assert torch.allclose(s.world()[mine], x.scan.grid.to_world(index.double()), atol=1e-5)
        assert torch.allclose(values[mine], x.scan.values[tuple(index.T)].double(), rtol=1e-6)


def test_the_scale_is_the_99th_percentile_in_the_mask(stacks):
    s = slice_set(stacks)
    for k, x in enumerate(stacks):
        inside = x.scan.values[x.scan.mask]
        assert float(s.scale[k]) == pytest.approx(float(np.percentile(inside, 99)), rel=0.02)
    assert intensity_scale(torch.arange(1.0, 101.0)) == 99
    assert intensity_scale(torch.tensor([3.0])) == 3


def test_the_scale_of_more_values_than_a_quantile_takes():
    values = torch.arange(2**24 + 10, dtype=torch.float32)
    assert intensity_scale(values) == pytest.approx(0.99 * 2**24, rel=1e-4)


def test_images_and_grids_of_slices(stacks):
    s = slice_set(stacks)
    k = 5
    image, grid = s.image(k, s.pixels), s.grid(k)
    assert image.shape == grid.shape == (6, 8, 1) and grid.spacing_mm == pytest.approx((1.25, 1.5, 3.0))
    mine = s.slice_index == k
    assert torch.allclose(grid.points()[s.pixel_index[mine]].double(), s.world()[mine], atol=1e-5)
    expected = stacks[1].scan.values[2] * stacks[1].scan.mask[2]
    assert torch.allclose(image[..., 0] * s.scale[1], expected, rtol=1e-5)
    moved = torch.eye(4, dtype=torch.float64)
    moved[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    assert np.allclose(s.grid(k, moved @ s.initial[k]).centre_mm, grid.centre_mm + np.array([1, 2, 3]))


def test_a_subset_keeps_its_slices_as_they_are(stacks):
    s = slice_set(stacks)
    keep = torch.tensor([True, False, True, False, False, True])
    part = s.subset(keep)
    assert part.count == 3 and part.stacks == 2 and part.number.tolist() == [1, 3, 2]
    assert part.slice_index.unique().tolist() == [0, 1, 2]
    for new, old in enumerate([0, 2, 5]):
        assert torch.equal(part.image(new, part.pixels), s.image(old, s.pixels))
    assert torch.equal(part.world(), s.world()[keep[s.slice_index]])
    with pytest.raises(InputError, match="no slice is left"):
        s.subset(torch.zeros(6, dtype=torch.bool))


def test_poses_move_slices(stacks):
    s = slice_set(stacks)
    moves = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    moves[1, :3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moves[1, :3, 3] = torch.tensor([10.0, 0, 0])
    moved = s.moved(moves)
    first = s.stack_index[s.slice_index] == 0
    assert torch.equal(moved.world()[first], s.world()[first])
    expected = s.world()[~first] @ moves[1, :3, :3].T + moves[1, :3, 3]
    assert torch.allclose(moved.world()[~first], expected)
    poses = moved.initial.clone().requires_grad_()
    s.world(poses).sum().backward()
    assert float(poses.grad[:, :3, 3].sum()) == 3 * len(s.pixels)


def test_on_another_device_everything_moves(stacks):
    s = slice_set(stacks).to("meta")
    assert all(part.device.type == "meta" for part in vars(s).values() if isinstance(part, torch.Tensor))


def test_what_is_refused():
    with pytest.raises(InputError, match="at least one stack"):
        slice_set([])
    dark = Stack(Scan(torch.zeros(5, 5, 3), Grid.centred((5, 5, 3), (1.0, 1.0, 4.0)), source="c.nii"), 4.0)
    with pytest.raises(InputError, match="99th percentile of the intensities in the mask is 0") as caught:
        slice_set([dark])
    assert caught.value.where == "c.nii"
