"""Geometry of stacks against their files' own affines; acquisition order; what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.data.stacks import (
    Stack,
    acquisition_shots,
    assumed_contiguous,
    check_stacks,
    largest_tilt_deg,
    mask_points,
    read_stack,
)
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def grid(shape=(6, 5, 4), spacing=(1.0, 1.5, 4.0), turn=(0.3, -0.2, 0.5), origin=(10.0, -20.0, 30.0), flip=False):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * np.asarray(spacing)
    if flip:
        affine[:3, 0] *= -1
    affine[:3, 3] = origin
    return Grid(shape, affine)


def stack(thickness=4.0, axis=2, values=None, mask=None, shots=None, source="a.nii", **geometry):
    lattice = grid(**geometry)
    if values is None:
        values = torch.arange(1.0, lattice.size + 1).reshape(lattice.shape)
    return Stack(Scan(values, lattice, mask=mask, source=source), thickness, axis, shots)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_pixel_of_a_slice_is_the_voxel_of_the_file(axis, flip):
    spacing = np.roll([4.0, 1.0, 1.5], axis)
    s = stack(axis=axis, spacing=spacing, flip=flip)
    assert s.count == s.scan.grid.shape[axis] and s.distance_mm == pytest.approx(4)
    poses = s.poses()
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)  # proper rotations, also of a left-handed file
    assert np.allclose(poses[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3], np.eye(3))
    k, row, column = 2, 4, 1
    size, step = np.array(s.plane_shape), np.array(s.plane_spacing_mm)
    p = [*((np.array([row, column]) - (size - 1) / 2) * step), 0, 1]
    voxel = np.insert([row, column], axis, k)
    expected = s.scan.grid.affine @ [*voxel, 1]
    assert np.allclose(poses[k] @ p, expected)
    assert torch.equal(s.planes(s.scan.values)[k, row, column], s.scan.values[tuple(voxel)])


def test_thickness_and_gap_are_two_things():
    s = stack(thickness=3.0)
    assert s.thickness_mm == 3 and s.gap_mm == pytest.approx(1) and s.distance_mm == pytest.approx(4)
    assert stack(thickness=5.0).gap_mm == pytest.approx(-1)
    assert stack(thickness=5.0, shape=(6, 5, 1)).gap_mm == 0


def test_slices_of_a_tilted_gantry_lie_closer_than_their_voxel_axis_is_long():
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 2] = [0, 3, 4]
    s = assumed_contiguous(Scan(torch.rand(5, 5, 3), Grid((5, 5, 3), affine)), 2)
    assert s.distance_mm == pytest.approx(4) and s.thickness_mm == pytest.approx(4) and s.gap_mm == 0
    assert np.allclose(s.directions, np.eye(3))


@pytest.mark.parametrize(
    ("count", "interleave", "multiband", "expected"),
    [
        (5, 1, 1, (0, 1, 2, 3, 4)),
        (5, 2, 1, (0, 3, 1, 4, 2)),
        (7, 3, 1, (0, 3, 5, 1, 4, 6, 2)),
        (6, 1, 2, (0, 1, 2, 0, 1, 2)),
        (8, 2, 2, (0, 2, 1, 3, 0, 2, 1, 3)),
    ],
)
def test_acquisition_order(count, interleave, multiband, expected):
    assert acquisition_shots(count, interleave, multiband) == expected


def test_passes_through_the_body():
    assert stack(shape=(6, 5, 5)).passes() == [[0, 1, 2, 3, 4]]
    assert stack(shape=(6, 5, 5), shots=acquisition_shots(5, 2)).passes() == [[0, 2, 4], [1, 3]]
    bands = stack(shape=(6, 5, 8), shots=acquisition_shots(8, 2, 2)).passes()
    assert bands == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert stack(shape=(6, 5, 4), shots=(3, 2, 1, 0)).passes() == [[3, 2, 1, 0]]
    assert stack(shape=(6, 5, 5), shots=(2, 4, 1, 3, 0)).passes() == [[4, 2, 0], [3, 1]]
    assert stack(shape=(6, 5, 1), thickness=2.0).passes() == [[0]]


@pytest.mark.parametrize(("interleave", "multiband"), [(0, 1), (1, 0), (1, 3)])
def test_impossible_orders(interleave, multiband):
    with pytest.raises(InputError, match=r"at least 1|cannot be acquired 3 at a time"):
        acquisition_shots(4, interleave, multiband)


def test_reading(tmp_path):
    path = tmp_path / "s.nii.gz"
    lattice = grid(spacing=(1.0, 4.0, 1.5), shape=(6, 4, 5))
    write_nifti(path, torch.rand(lattice.shape), lattice)
    s = read_stack(path)
    assert s.slice_axis == 1 and s.count == 4 and s.shots is None
    assert s.thickness_mm == pytest.approx(4, abs=1e-5) and s.scan.source == str(path)
    assert read_stack(path, 3.0, interleave=2).order == (0, 2, 1, 3)
    assert read_stack(path, 1.0, slice_axis=0).count == 6
    (tmp_path / "s.json").write_text(json.dumps({"SliceTiming": [0.0, 1.5, 0.0, 1.5]}))
    assert read_stack(path).shots == (0, 1, 0, 1)
    assert read_stack(path, multiband=1).shots == (0, 1, 2, 3)  # what is asked for wins
    (tmp_path / "s.json").write_text(json.dumps({"EchoTime": 0.1}))
    assert read_stack(path).shots is None
    (tmp_path / "s.json").write_text(json.dumps({"SliceTiming": [0.0, 1.5]}))
    with pytest.raises(InputError, match="SliceTiming has 2 times for 4 slices") as caught:
        read_stack(path)
    assert str(tmp_path / "s.json") in caught.value.where


def test_the_axis_across_the_slices(tmp_path):
    for name, shape, spacing, axis in [
        ("single", (1, 6, 5), (1.0, 1.0, 1.0), 0),
        ("cubes", (6, 6, 6), (1.0, 1.0, 1.0), 2),
        ("coarse", (6, 6, 6), (2.0, 1.0, 1.0), 0),
    ]:
        path = tmp_path / f"{name}.nii"
        write_nifti(path, torch.rand(shape), grid(shape, spacing))
        assert read_stack(path, 1.0).slice_axis == axis, name


def test_four_axes_and_nan_are_refused(tmp_path):
    import nibabel as nib

    path = tmp_path / "s.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3, 2), np.float32), np.eye(4)), path)
    with pytest.raises(InputError, match="4 axes") as caught:
        read_stack(path, 1.0)
    assert str(path) in caught.value.where
    values = np.ones((4, 4, 3), np.float32)
    values[1, 2, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    with pytest.raises(InputError, match="1 of 48 voxels are NaN"):
        read_stack(path, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack(thickness=0.0), "thickness of a slice must be a positive number of mm, got 0"),
        (lambda: stack(thickness=-3.0), "got -3"),
        (lambda: stack(thickness=float("nan")), "got nan"),
        (lambda: stack(thickness=16.1), r"16.1 mm are thicker than the field of view: the whole stack of 4 slices"),
        (lambda: stack(thickness=9.0, shape=(6, 5, 1)), "thicker than the field of view: the slice measures 7.5 mm"),
        (lambda: stack(thickness=0.5), "0.5 mm lie 4 mm apart: 88 % of the body would be missing"),
        (lambda: stack(thickness=17.0, shape=(6, 5, 9)), "each would overlap with 8 others"),
        (lambda: stack(values=torch.rand(6, 5, 4, 2)), "a stack has one channel, this image has 2"),
        (lambda: stack(axis=3), "axis of the slices is 0, 1 or 2, got 3"),
        (lambda: stack(shape=(1, 5, 4)), "at least 2 x 2 pixels"),
        (lambda: stack(shots=(0, 1, 2)), "every one of 4 slices needs its shot"),
    ],
)
def test_impossible_stacks_are_refused(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "a.nii" in caught.value.where


def test_the_message_about_a_gap_names_the_thickness_without_one():
    with pytest.raises(InputError) as caught:
        stack(thickness=0.4)
    assert caught.value.fix == "the thickness is not the gap; without a gap it is 4 mm"


def test_oblique_pixels_are_refused():
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[0, 1] = 0.2
    with pytest.raises(InputError, match=r"angle of 78.7 degrees"):
        Stack(Scan(torch.rand(5, 5, 3), Grid((5, 5, 3), affine)), 4.0)


def turned(s, turn, shift=(0, 0, 0)):
    """The stack on a lattice turned about its middle."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    c = s.scan.grid.centre_mm
    move[:3, 3] = c - move[:3, :3] @ c + shift
    return replace(s, scan=replace(s.scan, grid=s.scan.grid.moved(move), source="b.nii"))


