"""The README's table of methods follows the cards."""

from __future__ import annotations

import pytest

import readme_methods
from method_table import own_cards


def test_only_the_part_between_the_markers_changes() -> None:
    text = f"before\n{readme_methods.BEGIN}| an old row |\n{readme_methods.END}after\n"
    new = readme_methods.updated(text)
    assert new.startswith("before\n") and new.endswith("after\n")
    assert "| an old row |" not in new
    for card in own_cards():
        assert f"[`{card.name}`](src/scanfield/methods/{card.task}/{card.name}.md)" in new
    assert readme_methods.updated(new) == new


def test_missing_markers_are_an_error() -> None:
    with pytest.raises(SystemExit, match="lacks the markers"):
        readme_methods.updated("no table here\n")


def test_the_readme_is_up_to_date() -> None:
    text = readme_methods.README.read_text(encoding="utf-8")
    assert readme_methods.updated(text) == text, "run python tools/readme_methods.py --write"
