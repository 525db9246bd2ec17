"""The figures of a stored dose: its gamma map, and cumulative dose-volume histograms.

They are drawn from gamma.nii.gz and dvh_curves.csv of a RUN folder. Nothing in these files is trusted.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.pictures import colour_bar, edge_letters, scale_bar, show_image
from scanfield.report.style import INK, LINES, NORMAL, SMALL, WIDTH_MM, new_figure, plain, shortened
from scanfield.report.views import View, views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STRUCTURES = 12
STYLES = ("-", ":", "--", "-.")  # the plan, then the results in their order
EDGE_MM, GAP_MM, TITLE_MM, BAR_MM, TEXT_MM, MAX_PANEL_MM = 1.0, 3.0, 4.6, 2.6, 12.0, 70.0


@dataclass(frozen=True, eq=False)
class DoseRecord:
    """What a RUN folder says about a dose.

    Args:
        views: how the gamma map is cut.
        gamma: its cuts, as they stand on screen.
        gy: doses of the histograms, (n,); empty without structures.
        curves: percent of the volume by (structure, name of the dose), (n,) each.
    """

    views: tuple[View, ...]
    gamma: tuple[np.ndarray, ...]
    gy: np.ndarray
    curves: dict[tuple[str, str], np.ndarray]


def read_dose_record(folder: Path) -> DoseRecord | None:
    """The figures' data in a RUN folder; None where it holds no dose.

    Raises:
        InputError: a file is damaged.
    """
    path = folder / "gamma.nii.gz"
    if not path.is_file():
        return None
    found = read_nifti(path)
    planes = views(found.grid.shape, found.grid.affine)
    cuts = tuple(view.cut(found.values.numpy()).astype(np.float64) for view in planes)
    gy, curves = _curves(folder / "dvh_curves.csv")
    return DoseRecord(planes, cuts, gy, curves)


def gamma_figure(record: DoseRecord, *, width_mm: float = WIDTH_MM) -> Figure:
    """The gamma map on a scale from 0 to 1.2, a panel a view; above 1 a point does not pass."""
    extents = [
        (cut.shape[1] * view.spacing_mm[1], cut.shape[0] * view.spacing_mm[0])
        for cut, view in zip(record.gamma, record.views, strict=True)
    ]
    room = width_mm - 2 * EDGE_MM - TEXT_MM - BAR_MM - len(extents) * GAP_MM
    scale = min(room / sum(width for width, _ in extents), MAX_PANEL_MM / max(height for _, height in extents))
    tallest = scale * max(height for _, height in extents)
    height_mm = tallest + TITLE_MM + 2 * EDGE_MM
    figure = new_figure(width_mm, height_mm)
    left, drawn = EDGE_MM, None
    for cut, view, (width, height) in zip(record.gamma, record.views, extents, strict=True):
        panel = scale * width, scale * height
        axes = figure.add_axes(
            (
                left / width_mm,
                (height_mm - TITLE_MM - EDGE_MM - panel[1]) / height_mm,
                panel[0] / width_mm,
                panel[1] / height_mm,
            )
        )
        drawn = show_image(axes, cut, (width, height), {"cmap": "inferno", "vmin": 0.0, "vmax": 1.2})
        edge_letters(axes, view, panel, ("white", "black"))
        if left == EDGE_MM:
            scale_bar(axes, (width, height), panel, ("white", "black"))
        axes.set_title(view.name, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=2)
        left += panel[0] + GAP_MM
    bar = max(tallest, 20.0)
    colour_bar(
        figure,
        drawn,
        (left / width_mm, (height_mm - TITLE_MM - EDGE_MM - bar) / height_mm, BAR_MM / width_mm, bar / height_mm),
        "gamma",
    )
    return figure


def histogram_figure(record: DoseRecord, doses: Sequence[str], *, width_mm: float = WIDTH_MM) -> Figure:
    """Cumulative dose-volume histograms: a colour a structure, a style a dose (the first is drawn solid).

    Args:
        doses: names of the doses to draw, in the order of the styles.
    """
    height_mm = 84.0
    figure = new_figure(width_mm, height_mm)
    axes = figure.add_axes((13 / width_mm, 11 / height_mm, (width_mm - 58) / width_mm, (height_mm - 15) / height_mm))
    structures = list(dict.fromkeys(structure for structure, _ in record.curves))[:MOST_STRUCTURES]
    for k, structure in enumerate(structures):
        for dose, style in zip(doses, STYLES, strict=False):
            if (structure, dose) in record.curves:
                axes.plot(
                    record.gy,
                    record.curves[structure, dose],
                    style,
                    color=LINES[k % len(LINES)],
                    linewidth=0.9 if style == "-" else 1.3,
                    alpha=1.0 if k < len(LINES) else 0.6,
                    label=shortened(structure, 26) if style == "-" else None,
                )
    axes.set_xlim(0, float(record.gy[-1]))
    axes.set_ylim(0, 101)
    axes.set_xlabel("dose (Gy)", fontsize=SMALL, labelpad=1)
    axes.set_ylabel("volume (%)", fontsize=SMALL, labelpad=1)
    axes.grid(color="#d8dee4", linewidth=0.4)
    plain(axes)
    axes.legend(fontsize=SMALL - 0.5, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def _curves(path: Path) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    if not path.is_file():
        return np.empty(0), {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *lines = list(csv.reader(file))
        table = np.array(lines, dtype=np.float64)
        names = []
        for title in head[1:]:
            structure, _, dose = title.rpartition("|")
            names.append((structure, dose))
    except (OSError, ValueError) as error:
        raise InputError(f"the dose-volume histograms cannot be read: {error}", where=str(path)) from None
    if table.ndim != 2 or table.shape[1] != len(head) or len(table) < 2 or not np.isfinite(table).all():
        raise InputError("the dose-volume histograms are damaged", where=str(path))
    return table[:, 0], {name: table[:, k + 1] for k, name in enumerate(names)}
