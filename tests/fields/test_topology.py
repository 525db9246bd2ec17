"""Topology of masks with known numbers, of random ones against scikit-image, and component filters."""

import numpy as np
import pytest
import torch
from skimage.measure import euler_number

from scanfield.errors import InputError
from scanfield.fields.shape import mask_mesh
from scanfield.fields.topology import Topology, largest_component, topology, without_small_components
from scanfield.space.grid import Grid


def block(shape=(9, 9, 9)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:7, 2:7, 2:7] = True
    return mask


def test_a_ball_a_ring_a_shell_and_two_parts() -> None:
    ball, ring, shell = block(), block(), block()
    ring[4, 4, :] = False
    shell[4, 4, 4] = False
    assert topology(ball) == Topology(1, 0, 0, 1)
    assert topology(ring) == Topology(1, 1, 0, 0)
    assert topology(shell) == Topology(1, 0, 1, 2)
    two = block()
    two[4, :, :] = False
    assert topology(two) == Topology(2, 0, 0, 2)
    assert topology(torch.zeros(4, 4, 4, dtype=torch.bool)) == Topology(0, 0, 0, 0)
    assert topology(torch.ones(4, 4, 4, dtype=torch.bool)) == Topology(1, 0, 0, 1)


def test_voxels_that_share_a_corner_belong_together() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert topology(mask) == Topology(1, 0, 0, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_a_plane(axis) -> None:
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2, 2] = False
    assert topology(mask.unsqueeze(axis)) == Topology(1, 1, 0, 0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_euler_number_of_random_masks_is_that_of_a_known_implementation(share) -> None:
    mask = torch.rand(12, 11, 10, generator=torch.Generator().manual_seed(1)) < share
    assert topology(mask).euler_number == euler_number(mask.numpy(), connectivity=3)
    flat = mask[:, :, :1]
    assert topology(flat).euler_number == euler_number(flat[..., 0].numpy(), connectivity=2)


def test_the_surface_of_a_mask_has_its_topology() -> None:
    ring, shell = block(), block()
    ring[4, 4, :] = False
    shell[4, 4, 4] = False
    grid = Grid((9, 9, 9), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert mask_mesh(ring, grid).genus == topology(ring).tunnels == 1
    assert mask_mesh(shell, grid).components == 1 + topology(shell).cavities


def test_filters_keep_the_largest_part_or_all_of_some_volume() -> None:
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[1:4, 1:4, 1:4] = mask[6:8, 6:8, 6:8] = mask[9, 0, 0] = True
    assert int(largest_component(mask).sum()) == 27
    grid = Grid((10, 10, 10), np.diag([0.5, 1.0, 2.0, 1.0]))  # 1 mm3 a voxel
    assert int(without_small_components(mask, grid, least_mm3=8).sum()) == 27 + 8
    assert int(without_small_components(mask, grid, least_mm3=8.5).sum()) == 27
    assert int(without_small_components(mask, grid, least_mm3=100).sum()) == 0
    empty = torch.zeros(4, 4, 4, dtype=torch.bool)
    assert not largest_component(empty).any()
    with pytest.raises(InputError, match="does not fit"):
        without_small_components(empty, grid, least_mm3=1)
