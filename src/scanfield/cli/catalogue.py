"""`scanfield list`, `show` and `cite`: the methods' cards. No torch in here, nor in what it imports."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

from scanfield.cli.parser import Parser, add_json, one_of
from scanfield.cli.text import hanging, paragraph
from scanfield.methods import api


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield list`, `show` or `cite` and returns the exit code."""
    return {"list": _list, "show": _show, "cite": _cite}[argv[0]](argv[1:])


def _list(argv: Sequence[str]) -> int:
    parser = Parser("scanfield list", "Lists the methods, by task.")
    parser.add_argument(
        "--task", type=one_of(*api.TASKS), metavar="TASK", help=f"only this task: {', '.join(api.TASKS)}"
    )
    add_json(parser)
    args = parser.parse(argv)
    cards = [card for card in api.discover().values() if args.task in (None, card.task)]
    cards.sort(key=lambda card: (api.TASKS.index(card.task), card.name))
    if args.json:
        print(json.dumps([_facts(card) for card in cards], indent=2, ensure_ascii=False))
        return 0
    if not cards:
        print(f"There is no method for the task '{args.task}' yet.")
        return 0
    size = max(len(card.name) for card in cards) + 2
    for task, group in itertools.groupby(cards, key=lambda card: card.task):
        print(task)
        for card in group:
            text = f"{card.summary} Takes {', '.join(card.accepts)}."
            print(hanging(f"  {card.name:<{size}}{card.year}  ", text))
        print()
    print("`scanfield show METHOD` tells when to choose it, and when not.")
    return 0


def _show(argv: Sequence[str]) -> int:
    parser = Parser("scanfield show", "Shows a method's card: what it does, when to choose it, and when not.")
    parser.add_argument("method", metavar="METHOD")
    add_json(parser)
    args = parser.parse(argv)
    card = api.card(args.method)
    if args.json:
        print(json.dumps(_facts(card), indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _show_rich(card)
    else:
        print(_head(card))
        print()
        print(card.text)
    return 0


def _head(card: api.Card) -> str:
    return "\n".join(
        [
            card.name,
            paragraph(card.title, "  "),
            paragraph(card.authors, "  "),
            f"  {card.venue}, {card.year}",
            *([f"  {card.link}"] if card.link else []),
            "",
            paragraph(card.summary),
            "",
            f"Task:  {card.task}",
            f"Takes: {', '.join(card.accepts)}",
            "",
            "Choose it when",
            paragraph(card.choose_when, "  "),
            "Choose another when",
            paragraph(card.choose_not_when, "  "),
        ]
    )


def _show_rich(card: api.Card) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(100, Console().width))
    console.print(_head(card), markup=False, highlight=False)
    console.print()
    console.print(Markdown(card.text))


def _cite(argv: Sequence[str]) -> int:
    parser = Parser(
        "scanfield cite", "Prints the BibTeX of a method's paper.", examples=["scanfield cite scope >> refs.bib"]
    )
    parser.add_argument("method", metavar="METHOD")
    add_json(parser)
    args = parser.parse(argv)
    card = api.card(args.method)
    facts = {"method": card.name, "citation": card.citation, "link": card.link, "bibtex": card.bibtex.strip()}
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else card.bibtex.strip())
    return 0


def _facts(card: api.Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "task": card.task,
        "title": card.title,
        "authors": card.authors,
        "year": card.year,
        "venue": card.venue,
        "link": card.link,
        "accepts": list(card.accepts),
        "summary": card.summary,
        "choose_when": card.choose_when,
        "choose_not_when": card.choose_not_when,
    }
