import numpy as np
import pytest
import torch

from scanfield.data.dose import Dose, PlanFacts, add_doses, box_of, check_frames, cropped, shared_frame
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid((6, 5, 4), np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]))


def planned(frame: str = "1.2.3") -> Dose:
    values = torch.zeros(GRID.shape)
    values[1:4, 2:4, 1:3] = 40.0
    values[2, 3, 2] = 60.0
    return Dose(values, GRID, plan=PlanFacts(frame_of_reference=frame), source="plan")


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "negative dose"), (float("nan"), "NaN"), (7000.0, "which no treatment gives")],
)
def test_impossible_doses_are_refused(value, message):
    values = planned().values.clone()
    values[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        Dose(values, GRID)


def test_a_dose_of_zero_is_refused():
    with pytest.raises(InputError, match="zero everywhere"):
        Dose(torch.zeros(GRID.shape), GRID)


def test_values_of_another_shape_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        Dose(torch.ones(2, 2, 2), GRID)


def test_the_box_holds_all_dose_and_keeps_its_place():
    dose = planned()
    assert box_of(dose) == ((1, 4), (2, 4), (1, 3))
    box = cropped(dose)
    assert box.grid.shape == (3, 2, 2) and box.values.sum() == dose.values.sum()
    mine = dose.grid.to_world(torch.tensor([2.0, 3.0, 2.0]))
    assert torch.allclose(box.grid.to_world(torch.tensor([1.0, 1.0, 1.0])), mine)
    assert box.plan == dose.plan and dose.highest_gy == 60.0


def test_a_mask_without_dose_is_refused():
    mask = torch.zeros(GRID.shape, dtype=torch.bool)
    mask[0, 0, 0] = True
    with pytest.raises(InputError, match="no voxel of the mask"):
        cropped(Dose(planned().values, GRID, mask))


def test_doses_add_on_one_grid_and_in_one_frame():
    assert torch.equal(add_doses(planned(), planned()).values, 2 * planned().values)
    other = Dose(torch.ones(6, 5, 3), Grid((6, 5, 3), GRID.affine))
    with pytest.raises(InputError, match="same grid"):
        add_doses(planned(), other)
    with pytest.raises(InputError, match="different frames of reference"):
        add_doses(planned(), planned("4.5.6"))


def test_frames_that_are_not_stated_agree_with_all():
    check_frames("", "1.2", "two objects", "file")
    check_frames("1.2", "1.2", "two objects", "file")
    assert shared_frame(planned()) == "1.2.3" and shared_frame(Dose(planned().values, GRID)) == ""
