"""Cohorts: a table of images of many people, and who is there to learn from, to watch and to judge by.

A CSV file with a header line and the columns

    path      the image, relative to the table's folder
    subject   whom it shows: all images of a person belong to one split
    split     'train', 'validation' or 'test'
    label     optional: the image's label map, relative to the table's folder

Whatever else the table holds is kept with its row. Files are recognised by their SHA-256: the same image or the same
label map in two splits is leakage under any name. So is an image that was saved again, with another header or
compression: its voxels give it away. Images are read when they are asked for, and the last ones are kept.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar, get_args

from scanfield.data.files import checksum
from scanfield.data.labels import LabelTable, read_label_table
from scanfield.data.nifti import nifti_layout, read_nifti
from scanfield.data.scan import Scan
from scanfield.data.tables import read_table
from scanfield.errors import InputError, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED = ("path", "subject", "split")
LABEL = "label"
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One row of a cohort.

    Args:
        path: of the image.
        subject: whom it shows.
        split: what it is for.
        sha256: of the image's file.
        label: path of its label map, if it has one.
        label_sha256: of the label map's file; '' without one.
        more: further columns of the table by name.
    """

    path: Path
    subject: str
    split: Split
    sha256: str
    label: Path | None = None
    label_sha256: str = ""
    more: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """Images of several people, none of them in two splits.

    Args:
        source: the table they are listed in.
        labels: what the numbers of their label maps mean, where that was stated (see `data.labelled.label_table`).
    """

    members: tuple[Member, ...]
    source: str = ""
    labels: LabelTable | None = None

    def part(self, split: Split) -> tuple[Member, ...]:
        """The members of a split, in the order of the table."""
        return tuple(member for member in self.members if member.split == split)

    def record(self) -> list[dict[str, str]]:
        """What a model keeps of its cohort: SHA-256 and split of every image, and of its label map where it has one;
        neither names nor paths."""
        return [
            {"sha256": member.sha256, "split": member.split}
            | ({"label_sha256": member.label_sha256} if member.label_sha256 else {})
            for member in self.members
        ]

    def subjects(self, split: Split) -> int:
        """How many people a split shows."""
        return len({member.subject for member in self.part(split)})


class Recent(Sequence[T], Generic[T]):
    """Things that are made when they are asked for.

    Args:
        count: how many there are.
        make: index -> thing.
        keep: how many stay in memory; the one that was not used for longest goes.
    """

    def __init__(self, count: int, make: Callable[[int], T], *, keep: int = 64) -> None:
        if keep < 1:
            raise ValueError(f"at least one image is kept, got {keep}")
        self.make, self.keep = make, keep
        self._places = range(count)
        self._kept: OrderedDict[int, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> T:  # type: ignore[override]  # no slices: they would read everything
        place = self._places[index]
        if place not in self._kept:
            self._kept[place] = self.make(place)
            if len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]


class Images(Recent[T]):
    """The images of some members, each read and prepared when it is asked for.

    Args:
        members: whose images.
        prepare: what becomes of an image before it is kept.
        keep: how many prepared images stay in memory.
    """

    def __init__(self, members: Sequence[Member], prepare: Callable[[Scan], T], *, keep: int = 64) -> None:
        self.members = tuple(members)
        super().__init__(len(self.members), lambda k: prepare(read_nifti(self.members[k].path)), keep=keep)


def read_cohort(path: str | Path, *, labels: Path | None = None) -> Cohort:
    """The cohort in a table. Reads every file once for its checksum, and the voxels of images that are as large
    as one in another split.

    Args:
        labels: the table of what the label maps' numbers mean (`data.labels.read_label_table`).

    Raises:
        InputError: the table cannot be read, lacks a column or a value, or names a split that does not exist; a file
            is missing or no image; an image is listed twice; a person (names that differ in case or blanks alone are
            one), an image or a label map is in two splits; only one person is there, or nobody to learn from; the
            table of labels is none.
    """
    rows = read_table(path, REQUIRED)
    if not rows:
        raise InputError("the table lists no images", where=str(path))
    cohort = Cohort(
        tuple(_member(row.values, row.where, Path(path).parent) for row in rows),
        str(path),
        None if labels is None else read_label_table(labels),
    )
    _check(cohort)
    return cohort


