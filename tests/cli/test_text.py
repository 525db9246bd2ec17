"""Paragraphs and durations."""

import pytest

from scanfield.cli.text import duration, hanging, paragraph


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_paragraphs_are_folded_and_never_broken_at_hyphens(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    lines = paragraph("a sparse-view scan of the chest, re-projected to dense views", "  ").split("\n")
    assert max(map(len, lines)) <= 30 and all(line.startswith("  ") for line in lines)
    assert "sparse-view" in lines[0] and not any(line.endswith("-") for line in lines)


def test_later_lines_hang_below_the_lead(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert hanging("note: ", "one two three four").split("\n") == ["note: one two three", "      four"]
