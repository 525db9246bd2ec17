"""Absorbed dose on a grid: what a treatment plan gives to the patient, in Gy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

HIGHEST_GY = 1000.0  # no treatment gives more: a larger number is in another unit


@dataclass(frozen=True)
class PlanFacts:
    """What a dose says about the plan and the patient it belongs to (DICOM attributes as text; '' where unknown).

    Args:
        frame_of_reference: UID of the coordinate system; structures with another one lie elsewhere.
        plans: SOP instance UIDs of the plans the dose was computed from.
        summation: DoseSummationType, such as 'PLAN', 'BEAM' or 'FRACTION'.
        dose_type: 'PHYSICAL' or 'EFFECTIVE'.
        patient: PatientName, PatientID, PatientBirthDate and PatientSex.
        study: StudyInstanceUID, StudyDate, StudyTime, StudyID and AccessionNumber.
    """

    frame_of_reference: str = ""
    plans: tuple[str, ...] = ()
    summation: str = "PLAN"
    dose_type: str = "PHYSICAL"
    patient: tuple[str, str, str, str] = ("", "", "", "")
    study: tuple[str, str, str, str, str] = ("", "", "", "", "")


@dataclass(frozen=True, eq=False)
class Dose:
    """A dose distribution.

    Args:
        values: Gy, finite, not negative, not zero everywhere.
        grid: where the voxels are.
        mask: the voxels to fit, or None for all of them.
        plan: what a DICOM file says about its plan; None for other formats.
        source: name of the file, for messages and provenance.

    Raises:
        InputError: negative, missing or impossible values, or shapes that do not fit.
    """

    values: Float[Tensor, "n0 n1 n2"]
    grid: Grid
    mask: Bool[Tensor, "n0 n1 n2"] | None = None
    plan: PlanFacts | None = None
    source: str = ""

    kind = "dose"
    unit = "Gy"

    def __post_init__(self) -> None:
        Scan(self.values, self.grid, self.unit, self.mask, source=self.source)  # shape, finiteness and mask
        low, high = float(self.values.min()), float(self.values.max())
        if low < 0:
            count = int((self.values < 0).sum())
            raise InputError(
                f"{count} voxels have a negative dose, the lowest {low:.4g} Gy",
                where=self.source,
                fix="export the dose itself: a difference of two plans, or a dose error, is none",
            )
        if high == 0:
            raise InputError("the dose is zero everywhere", where=self.source)
        if high > HIGHEST_GY:
            raise InputError(
                f"the highest dose is {high:.4g} Gy, which no treatment gives",
                where=self.source,
                fix="say in which unit the values are: --unit cGy",
            )

    @property
    def highest_gy(self) -> float:
        return float(self.values.max())


def add_doses(first: Dose, second: Dose) -> Dose:
    """The sum of two doses on one grid.

    Raises:
        InputError: they lie on different grids, or in different frames of reference.
    """
    first.grid.check_same(
        second.grid, mine="first dose", theirs="second dose", fix="render both on one grid, or map one to the other"
    )
    if first.plan is not None and second.plan is not None:
        check_frames(first.plan.frame_of_reference, second.plan.frame_of_reference, "the two doses", second.source)
    return Dose(first.values + second.values, first.grid, source=f"{first.source} + {second.source}")


def check_frames(mine: str, theirs: str, what: str, where: str) -> None:
    """Raises `InputError` where two objects state different DICOM frames of reference."""
    if mine and theirs and mine != theirs:
        raise InputError(
            f"{what} have different frames of reference: {mine} and {theirs}",
            where=where,
            fix="give files of one planning CT; for two CTs, register them and map one to the other first",
        )


def shared_frame(dose: Dose) -> str:
    """The UID of a dose's frame of reference; '' where its format has none."""
    return "" if dose.plan is None else dose.plan.frame_of_reference


def box_of(dose: Dose) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(first, behind the last) voxel along every axis of the smallest box that holds all dose above zero."""
    ends = []
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        along = (dose.values > 0).any(dim=others[0], keepdim=True).any(dim=others[1], keepdim=True).flatten()
        found = along.nonzero()
        ends.append((int(found[0]), int(found[-1]) + 1))
    a, b, c = ends
    return a, b, c


def cropped(dose: Dose) -> Dose:
    """The dose within `box_of`: outside it, it is zero."""
    slices = tuple(slice(low, high) for low, high in box_of(dose))
    values = dose.values[slices].contiguous()
    grid = dose.grid.part([s.start for s in slices], values.shape)
    mask = None if dose.mask is None else dose.mask[slices]
    if mask is not None and not bool(torch.any(mask)):
        raise InputError("no voxel of the mask has any dose", where=dose.source)
    return Dose(values, grid, mask, dose.plan, dose.source)
