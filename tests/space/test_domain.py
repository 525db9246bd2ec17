from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid


def grid(shape=(12, 9, 5), left_handed=False) -> Grid:
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-1.0 if left_handed else 1.0, 2.0, 3.0])
    affine[:3, 3] = (100.0, -50.0, 20.0)
    return Grid(shape, affine)


@pytest.mark.parametrize("left_handed", [False, True])
def test_box_of_a_grid(left_handed):
    box = Domain.of_grid(grid(left_handed=left_handed))
    np.testing.assert_allclose(box.extent, (12.0, 18.0, 15.0), rtol=1e-6)
    np.testing.assert_allclose([a.low + a.high for a in box.axes], 0, atol=1e-9)
    assert [a.name for a in box.axes] == ["x", "y", "z"]
    corners = torch.tensor(grid(left_handed=left_handed).corners_mm())
    assert box.inside(corners).all()
    centre = corners.mean(0)
    assert not box.inside(centre + (corners - centre) * 1.001).any()


@pytest.mark.parametrize("scaling", ["isotropic", "per-axis"])
@pytest.mark.parametrize("left_handed", [False, True])
def test_unit_coordinates_against_hand_computed_ones(scaling, left_handed):
    lattice = grid(left_handed=left_handed)
    box = Domain.of_grid(lattice, scaling=scaling)
    index = np.array([[0, 0, 0], [11, 8, 4], [3, 7, 1], [5.5, 4, 2]])
    world = torch.tensor(index @ lattice.affine[:3, :3].T + lattice.affine[:3, 3])
    mm = (index - [5.5, 4, 2]) * [1, 2, 3]  # along the voxel axes, from the centre
    half = np.array([6.0, 9.0, 7.5]) if scaling == "per-axis" else 9.0
    np.testing.assert_allclose(box.to_unit(world).numpy(), mm / half, atol=1e-9)
    torch.testing.assert_close(box.from_unit(box.to_unit(world)), world, atol=1e-9, rtol=0)


def test_isotropic_keeps_proportions_and_per_axis_fills_the_cube():
    corners = torch.tensor(grid().corners_mm())
    isotropic = Domain.of_grid(grid()).to_unit(corners).abs()
    torch.testing.assert_close(isotropic, torch.tensor([12 / 18, 1.0, 15 / 18]).double().expand(8, 3))
    per_axis = Domain.of_grid(grid(), scaling="per-axis").to_unit(corners).abs()
    torch.testing.assert_close(per_axis, torch.ones(8, 3).double())


def test_margin_widens_every_side_in_mm():
    np.testing.assert_allclose(Domain.of_grid(grid(), margin_mm=2.5).extent, (17.0, 23.0, 20.0))


def test_a_slice_drops_its_axis_and_lies_in_its_plane():
    lattice = grid((12, 9, 1))
    box = Domain.of_grid(lattice)
    assert box.dims == 2
    unit = box.to_unit(lattice.points().double())
    assert unit.shape == (108, 2)
    torch.testing.assert_close(box.from_unit(unit), lattice.points().double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("shape", "names"), [((1, 9, 5), "yz"), ((12, 1, 5), "xz"), ((1, 1, 5), "z")])
def test_any_axis_may_be_flat(shape, names):
    lattice = grid(shape, left_handed=True)
    box = Domain.of_grid(lattice)
    assert "".join(a.name for a in box.axes) == names
    points = lattice.points().double()
    torch.testing.assert_close(box.from_unit(box.to_unit(points)), points, atol=2e-5, rtol=0)


def test_one_voxel_is_no_domain():
    with pytest.raises(InputError, match="more than one voxel"):
        Domain.of_grid(grid((1, 1, 1)))


def test_further_axes_fill_the_interval_and_follow_the_spatial_columns():
    box = Domain.of_grid(grid((12, 9, 1))).with_axis(Axis("t", "s", 10.0, 20.0))
    assert box.dims == 3
    world = torch.cat([grid((12, 9, 1)).points().double(), torch.full((108, 1), 15.0).double()], dim=1)
    unit = box.to_unit(world)
    torch.testing.assert_close(unit[:, 2], torch.zeros(108).double())
    torch.testing.assert_close(box.from_unit(unit), world, atol=2e-5, rtol=0)
    world[:, 3] = 20.0
    assert (box.to_unit(world)[:, 2] == 1).all() and box.inside(world).all()
    world[:, 3] = 20.1
    assert not box.inside(world).any()
    assert box.spatial_extent_mm == Domain.of_grid(grid((12, 9, 1))).extent


def test_gradients_pass_to_world_coordinates():
    box = Domain.of_grid(grid(left_handed=True))
    x = torch.tensor([[101.0, -45.0, 22.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(box.to_unit, x)
    assert torch.autograd.gradcheck(box.from_unit, x)


def test_json_round_trip():
    box = Domain.of_grid(grid(left_handed=True), scaling="per-axis").with_axis(Axis("t", "s", 0.0, 2.0))
    back = Domain.from_json(json.loads(json.dumps(box.to_json())))
    assert back.axes == box.axes and back.scaling == box.scaling
    np.testing.assert_array_equal(back.frame, box.frame)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": None},
        {"axes": []},
        {"axes": [["x", "mm", 0]]},
        {"axes": [["x", "mm", 0, "wide"]]},
        {"axes": [["x", "mm", 1, 0]]},
        {"axes": [["x", "mm", 0, float("nan")]]},
        {"axes": [["x", "mm", 0, 1], ["x", "mm", 0, 1]]},
        {"axes": [["t", "s", 0, 1], ["x", "mm", 0, 1]]},
        {"scaling": "largest"},
        {"frame": [1, 2, 3]},
        {"frame": np.diag([2.0, 1, 1, 1]).tolist()},
        {"frame": [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
        {"frame": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]},
    ],
)
def test_from_json_refuses_nonsense(change):
    facts = json.loads(json.dumps(Domain.of_grid(grid()).to_json())) | change
    with pytest.raises(InputError):
        Domain.from_json(facts)
    del facts["axes"]
    with pytest.raises(InputError):
        Domain.from_json(facts)


def test_clamp_gives_the_nearest_point_of_an_oblique_box():
    lattice = grid()
    box = Domain.of_grid(lattice)
    generator = torch.Generator().manual_seed(0)
    index = 40 * torch.rand(500, 3, generator=generator, dtype=torch.float64) - 15
    nearest = torch.minimum(index.clamp(min=-0.5), torch.tensor(lattice.shape) - 0.5)
    affine = torch.tensor(lattice.affine)
    x, expected = (i @ affine[:3, :3].T + affine[:3, 3] for i in (index, nearest))
    torch.testing.assert_close(box.clamp(x), expected, atol=1e-9, rtol=0)
    assert bool(box.inside(box.clamp(x)).all())


def test_clamp_leaves_the_axes_a_slice_does_not_have():
    flat = Domain.of_grid(Grid((4, 6, 1), np.eye(4)))
    x = torch.tensor([[100.0, 2.0, 7.0], [1.0, 2.0, -9.0]])
    torch.testing.assert_close(flat.clamp(x), torch.tensor([[3.5, 2.0, 7.0], [1.0, 2.0, -9.0]]))
