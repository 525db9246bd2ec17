"""The table in print, and sentences made from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scanfield.report.numbers import Cell, cells, decimals, findings, number
from scanfield.report.record import Column, Picture, Record, Row

PSNR_A = Column("psnr_db:original", "PSNR vs original", "dB", "higher", "", None)
PSNR_B = Column("psnr_db:dense", "PSNR vs dense FBP", "dB", "higher", "", None)
NRMSE_A = Column("nrmse:original", "NRMSE vs original", "", "lower", "", None)
NRMSE_B = Column("nrmse:dense", "NRMSE vs dense FBP", "", "lower", "", None)
TIME = Column("seconds", "time", "s", "", "", 1)


def _row(name: str, kind: str, **values: float) -> Row:
    return Row(name.lower(), name, kind, {key.replace("__", ":"): value for key, value in values.items()})


def _record(columns: list[Column], rows: list[Row]) -> Record:
    references = (
        Picture("original", "original", "reference", "", (np.eye(2),)),
        Picture("dense", "dense FBP", "reference", "which shares its final operator with SCOPE", (np.eye(2),)),
    )
    return Record({}, tuple(columns), tuple(rows), None, (), references, None, ())


ROWS = [
    _row("SCOPE", "method", psnr_db__original=30.0, psnr_db__dense=40.0, nrmse__original=0.2, nrmse__dense=0.01),
    _row("TV", "baseline", psnr_db__original=31.25, psnr_db__dense=35.5, nrmse__original=0.1, nrmse__dense=0.02),
    _row("FBP", "baseline", psnr_db__original=20.0, nrmse__original=0.5, seconds=0.3),
]


def test_best_values_by_direction_and_missing_values() -> None:
    body = cells([PSNR_A, PSNR_B, NRMSE_A, TIME], ROWS)
    assert body[0] == [Cell("30.00", False), Cell("40.00", True), Cell("0.200", False), Cell("–", False)]
    assert body[1] == [Cell("31.25", True), Cell("35.50", False), Cell("0.100", True), Cell("–", False)]
    assert body[2] == [Cell("20.00", False), Cell("–", False), Cell("0.500", False), Cell("0.3", False)]


def test_values_that_print_alike_are_all_best_and_a_lone_value_is_not() -> None:
    rows = [_row("A", "method", psnr_db__original=30.001), _row("B", "baseline", psnr_db__original=30.002)]
    assert [line[0].best for line in cells([PSNR_A], rows)] == [True, True]
    assert [line[0].best for line in cells([PSNR_A], rows[:1])] == [False]


@pytest.mark.parametrize(
    ("values", "column", "digits"),
    [
        ([31.234], PSNR_A, 2),
        ([0.0123, 0.5], NRMSE_A, 4),
        ([123.0, 45.0], NRMSE_A, 1),
        ([12345.0], NRMSE_A, 0),
        ([1e-7], NRMSE_A, None),
        ([0.0, math.inf], NRMSE_A, 0),
        ([3.14], TIME, 1),
        ([0.014], TIME, 4),  # too small for one decimal
    ],
)
def test_decimals(values: list[float], column: Column, digits: int | None) -> None:
    assert decimals(values, column) == digits


def test_numbers_in_print() -> None:
    assert number(math.inf, 2) == "∞"
    assert number(-1.5, 1) == "−1.5"
    assert number(1.5e-7, None) == "1.50e−07"


def test_a_ranking_that_depends_on_the_reference_is_said_in_words() -> None:
    first, second, third = findings(_record([PSNR_A, NRMSE_A, PSNR_B, NRMSE_B], ROWS))
    assert first == (
        "The ranking by PSNR depends on the reference: against the original, TV wins (31.25 dB, then SCOPE with "
        "30.00 dB); against the dense FBP, which shares its final operator with SCOPE, SCOPE wins (40.00 dB, then TV "
        "with 35.50 dB)."
    )
    assert second == "So does the ranking by NRMSE (TV against the original; SCOPE against the dense FBP)."
    assert third == (
        "By PSNR, SCOPE takes place 2 of 3 against the original (1.25 dB behind TV); "
        "place 1 of 2 against the dense FBP (4.50 dB before TV)."
    )


def test_a_ranking_that_does_not_depend_on_the_reference_is_only_placed() -> None:
    rows = [
        _row("SCOPE", "method", psnr_db__original=32.0, psnr_db__dense=33.0),
        _row("TV", "baseline", psnr_db__original=31.0, psnr_db__dense=32.0),
    ]
    (only,) = findings(_record([PSNR_A, PSNR_B], rows))
    assert only.startswith("By PSNR, SCOPE takes place 1 of 2 against the original (1.00 dB before TV)")


def test_the_held_out_residual_places_the_method_too() -> None:
    residual = Column("held_out", "held-out residual", "1", "lower", "", 4)
    rows = [
        _row("SCOPE", "method", held_out=0.02, psnr_db__original=30.0),
        _row("TV", "baseline", held_out=0.0225, psnr_db__original=31.25),
    ]
    assert findings(_record([residual, PSNR_A], rows)) == [
        "By held-out residual, SCOPE takes place 1 of 2 (0.0025 before TV).",
        "By PSNR, SCOPE takes place 2 of 2 against the original (1.25 dB behind TV).",
    ]


def test_findings_without_reference_method_or_rivals() -> None:
    residual = Column("held_out", "held-out residual", "1", "lower", "", 4)
    rows = [_row("SCOPE", "method", held_out=0.02), _row("TV", "baseline", held_out=0.01)]
    assert findings(_record([residual], rows)) == ["By held-out residual, SCOPE takes place 2 of 2 (0.0100 behind TV)."]
    assert findings(_record([residual], rows[1:])) == []
    assert findings(_record([TIME], ROWS)) == []
    assert findings(_record([], [])) == []


def test_equal_infinite_values_are_level() -> None:
    rows = [_row(n, k, psnr_db__original=math.inf) for n, k in (("A", "method"), ("B", "baseline"))]
    assert findings(_record([PSNR_A], rows)) == ["By PSNR, A takes place 1 of 2 against the original (level with B)."]


def test_columns_that_name_no_reference_image_are_not_called_references() -> None:
    columns = [
        Column("psnr_db:fitted", "PSNR, fitted", "dB", "higher", "", None),
        Column("psnr_db:held-out", "PSNR, held out", "dB", "higher", "", None),
    ]
    rows = [
        _row("SIREN", "method", psnr_db__fitted=50.0, **{"psnr_db__held-out": 30.0}),
        _row("cubic", "baseline", psnr_db__fitted=40.0, **{"psnr_db__held-out": 33.0}),
    ]
    assert findings(_record(columns, rows)) == ["By PSNR, fitted, SIREN takes place 1 of 2 (10.00 dB before cubic)."]
