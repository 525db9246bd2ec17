"""Which number of a label map means what: a table of values and names, with the background first.

Networks count classes 0, 1, 2, ...; files hold any numbers (0, 17, 53). The class index of a voxel is the row of its
value in the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Num, UInt8
from torch import Tensor

from scanfield.data.tables import read_table
from scanfield.data.write import write_atomically
from scanfield.errors import InputError

MOST = 255  # classes beside the background: an index is one byte
COLUMNS = ("value", "name")
_PART = 2**18  # voxels that are looked up at once
_SMALL = 2**16  # values below that are looked up in a table of all of them
_SINGLE = 2**24  # from here on float32 leaves integers out


@dataclass(frozen=True)
class LabelTable:
    """The classes of a segmentation: row k is class index k, row 0 the background.

    Args:
        values: what a label map holds for each class; the first is 0.
        names: what they are called.

    Raises:
        InputError: the first value is not 0; a value is negative, or a value or name is there twice or missing; there
            is no class beside the background, or more than 255.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.names):
            raise InputError(f"a label table has {len(self.values)} values, but {len(self.names)} names")
        if not self.values or self.values[0] != 0:
            raise InputError("the first row of a label table is the background, value 0")
        if not 2 <= len(self.values) <= MOST + 1:
            raise InputError(f"a label table has 1 to {MOST} classes beside the background, got {len(self.values) - 1}")
        for kind, found in (("value", self.values), ("name", self.names)):
            twice = {str(entry) for k, entry in enumerate(found) if entry in found[:k]}
            if twice:
                raise InputError(f"a label table has the {kind} '{min(twice)}' twice")
        if min(self.values) < 0 or max(self.values) >= 2**31:
            raise InputError(f"label values lie in 0..{2**31 - 1}, got {min(self.values)}..{max(self.values)}")
        if not all(name.strip() for name in self.names):
            raise InputError(f"the label value {self.values[self.names.index('')]} has no name")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest integer type that holds all values."""
        return torch.uint8 if max(self.values) < 2**8 else torch.int16 if max(self.values) < 2**15 else torch.int32

    def indices(self, values: Num[Tensor, "*n"], *, where: str = "") -> UInt8[Tensor, "*n"]:
        """Class indices of a label map's values.

        Args:
            where: the file, for the message.

        Raises:
            InputError: a value is not in the table, or no integer, or too large for the type that holds it.
        """
        flat = values.reshape(-1)
        if flat.dtype == torch.float32 and flat.numel() and float(flat.max()) >= _SINGLE:  # as images are read
            raise InputError(
                f"label values of {_SINGLE} and more are not told apart in single precision",
                where=where,
                fix="give the classes smaller values, in the label map and in its table",
            )
        indices = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
        lookup, outside = self._lookup(flat.device), []
        for part, out in zip(flat.split(_PART), indices.split(_PART), strict=True):
            whole = part.long()  # of 2.5, NaN and what no integer holds it makes something else
            rows = lookup(whole)
            strange = (rows < 0) | (whole != part)
            if bool(strange.any()):
                outside.append(part[strange].unique())
            out.copy_(rows)
        if outside:
            strangers = torch.cat(outside).unique().tolist()
            listed = ", ".join(map(_digits, strangers[:5])) + (", ..." if len(strangers) > 5 else "")
            raise InputError(
                f"label values outside the table: {listed}; it has {', '.join(map(str, self.values))}",
                where=where,
                fix="add them to the label table (columns value,name), or correct the label map",
            )
        return indices.reshape(values.shape)

    def _lookup(self, device: torch.device) -> Callable[[Int[Tensor, " n"]], Int[Tensor, " n"]]:
        """Values -> rows of the table, -1 where a value is not in it; a time per value that does not depend on them."""
        top = max(self.values)
        if top < _SMALL:
            table = torch.full((top + 3,), -1, dtype=torch.int16, device=device)  # one more on both sides: outside
            table[torch.tensor(self.values, device=device) + 1] = torch.arange(len(self)).to(table)
            return lambda values: table[values.clamp(-1, top + 1) + 1]
        known, order = torch.tensor(self.values, device=device).sort()

        def searched(values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
            place = torch.searchsorted(known, values).clamp(max=len(known) - 1)
            return torch.where(known[place] == values, order[place], -1)

        return searched

    def values_of(self, indices: Int[Tensor, "*n"] | UInt8[Tensor, "*n"]) -> Int[Tensor, "*n"] | UInt8[Tensor, "*n"]:
        """What a file holds for class indices, in the type `dtype`."""
        return torch.tensor(self.values, dtype=self.dtype, device=indices.device)[indices.long()]

    def to_json(self) -> dict[str, Any]:
        return {"values": list(self.values), "names": list(self.names)}

    @staticmethod
    def from_json(facts: Any) -> LabelTable:
        try:
            values, names = tuple(int(v) for v in facts["values"]), tuple(str(name) for name in facts["names"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a label table needs 'values' and 'names': {error!r}") from None
        return LabelTable(values, names)

    @staticmethod
    def of_values(values: Iterable[int]) -> LabelTable:
        """A table for values without names: 'background', 'label 3', ...; in ascending order, 0 is always there."""
        others = sorted(set(values) - {0})
        return LabelTable((0, *others), ("background", *(f"label {value}" for value in others)))


def _digits(value: float) -> str:
    """All digits of an integer, where a file's type holds them."""
    return str(int(value)) if abs(value) < 2**53 and value == int(value) else f"{value:g}"


def read_label_table(path: str | Path) -> LabelTable:
    """The table in a CSV file with the columns `value` and `name`; further columns are left alone.

    Value 0 comes first, wherever its row is; where there is none, it is 'background'.

    Raises:
        InputError: the file is no such table (see `data.tables.read_table`), or what it says is none.
    """
    entries: list[tuple[int, str]] = []
    for row in read_table(path, COLUMNS, what="the label table"):
        try:
            entries.append((int(row.values["value"]), row.values["name"]))
        except ValueError:
            raise InputError(f"a label value is an integer, got '{row.values['value']}'", where=row.where) from None
    if all(value != 0 for value, _ in entries):
        entries.append((0, "background"))
    entries.sort(key=lambda entry: entry[0] != 0)
    try:
        return LabelTable(tuple(value for value, _ in entries), tuple(name for _, name in entries))
    except InputError as error:
        raise InputError(error.what, where=str(path), fix=error.fix) from None


def write_label_table(path: str | Path, table: LabelTable) -> None:
    """Writes the table as CSV, columns `value` and `name`, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(table.values, table.names, strict=True))
    with write_atomically(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
