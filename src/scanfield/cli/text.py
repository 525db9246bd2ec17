"""Plain text for the terminal: folded paragraphs, durations. No imports beyond the standard library."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence


def width(limit: int = 100) -> int:
    """Columns to write in: the terminal's, at most `limit`."""
    return min(limit, shutil.get_terminal_size((limit, 24)).columns)


def paragraph(text: str, indent: str = "") -> str:
    """Text folded to the terminal's width."""
    return hanging(indent, text, indent)


def hanging(lead: str, text: str, indent: str | None = None) -> str:
    """Text folded to the terminal's width, later lines indented as far as `lead` reaches."""
    below = " " * len(lead) if indent is None else indent
    return textwrap.fill(
        " ".join(text.split()), width(), initial_indent=lead, subsequent_indent=below, break_on_hyphens=False
    )


def remarks(warnings: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
    """What a run has to say beside its results, one paragraph each."""
    return [hanging("warning: ", text) for text in warnings] + [hanging("note: ", text) for text in notes]


def voxel_text(shape: Sequence[int], spacing_mm: Sequence[float]) -> str:
    """'512 x 512 x 1 voxels of 0.88 x 0.88 x 3 mm'."""
    size = " x ".join(map(str, shape))
    return f"{size} voxels of " + " x ".join(f"{s:.4g}" for s in spacing_mm) + " mm"


def duration(seconds: float) -> str:
    """'4.2 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
