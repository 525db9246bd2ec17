"""Tables that people write: CSV files whose first line names the columns.

A byte order mark, blanks around names and values, columns in any order and further columns are all right. Rows are
counted from 1, the line below the header; empty lines do not count.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scanfield.data.guard import existing_file
from scanfield.errors import InputError, nearest


@dataclass(frozen=True)
class TableRow:
    """One row: its values by column, '' where there is none, and where it stands, for messages."""

    values: dict[str, str]
    where: str


def read_table(path: str | Path, required: Sequence[str], *, what: str = "the table") -> list[TableRow]:
    """The rows of a CSV file.

    Args:
        required: columns that it must have.
        what: how messages call it.

    Raises:
        InputError: the file is missing or no CSV in UTF-8; a column is missing or there twice; a row has more values
            than there are columns.
    """
    path = existing_file(path)
    fix = f"its first line names the columns: {','.join(required)}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = [name.strip() for name in reader.fieldnames or []], list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read as CSV: {error}", where=str(path), fix="save it as CSV") from None
    for name in required:
        if name not in columns:
            raise InputError(f"{what} has no column '{name}'{nearest(name, columns)}", where=str(path), fix=fix)
    for k, name in enumerate(columns):
        if name and name in columns[:k]:
            raise InputError(f"{what} has the column '{name}' twice", where=str(path), fix=fix)
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        if None in row:
            raise InputError(
                "the row has more values than the table has columns",
                where=where,
                fix="put values with a comma into quotes",
            )
        found.append(TableRow({name.strip(): str(value or "").strip() for name, value in row.items()}, where))
    return found
