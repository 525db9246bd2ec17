"""The convergence figure of a report: loss terms and the held-out residual of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.report.record import Event
from scanfield.report.style import (
    HELD_OUT,
    INK,
    LINES,
    MUTED,
    NORMAL,
    SMALL,
    WIDTH_MM,
    new_figure,
    plain,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000  # drawn per curve, or for all curves of many stages
MAX_STAGES = 3  # beside each other


def convergence_figure(events: Sequence[Event], *, width_mm: float = WIDTH_MM) -> Figure:
    """Loss terms and the residual on held-out measurements against the step.

    One column of axes a stage; more than `MAX_STAGES` stages (a volume fitted slice by slice) share one column, a thin
    line each. Loss terms on a logarithmic scale unless one is negative; seconds along the top.

    Args:
        events: in the order of stages and steps, at least one.
    """
    stages = {name: [e for e in events if e.stage == name] for name in dict.fromkeys(e.stage for e in events)}
    columns = [{name: own} for name, own in stages.items()] if len(stages) <= MAX_STAGES else [stages]
    with_held_out = any(event.held_out is not None for event in events)
    height_mm = 74.0 if with_held_out else 52.0
    figure = new_figure(width_mm, height_mm)
    ratios = (2, 1.25) if with_held_out else (1,)
    spec = figure.add_gridspec(
        len(ratios), len(columns), height_ratios=ratios, hspace=0.12, wspace=0.28,
        left=15 / width_mm, right=1 - 4 / width_mm, bottom=10 / height_mm, top=1 - 13 / height_mm,
    )  # fmt: skip
    names = list(dict.fromkeys(name for event in events for name in event.loss))
    colours = {name: LINES[k % len(LINES)] for k, name in enumerate(names)}
    for number, shown in enumerate(columns):
        axes = figure.add_subplot(spec[0, number])
        for name in names:
            curves = [[(e.step, e.loss[name]) for e in own if name in e.loss] for own in shown.values()]
            _curves(axes, curves, colours[name], label=shortened(name, 24))
        values = [value for own in shown.values() for event in own for value in event.loss.values()]
        if any(value > 0 for value in values) and not any(value < 0 for value in values):
            logarithmic(axes)
        title = next(iter(shown)) if len(shown) == 1 else f"{len(shown)} stages, a line each"
        style: dict[str, Any] = {"fontsize": NORMAL, "fontweight": "bold", "color": INK, "parse_math": False}
        axes.set_title(shortened(title, 60), loc="left", pad=3, **style)
        if len(shown) == 1:
            _seconds_axis(axes, shown[title])
        _finish(axes, "loss terms" if number == 0 else "")
        below = axes
        if with_held_out:
            axes.tick_params(labelbottom=False)
            below = figure.add_subplot(spec[1, number], sharex=axes)
            residuals = [[(e.step, e.held_out) for e in own if e.held_out is not None] for own in shown.values()]
            _curves(below, residuals, HELD_OUT, marker="D", markersize=1.8 if len(shown) == 1 else 0.5)
            if len(shown) == 1 and residuals[0]:
                best = min(residuals[0], key=lambda point: point[1])
                below.plot(*best, marker="o", color="none", markeredgecolor=INK, markersize=5, markeredgewidth=0.7)
            if min((value for curve in residuals for _, value in curve), default=0.0) > 0:
                logarithmic(below)
            _finish(below, "held-out residual" if number == 0 else "")
        below.set_xlabel("step", fontsize=SMALL, labelpad=1)
        for text in axes.legend(fontsize=SMALL, frameon=False, loc="best").get_texts():
            text.set_parse_math(False)
    return figure


def _curves(
    axes: Axes, curves: Sequence[Sequence[tuple[Any, ...]]], colour: str, label: str = "", **style: Any
) -> None:
    """The same quantity of one or many stages in one colour, named once."""
    many = len(curves) > 1
    for curve in curves:
        if curve:
            steps, values = zip(*_thinned(curve, max(50, MAX_POINTS // len(curves))), strict=True)
            axes.plot(steps, values, color=colour, linewidth=0.4 if many else 0.9, alpha=0.5 if many else 1.0, **style)
    if label and any(curves):
        axes.plot([], [], color=colour, linewidth=0.9, label=label)


def logarithmic(axes: Axes) -> None:
    """Logarithmic scale with plain numbers, also between powers of ten where only few of those are in view."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _thinned(curve: Sequence[tuple[Any, ...]], points: int) -> Sequence[tuple[Any, ...]]:
    stride = -(-len(curve) // points)
    return curve if stride == 1 else [*curve[:-1:stride], curve[-1]]


def _seconds_axis(axes: Axes, events: Sequence[Event]) -> None:
    steps = np.array([event.step for event in events], dtype=float)
    seconds = np.array([event.seconds for event in events])
    if len(steps) < 2 or (np.diff(seconds) < 0).any() or not seconds.max() > 0:
        return
    top = axes.secondary_xaxis("top")
    places = np.linspace(steps[0], steps[-1], 5)
    digits = 0 if seconds[-1] - seconds[0] >= 20 else 1
    top.set_xticks(places, [f"{value:.{digits}f}" for value in np.interp(places, steps, seconds)])
    top.tick_params(labelsize=SMALL - 0.5, width=0.4, length=2, pad=1, colors=MUTED)
    top.set_xlabel("seconds", fontsize=SMALL - 0.5, labelpad=2, color=MUTED)
    for spine in top.spines.values():
        spine.set_linewidth(0.4)


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, fontsize=SMALL, color=INK, parse_math=False)
    axes.grid(color="#d8dee4", linewidth=0.4)
    plain(axes)
    axes.tick_params(which="minor", width=0.3, length=1.2, labelsize=SMALL - 1)
