"""One figure of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Plate:
    """One figure on the page: its file stem, alternative text and caption; a GIF to show in its place."""

    name: str
    figure: Any
    alt: str
    caption: str
    animation: bytes = b""
