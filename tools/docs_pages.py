"""Pages of the documentation that are made, not written, so that they cannot drift from the code.

    methods/<name>.md       one page per card, with the numbers last measured for it (benchmarks/results/*.jsonl)
    reference/commands.md   every command's own --help
    reference/<package>.md  every module's docstrings

No method is imported, and torch is not needed.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from method_table import own_cards, table
from scanfield.bench import runner
from scanfield.methods.api import Card

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "scanfield"
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "kernels", "space", "data", "operators", "fields", "losses", "fitting", "codec", "tasks", "methods", "baselines",
    "metrics", "bench", "report", "view", "cli",
)  # fmt: skip


def all_pages() -> dict[str, str]:
    """Path inside the documentation -> Markdown, in the order of the navigation."""
    pages = {"methods/index.md": method_index()}
    pages |= {f"methods/{card.name}.md": method_page(card) for card in own_cards()}
    pages |= {"reference/commands.md": cli_page()}
    return pages | {f"reference/{name}.md": text for name, text in reference_pages().items()}


def method_index() -> str:
    """The table of methods, linked to their pages."""
    return (
        "# Methods\n\nEvery method is one file that reads like its paper's algorithm, beside a card that says what it "
        "does, when to choose it and when not. Numbers on the pages are measured by this package's own benchmarks.\n\n"
        + table(lambda card: f"{card.name}.md")
    )


def method_page(card: Card) -> str:
    """One method's card, followed by what was measured."""
    parts = [
        f"# {card.name}: {card.title}",
        f"{card.authors}. *{card.venue}*, {card.year}." + (f" <{card.link}>" if card.link else ""),
        card.summary,
        f"**Takes** {', '.join(f'`{kind}`' for kind in card.accepts)}. **Task**: {card.task}.",
        f"**Choose it when** {_continue(card.choose_when)}\n\n**Not when** {_continue(card.choose_not_when)}",
        _without_title(card.text),
        "## Settings",
        settings(_source_of(card)),
        "## Measured",
        measured(card.name),
        "## Cite",
        f"```bibtex\n{card.bibtex.strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def settings(source: str) -> str:
    """A method's `Config` as a table: name, type, published value, meaning; read from the source, not imported."""
    rows = ["| Setting | Type | Published | Meaning |", "| --- | --- | --- | --- |"]
    config = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    for field, below in itertools.pairwise([*config.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            has_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            text = _cell(str(below.value.value)) if has_text else ""  # type: ignore[attr-defined]
            name, kind, value = (ast.unparse(node) for node in (field.target, field.annotation, field.value))
            rows.append(f"| `{name}` | `{kind}` | `{value}` | {text} |")
    return (
        "\n".join(rows) + "\n\nOn the command line: `--setting-name VALUE` (`scanfield reconstruct --method M --help`)."
    )


def _source_of(card: Card) -> str:
    return SOURCE.parent.joinpath(*card.module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def measured(method: str) -> str:
    """The last benchmark result of a method: its numbers beside the rivals', and the checks of the paper's claims."""
    path = RESULTS / f"{method}.jsonl"
    if not path.is_file():
        return f"Not measured yet: `scanfield bench run {method}`."
    last = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
    keys = list(dict.fromkeys(key for row in last["table"] for key in row))
    table_rows = ["| " + " | ".join(keys) + " |", "| " + " | ".join("---" for _ in keys) + " |"]
    for row in last["table"]:
        table_rows.append("| " + " | ".join(_number(row.get(key)) for key in keys) + " |")
    checks = ["| Claim | Measured | Required | Holds |", "| --- | --- | --- | --- |"]
    for check in last["checks"]:
        holds = "yes" if check["passed"] else "**no**"
        required = f"{check['sense']} {_number(check['threshold'])} {check['unit']}".rstrip()
        value = f"{_number(check['value'])} {check['unit']}".rstrip()
        checks.append(f"| {_cell(check['name'])} | {value} | {required} | {holds} |")
    machine = last["machine"]
    place = f"{machine['cpu']}, {machine['threads']} threads" if last["device"] == "cpu" else last["device"]
    took = "" if last["seconds"] is None else f"{last['seconds']:.0f} s "  # None: in part kept from an earlier run
    made = (
        f"Measured by `scanfield bench run {method}` on {last['date']}, commit {last['commit'] or 'unknown'}, seed "
        f"{last['seed']}: {took}on {place}, torch {machine['torch']}."
    )
    if runner.changed_since(method, last):
        made += " **The benchmark has changed since**; these are the numbers of the earlier one."
    return "\n".join([*table_rows, "", *checks, "", *(f"- {note}" for note in last["notes"]), "", made])


def reference_pages() -> dict[str, str]:
    """One page per package, with its modules' docstrings in order of the file names; top-level modules come first."""
    pages = {"package": _reference("scanfield", sorted(SOURCE.glob("*.py")))}
    for package in PACKAGES:
        modules = sorted((SOURCE / package).rglob("*.py"))
        if any(_documented(path) for path in modules):
            pages[package] = _reference(f"scanfield.{package}", modules)
    return pages


def _reference(title: str, modules: list[Path]) -> str:
    parts = [f"# {title}"]
    for path in modules:
        if _documented(path):
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
            parts.append(f"## `{name}`\n\n::: {name}\n    options:\n      heading_level: 3")
    return "\n\n".join(parts) + "\n"


def _documented(path: Path) -> bool:
    """Whether a module says anything: empty `__init__` files do not."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is not None


def cli_page() -> str:
    """Every command with its --help, as the terminal shows it."""
    parts = [
        "# Commands",
        "Written by the commands themselves (`--help`). Exit codes: 0 success, 2 the input is wrong, 1 anything else.",
        f"```text\n{_help([])}\n```",
    ]
    for command in command_names():
        parts.append(f"## scanfield {' '.join(command)}\n\n```text\n{_help(command)}\n```")
    return "\n\n".join(parts) + "\n"


def command_names() -> list[list[str]]:
    """Every command, subcommands included, as argument lists."""
    from scanfield.cli import simulate
    from scanfield.cli.main import COMMANDS

    kinds = {"simulate": tuple(simulate.KINDS), "bench": ("list", "run", "compare")}
    return [[name, *kind] for name in COMMANDS for kind in ([], *([k] for k in kinds.get(name, ())))]


def _help(command: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "scanfield", *command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode != 0:
        raise RuntimeError(f"scanfield {' '.join(command)} --help exits with {done.returncode}: {done.stderr}")
    return done.stdout.rstrip()


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else _cell(str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _continue(sentence: str) -> str:
    """A sentence that goes on after other words."""
    text = " ".join(sentence.split())
    return text if len(text) > 1 and text[1].isupper() else text[:1].lower() + text[1:]


def _without_title(text: str) -> str:
    """A card's Markdown without its own title, which the page already has."""
    return re.sub(r"\A# .*\n", "", text).strip()
