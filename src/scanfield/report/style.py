"""The look of every figure: sizes, colours, empty figures and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM = 1 / 25.4
WIDTH_MM = 180.0  # the text width of a two-column journal page
DPI = 220
ERROR_MAP = "RdBu_r"
WITHIN_PERCENT = 98  # of the errors lie within the error maps' scale
INK, MUTED = "#1b1f24", "#57606a"
# Okabe and Ito's palette: told apart with any colour vision.
LINES = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HELD_OUT = "#D55E00"
SMALL, NORMAL = 6.5, 7.5  # points


def new_figure(width_mm: float, height_mm: float) -> Figure:
    """An empty white figure of that size on paper, with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_mm * MM, height_mm * MM), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """Thin lines and small ticks."""
    axes.tick_params(labelsize=SMALL - 0.5, width=0.4, length=2, colors=INK)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def shortened(text: str, letters: int) -> str:
    """The text in at most that many letters, white space folded."""
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: max(1, letters - 1)].rstrip() + "…"
