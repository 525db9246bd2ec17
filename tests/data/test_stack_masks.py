"""Masks of stacks: where they lie, what they leave, and headers copied to the bit."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.stack_masks import (
    above,
    from_volume_mask,
    intersection,
    mask_at,
    mask_on,
    otsu,
    with_stack_mask,
    write_mask_like,
)
from scanfield.data.stacks import Stack
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def grid(shape=(8, 8, 4), spacing=(1.0, 1.0, 4.0), shift=(0, 0, 0)):
    affine = Grid.centred(shape, spacing).affine.copy()
    affine[:3, 3] += shift
    return Grid(shape, affine)


def stack(values=None, mask=None, **geometry):
    lattice = grid(**geometry)
    return Stack(Scan(torch.rand(lattice.shape) if values is None else values, lattice, mask=mask, source="a.nii"), 4.0)


def box(lattice, low, high):
    """Voxels whose centres lie between two corners (mm), as an image."""
    x = lattice.points().reshape(*lattice.shape, 3)
    return Scan(((x > torch.tensor(low)) & (x < torch.tensor(high))).all(-1).float(), lattice, source="m.nii")


def test_a_mask_on_the_stack_s_own_pixels():
    mask = box(grid(), (-2.0, -2, -9), (2.0, 2, 9))
    out = with_stack_mask(stack(), mask)
    assert torch.equal(out.scan.mask, mask.values != 0) and int(out.scan.mask.sum()) == 4 * 4 * 4


def test_masks_only_ever_shrink():
    half = torch.zeros(8, 8, 4, dtype=torch.bool)
    half[:4] = True
    out = with_stack_mask(stack(mask=half), box(grid(), (-2.0, -2, -9), (2.0, 2, 9)))
    assert int(out.scan.mask.sum()) == 2 * 4 * 4 and not out.scan.mask[4:].any()


def test_another_header_is_refused_and_can_be_fixed():
    mask = box(grid(shift=(0.5, 0, 0)), (-2.0, -2, -9), (2.0, 2, 9))
    with pytest.raises(InputError, match=r"origins differ: stack \(-3.5, -3.5, -6\) mm, mask \(-3,") as caught:
        with_stack_mask(stack(), mask)
    assert caught.value.where == "m.nii" and "--fix-mask-header" in caught.value.fix
    fixed = with_stack_mask(stack(), mask, fix_header=True)
    assert torch.equal(fixed.scan.mask, mask.values != 0)
    other = box(grid(spacing=(1.0, 1.1, 4.0)), (-2.0, -2, -9), (2.0, 2, 9))
    with pytest.raises(InputError, match="spacings differ"):
        with_stack_mask(stack(), other)


def test_another_shape_cannot_be_fixed():
    mask = box(grid(shape=(8, 7, 4)), (-2.0, -2, -9), (2.0, 2, 9))
    for fix in (False, True):
        with pytest.raises(InputError, match=r"shapes differ: stack \(8, 8, 4\), mask \(8, 7, 4\)") as caught:
            with_stack_mask(stack(), mask, fix_header=fix)
        assert "--volume-mask" in caught.value.fix


def test_empty_and_foreign_masks_are_refused():
    with pytest.raises(InputError, match="empty"):
        with_stack_mask(stack(), Scan(torch.zeros(8, 8, 4), grid(), source="m.nii"))
    with pytest.raises(InputError, match=r"no pixel of the stack lies in the volume mask m.nii") as caught:
        from_volume_mask(stack(), box(grid(shift=(0, 0, 200.0)), (-9.0, -9, 100), (9.0, 9, 300)))
    assert caught.value.where == "a.nii"
    with pytest.raises(InputError, match="one channel"):
        from_volume_mask(stack(), Scan(torch.ones(8, 8, 4, 2), grid(), source="m.nii"))


def test_a_mask_from_another_grid():
    fine = Grid.centred((40, 40, 80), 0.25)
    out = from_volume_mask(stack(), box(fine, (-2.1, -2.1, -5), (2.1, 2.1, 5)))
    expected = box(grid(), (-2.1, -2.1, -5), (2.1, 2.1, 5)).values != 0
    assert torch.equal(out.scan.mask, expected) and int(expected.sum()) == 4 * 4 * 2


def test_voxels_reach_half_a_voxel_around_their_centres():
    mask = torch.zeros(8, 8, 4, dtype=torch.bool)
    mask[0, 3, 1] = True
    centre = grid().to_world(torch.tensor([0.0, 3, 1], dtype=torch.float64))
    shift = torch.tensor([[0.0, 0, 0], [-0.49, 0, 0], [-0.51, 0, 0], [0, 0, 1.99], [0, 0, 2.01]], dtype=torch.float64)
    assert mask_at(mask, grid(), centre + shift).tolist() == [True, True, False, True, False]


def test_the_same_grid_gives_the_same_mask():
    mask = torch.rand(8, 8, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(mask_on(mask, grid(), grid()), mask)


def test_thresholds():
    values = torch.full((8, 8, 4), 10.0)
    values[2:6, 2:6] = torch.linspace(90, 110, 64).reshape(4, 4, 4)
    bright = values > 50
    assert torch.equal(above(stack(values), 50.0).scan.mask, bright)
    assert torch.equal(otsu(stack(values)).scan.mask, bright)
    with pytest.raises(InputError, match="brighter than 200"):
        above(stack(values), 200.0)
    with pytest.raises(InputError, match="constant in its mask"):
        otsu(stack(torch.ones(8, 8, 4)))


def test_otsu_looks_inside_the_mask_only():
    values = torch.full((8, 8, 4), 1e6)
    values[:4], values[4:6] = 1.0, 3.0
    mask = values < 10
    assert torch.equal(otsu(stack(values, mask=mask)).scan.mask, values == 3.0)


def test_the_intersection_of_stacks():
    a = with_stack_mask(stack(), box(grid(), (-3.1, -3.1, -9), (3.1, 3.1, 9)))
    b = stack(shape=(8, 8, 2))  # no mask: its box, 8 mm in z
    left, right = intersection([a, b])
    assert torch.equal(left.scan.mask, box(grid(), (-3.1, -3.1, -4), (3.1, 3.1, 4)).values != 0)
    assert torch.equal(right.scan.mask, box(b.scan.grid, (-3.1, -3.1, -9), (3.1, 3.1, 9)).values != 0)
    assert torch.equal(intersection([a])[0].scan.mask, a.scan.mask)
    with pytest.raises(InputError, match="intersection of all stacks"):
        intersection([a, stack(shift=(100.0, 0, 0))])


GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("srow_x", "srow_y", "srow_z", "pixdim", "dim", "xyzt_units", "dim_info")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_header_is_copied_to_the_bit(tmp_path, kind):
    image = kind(np.random.default_rng(0).integers(0, 900, (8, 7, 4)).astype(np.uint16), np.eye(4))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0.4, -0.2, 0.7]).as_matrix() * [0.9, 1.1, 3.3]
    turn[:3, 3] = [3.3, -7.7, 1.1]
    image.set_sform(turn, code=2)
    image.set_qform(np.diag([1.0, -1.25, 4.0, 1.0]), code=1)  # another place: both are kept
    image.header.set_dim_info(slice=2)
    image.header.set_slope_inter(2.0, 1.0)
    nib.save(image, tmp_path / "stack.nii.gz")
    mask = torch.rand(8, 7, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    write_mask_like(tmp_path / "mask.nii.gz", mask, tmp_path / "stack.nii.gz")
    a, b = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("stack", "mask"))
    for name in GEOMETRY:
        assert a.header[name].tobytes() == b.header[name].tobytes(), name
    assert b.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(b.dataobj), mask.numpy())
    own = read_nifti(tmp_path / "stack.nii.gz")
    assert torch.equal(with_stack_mask(Stack(own, 3.0), read_nifti(tmp_path / "mask.nii.gz")).scan.mask, mask)


def test_masks_without_a_place_are_refused(tmp_path):
    mask = torch.ones(8, 7, 4, dtype=torch.bool)
    nib.save(nib.Nifti1Image(np.ones((8, 7, 5), np.float32), np.eye(4)), tmp_path / "s.nii")
    (tmp_path / "text.nii").write_text("no image")
    for like, message in [("s.nii", "not that of the mask"), ("text.nii", "not a NIfTI"), ("no.nii", "no such file")]:
        with pytest.raises(InputError, match=message) as caught:
            write_mask_like(tmp_path / "m.nii", mask, tmp_path / like)
        assert like in caught.value.where
    with pytest.raises(InputError, match=r"ends in .nii"):
        write_mask_like(tmp_path / "m.txt", mask, tmp_path / "s.nii")
    assert not (tmp_path / "m.nii").exists()