def _member(values: dict[str, str], where: str, folder: Path) -> Member:
    for name in REQUIRED:
        if not values[name]:
            raise InputError(f"the row has no {name}", where=where)
    split = values["split"]
    for known in SPLITS:
        if split == known:
            image = _file(folder, values["path"], "image", where)
            label = _file(folder, values[LABEL], "label map", where) if values.get(LABEL) else None
            more = {name: value for name, value in values.items() if name not in (*REQUIRED, LABEL)}
            digest = "" if label is None else checksum(label)
            return Member(image, values["subject"], known, checksum(image), label, digest, more)
    raise InputError(f"unknown split '{split}'{nearest(split, SPLITS)}", where=where, fix=f"use {', '.join(SPLITS)}")


def _file(folder: Path, name: str, what: str, where: str) -> Path:
    found = folder / name
    if not found.is_file():
        raise InputError(f"there is no {what} '{name}'", where=where, fix=f"expected at {found}")
    return found


def _check(cohort: Cohort) -> None:
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    people: dict[str, Member] = {}
    for member in cohort.members:
        twin = images.setdefault(member.sha256, member)
        if twin is not member:
            two = f"'{twin.path.name}' ({twin.split}) and '{member.path.name}' ({member.split})"
            raise InputError(f"the same image is listed twice: {two}", where=cohort.source, fix="list every image once")
        if member.label is not None:
            _check_label(member, labels.setdefault(member.label_sha256, member), cohort.source)
        other = people.setdefault(_plain(member.subject), member)
        if other.split != member.split:
            names = " and ".join(f"'{name}'" for name in dict.fromkeys((other.subject, member.subject)))
            raise InputError(
                f"subject {names} is in two splits, {other.split} and {member.split}",
                where=cohort.source,
                fix="put all images of a person into one split",
            )
    if len(people) < 2:
        raise InputError(
            f"all images show one subject, '{next(iter(people))}': nothing can be learned about people",
            where=cohort.source,
            fix="list images of several people",
        )
    if not cohort.part("train"):
        raise InputError("no image is in the split 'train'", where=cohort.source)
    _check_voxels(cohort)


def _plain(name: str) -> str:
    """A name without what spellings differ in: case, blanks, how its letters are encoded, what cannot be seen."""
    seen = (letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join("".join(seen).casefold().split())


def _check_voxels(cohort: Cohort) -> None:
    """No image has the voxels of one in another split."""
    shapes = [nifti_layout(member.path).shape for member in cohort.members]
    splits: dict[tuple[int, ...], set[str]] = {}
    for member, shape in zip(cohort.members, shapes, strict=True):
        splits.setdefault(shape, set()).add(member.split)
    found: dict[str, Member] = {}
    for member, shape in zip(cohort.members, shapes, strict=True):
        if len(splits[shape]) > 1:
            values = read_nifti(member.path, channels=True).values.numpy()
            twin = found.setdefault(hashlib.sha256(str(shape).encode() + values.tobytes()).hexdigest(), member)
            if twin.split != member.split:
                two = f"'{twin.path.name}' ({twin.split}) and '{member.path.name}' ({member.split})"
                raise InputError(f"two images have the same voxels: {two}", where=cohort.source, fix="leave one out")


def _check_label(member: Member, twin: Member, where: str) -> None:
    """Several images of a person may share a label map; maps without any label are equal and tell nothing."""
    assert member.label is not None and twin.label is not None
    if twin.split != member.split and bool(read_nifti(member.label, channels=True).values.any()):
        two = f"'{twin.label.name}' ({twin.split}) and '{member.label.name}' ({member.split})"
        raise InputError(
            f"the same label map is in two splits: {two}", where=where, fix="put what shows the same into one split"
        )
