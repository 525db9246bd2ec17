"""The table of numbers under every result: the method, its rivals, one column per measure."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["method", "read-out", "baseline", "class"]


@dataclass(frozen=True)
class Column:
    """One measure. `digits` after the decimal point; `note` says what the number refers to."""

    key: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    note: str = ""
    digits: int = 2


@dataclass
class Row:
    """One image's numbers by column key; a missing key is a number that does not exist for it."""

    name: str
    label: str
    kind: Kind
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """Columns and rows; travels as JSON and prints as text."""

    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add_column(self, column: Column) -> None:
        if column.key not in [c.key for c in self.columns]:
            self.columns.append(column)

    def to_json(self) -> dict[str, Any]:
        return {"columns": [vars(c).copy() for c in self.columns], "rows": [vars(r).copy() for r in self.rows]}

    def to_text(self) -> str:
        """Plain text, one line a row; the best number of a column carries a star, notes stand below.

        Columns called 'measure vs reference' stand under one heading 'vs reference'.
        """
        best = {}
        for column in self.columns:
            values = [row.values[column.key] for row in self.rows if column.key in row.values]
            if column.better and len(values) > 1:
                best[column.key] = max(values) if column.better == "higher" else min(values)
        heads = [_head(column) for column in self.columns]
        lines = [["", *(f"{name} " for _, name in heads)]]
        for row in self.rows:
            cells = []
            for column in self.columns:
                value = row.values.get(column.key)
                star = "*" if value is not None and value == best.get(column.key) else " "
                cells.append("- " if value is None else f"{value:.{column.digits}f}{star}")
            lines.append([row.label, *cells])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        top = " " * widths[0]
        for group, members in itertools.groupby(range(len(heads)), key=lambda k: heads[k][0]):
            chosen = [k + 1 for k in members]
            span = sum(widths[k] for k in chosen) + 2 * (len(chosen) - 1)
            widths[chosen[-1]] += max(0, len(group) + 1 - span)
            span = max(span, len(group) + 1)
            top += "  " + (
                f" {group} ".center(span - 1, "─") + " " if group and len(chosen) > 1 else f"{group} ".rjust(span)
            )
        text = [top.rstrip()] if top.strip() else []
        for line in lines:
            cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            text.append("  ".join(cells).rstrip())
        about: dict[str, list[str]] = {}
        for column in self.columns:
            if column.note:
                about.setdefault(column.note, []).append(column.label)
        notes = [textwrap.fill(f"{', '.join(of)}: {note}", 100, subsequent_indent="  ") for note, of in about.items()]
        return "\n".join([*text, "", *notes] if notes else text)


def _head(column: Column) -> tuple[str, str]:
    """The two lines of a column's heading: ('vs reference', 'PSNR [dB]'), ('held-out', 'residual')."""
    unit = f" [{column.unit}]" if column.unit not in ("", "1") else ""
    name, versus, reference = column.label.partition(" vs ")
    if versus:
        return f"vs {reference}", name + unit
    first, _, last = column.label.rpartition(" ")
    return first, last + unit
