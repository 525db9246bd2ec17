"""Sequences of masks: there and back, their times and centres, and what is refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.data.cohort import read_cohort
from scanfield.data.nifti import nifti_layout, write_nifti
from scanfield.data.sequences import MaskSequence, check_sequences, read_sequence, write_sequence
from scanfield.errors import InputError
from scanfield.space.grid import Grid

OBLIQUE = np.array([[0.8, -0.3, 0.1, 40.0], [0.4, 0.7, 0.0, -9.0], [0.0, 0.1, -1.5, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((6, 5, 4), OBLIQUE)


def moving(frames: int = 4, step_s: float = 2.5) -> MaskSequence:
    masks = torch.zeros(frames, *GRID.shape, dtype=torch.bool)
    for t in range(frames):
        masks[t, 1 : 3 + t % 2, 1:4, 1:3] = True
    return MaskSequence(masks, GRID, step_s)


def test_there_and_back_on_an_oblique_grid(tmp_path):
    write_sequence(tmp_path / "a.nii.gz", moving())
    back = read_sequence(tmp_path / "a.nii.gz")
    assert torch.equal(back.frames, moving().frames) and back.grid.same_as(GRID)
    assert back.step_s == 2.5 and back.duration_s == 7.5
    np.testing.assert_array_equal(back.times_s, [0, 2.5, 5, 7.5])


@pytest.mark.parametrize(("unit", "step_s"), [("sec", 40.0), ("msec", 0.04), ("usec", 4e-5), ("unknown", 40.0)])
def test_time_has_the_unit_of_the_header(unit, step_s, tmp_path):
    write_sequence(tmp_path / "a.nii", moving(step_s=40.0))
    image = nib.load(tmp_path / "a.nii")
    image.header.set_xyzt_units("mm", unit)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "b.nii")
    assert nifti_layout(tmp_path / "b.nii").step_s == pytest.approx(step_s)


def test_centre_is_that_of_all_voxels_in_the_world():
    masks = torch.zeros(2, *GRID.shape, dtype=torch.bool)
    masks[0, 1, 1, 1] = masks[1, 3, 1, 1] = masks[1, 5, 4, 1] = True
    middle = GRID.to_world(torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64))[0].numpy()
    np.testing.assert_allclose(MaskSequence(masks, GRID, 1.0).centre_mm, middle)


def test_every_second_frame_keeps_its_moments():
    some = moving(5).every(2)
    np.testing.assert_array_equal(some.times_s, moving(5).times_s[::2])
    assert torch.equal(some.frames[1], moving(5).frames[2])
    assert torch.equal(moving(5).every(2, 1).frames[0], moving(5).frames[1])


def test_a_part_may_reach_beyond_the_image():
    whole = moving(3)
    part = whole.part((-2, 1, -1), (9, 7, 6))
    torch.testing.assert_close(part.frames[:, 2:8, :4, 1:5], whole.frames[:, :, 1:])
    assert part.frames.sum() == whole.frames[:, :, 1:].sum()
    here, there = part.grid.to_world(torch.tensor([[3.0, 0.0, 2.0]])), GRID.to_world(torch.tensor([[1.0, 1.0, 1.0]]))
    torch.testing.assert_close(here, there)
    np.testing.assert_allclose(whole.part((-1, -1, -1), (9, 9, 9)).centre_mm, whole.centre_mm)
    with pytest.raises(InputError, match="is empty"):
        whole.part((20, 20, 20), (4, 4, 4))


def test_bad_sequences_are_refused_with_the_frame_or_number(tmp_path):
    masks = moving().frames.clone()
    masks[2] = False
    with pytest.raises(InputError, match="frame 2 of 4 is empty"):
        MaskSequence(masks, GRID, 1.0)
    with pytest.raises(InputError, match="at least two frames"):
        MaskSequence(masks[:1], GRID, 1.0)
    with pytest.raises(InputError, match="do not fit"):
        MaskSequence(masks[..., :2], GRID, 1.0)
    with pytest.raises(InputError, match="must be positive"):
        MaskSequence(moving().frames, GRID, 0.0)
    path = tmp_path / "a.nii.gz"
    write_nifti(path, moving().frames[0].byte(), GRID)
    with pytest.raises(InputError, match="shows one moment") as caught:
        read_sequence(path)
    assert str(path) in str(caught.value)
    labels = moving().frames.permute(1, 2, 3, 0).byte()
    labels[0, 0, 0] = 2
    write_nifti(path, labels, GRID, step_s=1.0)
    with pytest.raises(InputError, match="these have 3"):
        read_sequence(path)
    image = nib.Nifti1Image(moving().frames.permute(1, 2, 3, 0).numpy().astype(np.uint8), OBLIQUE)
    image.header["pixdim"][4] = 0
    nib.save(image, path)
    with pytest.raises(InputError, match="how much time passes"):
        read_sequence(path)


def cohort(folder, sequences: dict[str, MaskSequence], splits: str):
    lines = ["path,subject,split"]
    for (name, sequence), split in zip(sequences.items(), splits.split(), strict=True):
        write_sequence(folder / f"{name}.nii.gz", sequence)
        lines.append(f"{name}.nii.gz,{name[0]},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


def test_a_cohort_of_equally_long_sequences_is_accepted(tmp_path):
    three = {"a": moving(3, 3.0), "b": moving(4, 2.0), "c": moving(7, 1.0)}
    check_sequences(cohort(tmp_path, three, "train train validation"))


def test_cohorts_that_cannot_be_learned_from_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 subject is in the split 'train'"):
        check_sequences(cohort(tmp_path, {"a1": moving(3), "a2": moving(4), "b": moving(5)}, "train train test"))
    with pytest.raises(InputError, match=r"lasts 7.5 s, 'a.nii.gz' 5 s"):
        check_sequences(cohort(tmp_path, {"a": moving(3), "b": moving(4)}, "train train"))
