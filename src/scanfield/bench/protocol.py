"""What a benchmark protocol returns: a table on real data and the orderings a paper claims, as checks with margins.

A protocol is a module `bench/protocols/<method>.py` with a docstring and `run(run: Run) -> BenchResult`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scanfield.errors import InputError


@dataclass(frozen=True)
class Check:
    """One claim: `value` must be at least ('>=') or at most ('<=') `threshold`; both in `unit`."""

    name: str
    value: float
    threshold: float
    sense: Literal[">=", "<="] = ">="
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold if self.sense == ">=" else self.value <= self.threshold

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "threshold": self.threshold,
            "sense": self.sense,
            "unit": self.unit,
            "passed": self.passed,
        }


@dataclass
class BenchResult:
    """Rows of the table (units in the keys), checks, and notes a reader of the numbers needs."""

    table: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def data_path(relative: str) -> Path:
    """A file of the benchmark data, which the environment variable SCANFIELD_DATA points to.

    Raises:
        InputError: the variable is unset or the file is missing.
    """
    root = os.environ.get("SCANFIELD_DATA")
    if not root:
        raise InputError(
            "this benchmark needs data that do not ship with the package",
            fix="set SCANFIELD_DATA to the folder with the benchmark data",
        )
    path = Path(root) / relative
    if not path.is_file():
        raise InputError(f"the benchmark data lack {relative}", where=root)
    return path