def test_a_set_of_stacks():
    a = stack()
    b = turned(a, [np.pi / 2, 0, 0])
    check_stacks([a, b])
    assert largest_tilt_deg([a, b]) == pytest.approx(
        np.degrees(np.arccos(abs(a.directions[:, 2] @ b.directions[:, 2])))
    )
    check_stacks([a], allow_parallel=True)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda a: [], "all 0|there is one stack"),
        (lambda a: [replace(a)], "two stacks are the same image"),
        (lambda a: [turned(a, [0.0, 0.0, 0.0], (0.3, 0, 0))], "all 2 stacks are parallel"),
        (
            lambda a: [turned(a, np.pi / 2 * a.directions[:, 0], (0, 0, 90.0))],
            "do not overlap: their centres are 90 mm",
        ),
    ],
)
def test_sets_that_are_not_one_body_from_several_sides(others, message):
    a = stack()
    with pytest.raises(InputError, match=message) as caught:
        check_stacks([a, *others(a)])
    assert "a.nii" in caught.value.where and caught.value.fix


def test_no_stack_at_all():
    with pytest.raises(InputError, match="at least one stack"):
        check_stacks([])


def test_stacks_may_be_connected_through_a_third_one():
    a = stack(shape=(20, 5, 4))
    along, up = a.directions[:, 0], np.pi / 2 * a.directions[:, 0]
    far, middle = turned(a, up, 24 * along), turned(a, 0 * up, 12 * along)
    with pytest.raises(InputError, match="do not overlap"):
        check_stacks([a, far])
    check_stacks([a, far, middle])


def test_points_of_a_mask():
    mask = torch.zeros(6, 5, 4, dtype=torch.bool)
    mask[1:3, 2, 3] = True
    s = stack(mask=mask)
    expected = s.scan.grid.to_world(torch.tensor([[1.0, 2, 3], [2, 2, 3]], dtype=torch.float64))
    assert torch.allclose(mask_points(s), expected)
    assert len(mask_points(stack(), most=30)) == 30
