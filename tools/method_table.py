"""The table of methods, from their cards: for the README and for the documentation."""

from __future__ import annotations

from collections.abc import Callable

from scanfield.methods.api import Card, discover


def own_cards() -> list[Card]:
    """Cards of the methods in this package, not of others that happen to be installed; by task, then name."""
    cards = [card for card in discover().values() if card.module.startswith("scanfield.")]
    return sorted(cards, key=lambda card: (card.task, card.name))


def table(link: Callable[[Card], str]) -> str:
    """A Markdown table with one row per method; `link` gives the target behind a method's name."""
    lines = [
        "| Method | Takes | What it does | Choose it when | Paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    for card in own_cards():
        authors = [name.strip() for name in card.authors.replace(" and ", ",").split(",")]
        paper = authors[0].split()[-1] + (" et al. " if len(authors) > 1 else " ") + str(card.year)
        takes = ", ".join(f"`{kind}`" for kind in card.accepts)
        cells = [f"[`{card.name}`]({link(card)})", takes, card.summary, card.choose_when, f"[{paper}]({card.link})"]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
