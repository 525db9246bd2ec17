"""The table of numbers: how they are written, which is best, and what the ranking says in words.

Every sentence is made from the numbers of the table. Column keys read 'metric' or 'metric:reference'; two columns of
one metric against two references may rank the results differently, and the reader has to be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scanfield.report.record import Column, Picture, Record, Row

ARROWS = {"higher": "↑", "lower": "↓"}
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One number as it is printed; `best` in its column."""

    text: str
    best: bool


def cells(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[Cell]]:
    """The table's body, one list a row. Values that print the same as the best one are best too."""
    body: list[list[Cell]] = [[] for _ in rows]
    for column in columns:
        values = [row.values.get(column.key) for row in rows]
        known = [value for value in values if value is not None]
        digits = decimals(known, column)
        best = None
        if len(known) > 1 and column.better in ARROWS:
            best = number(max(known) if column.better == "higher" else min(known), digits)
        for line, value in zip(body, values, strict=True):
            text = MISSING if value is None else number(value, digits)
            line.append(Cell(text, value is not None and text == best))
    return body


def decimals(values: Sequence[float], column: Column) -> int | None:
    """Decimals that suit all values of a column: its own, else three significant digits; None: exponents.

    Decibels have two decimals. Values too small for the column's own decimals get more.
    """
    if column.unit == "dB":
        return 2
    sizes = [abs(value) for value in values if value != 0 and math.isfinite(value)]
    if not sizes:
        return column.digits or 0
    needed = 2 - math.floor(math.log10(min(sizes)))
    if column.digits is not None and min(sizes) >= 10.0**-column.digits:
        return column.digits
    return None if needed > 6 or max(sizes) >= 1e6 else max(0, needed)


def number(value: float, digits: int | None) -> str:
    """One number with a minus sign and infinity as they are printed in papers."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.2e}" if digits is None else f"{value:.{digits}f}"
    return text.replace("-", "−")


def findings(record: Record) -> list[str]:
    """Sentences on who wins: where the reference decides it, and where the method stands.

    A metric whose winner differs between references is named with winners, runners-up and values; further metrics that
    differ too follow in one sentence. Metrics whose winner is the same everywhere are left to the table.
    """
    groups = _groups(record)
    split = []
    for columns in groups.values():
        places = [(column, order) for column in columns if len(order := _order(column, record.rows)) > 1]
        if len({order[0].name for _, order in places}) > 1:
            split.append(places)
    sentences = []
    if split:
        parts = [
            f"against {_against(record, column, note=True)}, {order[0].label} wins ({_score(column, order[0])}, "
            f"then {order[1].label} with {_score(column, order[1])})"
            for column, order in split[0]
        ]
        sentences.append(f"The ranking by {metric(split[0][0][0])} depends on the reference: {'; '.join(parts)}.")
    if len(split) > 1:
        parts = [
            f"{metric(places[0][0])} ("
            + "; ".join(f"{order[0].label} against {_against(record, column)}" for column, order in places)
            + ")"
            for places in split[1:]
        ]
        sentences.append(f"So does the ranking by {' and by '.join(parts)}.")
    return sentences + _standing(record, groups)


def _standing(record: Record, groups: dict[str, list[Column]]) -> list[str]:
    """Where the method stands: by the first metric against references, and by the first one without."""
    sentences: dict[bool, str] = {}
    for columns in groups.values():
        parts = [place for column in columns if (place := _place(record, column))]
        has_reference = reference(record, columns[0]) is not None
        if parts and has_reference not in sentences:
            heading = metric(columns[0]) if has_reference else columns[0].label
            sentences[has_reference] = f"By {heading}, {record.method_label} takes place {'; place '.join(parts)}."
    return list(sentences.values())


def _place(record: Record, column: Column) -> str:
    """'2 of 5 against the original (1.25 dB behind TV)'; '' where there is nobody to compare the method with."""
    order = _order(column, record.rows)
    place = next((k for k, row in enumerate(order) if row.kind == "method"), None)
    if place is None or len(order) < 2:
        return ""
    other = order[0] if place > 0 else order[1]
    mine, theirs = order[place].values[column.key], other.values[column.key]
    margin = f"{_with_unit(abs(mine - theirs), column)} {'behind' if place > 0 else 'before'}"
    against = f" against {_against(record, column)}" if reference(record, column) else ""
    return f"{place + 1} of {len(order)}{against} ({'level with' if mine == theirs else margin} {other.label})"


def _groups(record: Record) -> dict[str, list[Column]]:
    """Ranked columns; those of one metric against several reference images together."""
    groups: dict[str, list[Column]] = {}
    for column in record.columns:
        if column.better in ARROWS:
            key = column.key if reference(record, column) is None else column.key.partition(":")[0]
            groups.setdefault(key, []).append(column)
    return groups


def _order(column: Column, rows: Sequence[Row]) -> list[Row]:
    having = [row for row in rows if column.key in row.values]
    return sorted(having, key=lambda row: row.values[column.key], reverse=column.better == "higher")


def _score(column: Column, row: Row) -> str:
    return _with_unit(row.values[column.key], column)


def _with_unit(value: float, column: Column) -> str:
    unit = f" {column.unit}" if column.unit not in ("", "1") else ""
    return number(value, decimals([value], column)) + unit


def metric(column: Column) -> str:
    """'PSNR' from 'PSNR vs original': the part of the label before the reference."""
    return column.label.split(" vs ")[0].split(" against ")[0]


def reference(record: Record, column: Column) -> Picture | None:
    """The reference image that a column's key names, if it names one."""
    name = column.key.partition(":")[2]
    return next((picture for picture in record.references if picture.name == name), None)


def _against(record: Record, column: Column, *, note: bool = False) -> str:
    """'the dense-view FBP', with the reference's note as a relative clause where it is asked for."""
    picture = reference(record, column)
    if picture is None:
        return ""
    return f"the {picture.label}" + (f", {picture.note}" if note and picture.note else "")
