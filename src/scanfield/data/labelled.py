"""Images with label maps: what a network for segmentation learns from, and what is refused before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from scanfield.data.cohort import Cohort, Member, Recent
from scanfield.data.guard import located
from scanfield.data.labels import LabelTable
from scanfield.data.nifti import nifti_layout, read_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Labelled:
    """An image, and the class index of every voxel, (n0, n1, n2) uint8 on the image's grid."""

    image: Scan
    classes: UInt8[Tensor, "n0 n1 n2"]


class LabelledImages(Recent[T]):
    """Images of some members with their label maps, each read and prepared when it is asked for.

    Args:
        members: whose images; all have a label map.
        table: class indices are rows of this table.
        prepare: what becomes of a labelled image before it is kept, such as `lambda labelled: labelled`.
        keep: how many prepared images stay in memory.

    Raises:
        InputError: when an image is asked for: as `read_labelled`.
    """

    def __init__(
        self, members: Sequence[Member], table: LabelTable, *, prepare: Callable[[Labelled], T], keep: int = 64
    ) -> None:
        self.members, self.table = tuple(members), table
        super().__init__(len(self.members), lambda k: prepare(read_labelled(self.members[k], table)), keep=keep)


def read_labelled(member: Member, table: LabelTable) -> Labelled:
    """A member's image with its label map.

    Raises:
        InputError: it has no label map, or one on another grid, or one with values outside the table.
    """
    label = _label_of(member, member.path.name)
    image = read_nifti(member.path)
    image.grid.check_same(label.grid, mine=f"image '{member.path.name}'", theirs=f"label map '{_name(member)}'")
    return Labelled(image, table.indices(label.values, where=label.source))


def label_table(cohort: Cohort) -> LabelTable:
    """The cohort's own table, or one of the values in the label maps to learn from, called 'label 3'.

    Raises:
        InputError: a row of the split 'train' has no label map; the values are no labels, or all are background.
    """
    if cohort.labels is not None:
        return cohort.labels
    values: set[int] = set()
    for where, member in _rows(cohort):
        if member.split == "train":
            label = _label_of(member, where)
            found = label.values.unique()
            if not bool((found == found.round()).all()) or float(found.min()) < 0:
                raise InputError("label values are integers from 0 on, others were found", where=label.source)
            values |= {int(value) for value in found.tolist()}
    if not values - {0}:
        raise InputError("the label maps of the split 'train' hold background only", where=cohort.source)
    with located(cohort.source):
        return LabelTable.of_values(values)


def check_labelled(cohort: Cohort) -> None:
    """Reads every label map, and every image's header, so that nothing is found wrong in the middle of a training.

    Raises:
        InputError: a row without a label map; an image of several channels; an image and its label map on different
            grids; label values outside the table; a class (beside the background) that no image to learn from shows.
    """
    for where, member in _rows(cohort):
        if member.label is None:
            raise _no_label(member, where)
        with located(where):
            layout = nifti_layout(member.path)
            if len(layout.shape) > 3:
                raise InputError(
                    f"image '{member.path.name}' has {layout.shape[3]} channels", fix="extract one of them"
                )
            own = nifti_layout(member.label).grid
            layout.grid.check_same(own, mine=f"image '{member.path.name}'", theirs=f"label map '{_name(member)}'")
    table = label_table(cohort)
    voxels = np.zeros(len(table), dtype=np.int64)
    for where, member in _rows(cohort):
        label = _label_of(member, where)
        try:
            classes = table.indices(label.values)
        except InputError as error:
            fix = error.fix if cohort.labels is not None else "name all classes in a table and give it as --labels"
            raise InputError(f"'{_name(member)}': {error.what}", where=where, fix=fix) from None
        if member.split == "train":
            voxels += np.bincount(classes.flatten().numpy(), minlength=len(table))
    empty = [f"'{name}' (value {table.values[k]})" for k, name in enumerate(table.names) if k and not voxels[k]]
    if empty:
        raise InputError(
            f"no image of the split 'train' shows the class {', '.join(empty)}",
            where=cohort.source,
            fix="take it out of the label table, or add images that show it",
        )


def _rows(cohort: Cohort) -> Iterator[tuple[str, Member]]:
    """Members, and where each is listed."""
    for number, member in enumerate(cohort.members, 1):
        yield f"{cohort.source}: row {number}", member


def _label_of(member: Member, where: str) -> Scan:
    if member.label is None:
        raise _no_label(member, where)
    return read_nifti(member.label)


def _no_label(member: Member, where: str) -> InputError:
    what = f"the image '{member.path.name}' has no label map"
    return InputError(what, where=where, fix="name it in the column 'label' of the cohort's table")


def _name(member: Member) -> str:
    assert member.label is not None
    return member.label.name
