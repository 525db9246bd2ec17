"""The figures of a set of fields: mean, standard deviation and error beside each other, and the calibration curve.

They are drawn from the file of the deviation and from `posterior` in run.json. Nothing in these files is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.pictures import colour_bar, edge_letters, scale_bar, show_image
from scanfield.report.plate import Plate
from scanfield.report.record import Record
from scanfield.report.style import INK, LINES, NORMAL, SMALL, WIDTH_MM, new_figure, plain
from scanfield.report.views import View, views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "deviation.nii.gz"
LABELS = {"reference": "against the reference", "held-out": "on held-out data"}
EDGE_MM, GAP_MM, TITLE_MM, BAR_MM, TEXT_MM, MAX_PANEL_MM = 1.0, 3.0, 4.6, 2.6, 12.0, 70.0


@dataclass(frozen=True)
class Curve:
    """One calibration: nominal and observed coverage, and its numbers by name."""

    name: str
    levels: tuple[float, ...]
    observed: tuple[float, ...]
    numbers: dict[str, float]


@dataclass(frozen=True, eq=False)
class PosteriorRecord:
    """What a RUN folder says about a posterior.

    Args:
        views: how the deviation is cut.
        deviation: its cuts, as they stand on screen.
        count: number of samples.
        curves: its calibrations.
    """

    views: tuple[View, ...]
    deviation: tuple[np.ndarray, ...]
    count: int
    curves: tuple[Curve, ...]


def read_posterior(folder: Path, facts: dict[str, Any]) -> PosteriorRecord | None:
    """The figures' data in a RUN folder with the facts of run.json; None where the result is no set of fields.

    Raises:
        InputError: the record is damaged, or its file is missing or damaged.
    """
    value = facts.get("posterior")
    if value is None:
        return None
    try:
        count = int(value["count"])
        curves = tuple(_curve(str(name), entry) for name, entry in value["calibration"].items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = str(folder / "run.json")
        raise InputError(f"'posterior' cannot be read: {error!r}", where=where, fix="repeat the run") from None
    found = read_nifti(folder / FILE)
    planes = views(found.grid.shape, found.grid.affine)
    values = found.values.numpy()
    return PosteriorRecord(planes, tuple(view.cut(values).astype(np.float64) for view in planes), count, curves)


def _curve(name: str, entry: dict[str, Any]) -> Curve:
    levels, observed = (tuple(float(v) for v in entry[key]) for key in ("levels", "observed"))
    if len(levels) != len(observed) or not levels or not all(0 <= v <= 1 for v in (*levels, *observed)):
        raise ValueError("a calibration curve needs as many observed coverages as levels, all from 0 to 1")
    numbers = {str(k): float(v) for k, v in entry.items() if isinstance(v, int | float) and math.isfinite(v)}
    return Curve(name, levels, observed, numbers)


def posterior_plates(folder: Path, record: Record, window: tuple[float, float]) -> Iterator[Plate]:
    """Every figure of a posterior; none where there is none.

    Args:
        window: grey scale of the report.
    """
    found = read_posterior(folder, record.facts)
    means = [picture for picture in record.pictures if picture.kind == "method"]
    if found is None or not means or [d.shape for d in found.deviation] != [c.shape for c in means[0].cuts]:
        return
    unit = record.text("unit") or "arbitrary unit"
    reference = record.references[0] if record.references else None
    for v, view in enumerate(record.views):
        mean, truth = means[0].cuts[v], None if reference is None else reference.cuts[v]
        figure = deviation_figure(found, v, mean, truth, window, unit)
        top = scale_of(found, v, mean, truth)
        caption = f"{view.name.capitalize()} plane: mean and standard deviation of {found.count} samples"
        caption += f", the latter from 0 to {top:.3g} {unit}"
        caption += "." if reference is None else f"; and how far the mean is from the {reference.label}, on its scale."
        yield Plate(f"uncertainty-{view.plane}", figure, "Mean, standard deviation and error.", caption)
    if found.curves:
        caption = "How many true values the intervals hold, by their level. On the diagonal the uncertainty is true; "
        caption += "below it intervals are too narrow, above it too wide. ECE: mean distance from the diagonal."
        if any(curve.name == "held-out" for curve in found.curves):
            caption += " Intervals of measurements held out of the fit include their noise where it is known."
        yield Plate(
            "calibration", calibration_figure(found), "Observed against nominal coverage of intervals.", caption
        )


def deviation_figure(
    record: PosteriorRecord,
    view: int,
    mean: np.ndarray,
    reference: np.ndarray | None,
    window: tuple[float, float],
    unit: str,
    *,
    width_mm: float = WIDTH_MM,
) -> Figure:
    """Mean, standard deviation and, with a reference, the absolute error on the deviation's scale, in one view.

    Args:
        mean, reference: cuts of the images, as they stand on screen.
        window: grey scale of the mean.
    """
    plane, deviation = record.views[view], record.deviation[view]
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("mean", mean, {"cmap": "gray", "vmin": window[0], "vmax": window[1]})
    ]
    top = scale_of(record, view, mean, reference)
    colours = {"cmap": "inferno", "vmin": 0.0, "vmax": top}
    panels.append(("standard deviation", deviation, colours))
    if reference is not None:
        panels.append(("|mean − reference|", np.abs(mean - reference), colours))
    extent = deviation.shape[1] * plane.spacing_mm[1], deviation.shape[0] * plane.spacing_mm[0]
    room = (width_mm - 2 * EDGE_MM - TEXT_MM - BAR_MM - len(panels) * GAP_MM) / len(panels)
    scale = min(room / extent[0], MAX_PANEL_MM / extent[1])
    panel = scale * extent[0], scale * extent[1]
    height_mm = panel[1] + TITLE_MM + 2 * EDGE_MM
    figure, left, drawn = new_figure(width_mm, height_mm), EDGE_MM, None
    bottom = (height_mm - TITLE_MM - EDGE_MM - panel[1]) / height_mm
    for title, cut, style in panels:
        axes = figure.add_axes((left / width_mm, bottom, panel[0] / width_mm, panel[1] / height_mm))
        drawn = show_image(axes, cut, extent, style)
        edge_letters(axes, plane, panel, ("white", "black"))
        if left == EDGE_MM:
            scale_bar(axes, extent, panel, ("white", "black"))
        axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=2)
        left += panel[0] + GAP_MM
    colour_bar(figure, drawn, (left / width_mm, bottom, BAR_MM / width_mm, panel[1] / height_mm), unit)
    return figure


def scale_of(record: PosteriorRecord, view: int, mean: np.ndarray, reference: np.ndarray | None) -> float:
    """The end of the colour scale of deviation and error: 99.5 % of both are below it."""
    shown = [record.deviation[view].ravel()] + ([] if reference is None else [np.abs(mean - reference).ravel()])
    return float(np.percentile(np.concatenate(shown), 99.5)) or 1.0


def calibration_figure(record: PosteriorRecord, *, width_mm: float = WIDTH_MM) -> Figure:
    """Observed against nominal coverage; the diagonal is perfect, below it intervals are too narrow."""
    size, height_mm = 62.0, 76.0
    figure = new_figure(width_mm, height_mm)
    axes = figure.add_axes((13 / width_mm, 10 / height_mm, size / width_mm, size / height_mm))
    axes.plot([0, 100], [0, 100], "-", color="#8c959f", linewidth=0.6)
    for k, curve in enumerate(record.curves):
        numbers = curve.numbers
        text = LABELS.get(curve.name, curve.name)
        parts = [f"ECE {numbers['ece']:.3f}"] if "ece" in numbers else []
        parts += [f"rank correlation {numbers['rank_correlation']:.2f}"] if "rank_correlation" in numbers else []
        label = f"{text}\n{', '.join(parts)}"
        axes.plot(_percent(curve.levels), _percent(curve.observed), "o-", color=LINES[k % len(LINES)], label=label)
        axes.lines[-1].set(linewidth=1.0, markersize=2.5)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("level of the interval (%)", fontsize=SMALL, labelpad=1)
    axes.set_ylabel("true values inside (%)", fontsize=SMALL, labelpad=1)
    axes.grid(color="#d8dee4", linewidth=0.4)
    plain(axes)
    axes.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.05, 1.0), frameon=False)
    return figure


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]
