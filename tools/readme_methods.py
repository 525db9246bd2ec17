"""Keeps the README's table of methods equal to the cards.

`python tools/readme_methods.py --write` rewrites it, `--check` exits with 1 if that would change anything.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from method_table import table

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- methods: begin (written by tools/readme_methods.py from the cards) -->\n"
END = "<!-- methods: end -->\n"


def updated(text: str) -> str:
    """`text` with the table between the two markers replaced by the current one."""
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise SystemExit(f"{README.name} lacks the markers\n{BEGIN}{END}")
    fresh = table(lambda card: "src/" + card.module.replace(".", "/") + ".md")
    return f"{before}{BEGIN}\n{fresh}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if arguments.write:
        README.write_text(new, encoding="utf-8")
    elif new != old:
        print("the README's table of methods is out of date: run python tools/readme_methods.py --write")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
