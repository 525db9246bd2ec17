"""One printed line from a BibTeX entry."""

from __future__ import annotations

import re


def one_line(citation: str) -> str:
    """'Wu et al., Title, Journal 9, 2023' from BibTeX; text that is no BibTeX comes back on one line."""
    if not citation.lstrip().startswith("@"):
        return " ".join(citation.split())
    author = _field(citation, "author")
    names = author.split(" and ")
    first = names[0].split(",")[0] if "," in names[0] else names[0].split(" ")[-1]
    where = _field(citation, "journal") or _field(citation, "booktitle") or _field(citation, "publisher")
    volume = _field(citation, "volume")
    parts = [
        f"{first} et al." if len(names) > 1 else first,
        _field(citation, "title"),
        f"{where} {volume}" if where and volume else where,
        _field(citation, "year"),
    ]
    return ", ".join(part for part in parts if part)


def _field(entry: str, name: str) -> str:
    """A field's value without its outer and inner braces; '' where it is missing."""
    match = re.search(rf"\b{name}\s*=\s*", entry, re.IGNORECASE)
    if match is None:
        return ""
    rest = entry[match.end() :]
    if rest.startswith('"'):
        value = rest[1 : rest.find('"', 1)]
    elif rest.startswith("{"):
        value = rest[1 : _closing(rest)]
    else:
        value = re.split(r"[,}\n]", rest, maxsplit=1)[0]
    return " ".join(value.replace("{", "").replace("}", "").split())


def _closing(text: str) -> int:
    """Where the brace that opens `text` closes; its end where it does not."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return place
    return len(text)
