"""The figures of a segmentation: outlines of the classes over the image, those of a reference, and the uncertainty.

They are drawn from image.nii.gz, segmentation.nii.gz, uncertainty.nii.gz, labels.csv and, where there is one,
reference.nii.gz of a RUN folder. Nothing in these files is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from scanfield.data.labels import LabelTable, read_label_table
from scanfield.data.nifti import read_nifti
from scanfield.report.pictures import colour_bar, edge_letters, scale_bar, show_image
from scanfield.report.plate import Plate
from scanfield.report.record import RERUN
from scanfield.report.style import INK, LINES, NORMAL, SMALL, WIDTH_MM, new_figure, shortened
from scanfield.report.views import View, views
from scanfield.space.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGE, LABELS, UNCERTAINTY, TABLE = "image.nii.gz", "segmentation.nii.gz", "uncertainty.nii.gz", "labels.csv"
REFERENCE = "reference.nii.gz"
EDGE_MM, GAP_MM, TITLE_MM, BAR_MM, TEXT_MM = 1.2, 2.0, 4.6, 2.6, 12.0
ROW_MM, MAX_PANEL_MM, LEGEND_COLUMNS = 4.0, 75.0, 5
MORE_COLOURS = ("#8C510A", "#B2182B", "#7FBC41", "#762A83", "#F0E442", "#01665E", "#DE77AE", "#999999")


@dataclass(frozen=True, eq=False)
class SegmentationRecord:
    """What a RUN folder says about a segmentation, on one grid.

    Args:
        image: (n0, n1, n2).
        classes: class indices, rows of `table`.
        uncertainty: 0 to 1.
        reference: class indices of the reference; None without one.
    """

    grid: Grid
    image: Float[np.ndarray, "n0 n1 n2"]
    classes: UInt8[np.ndarray, "n0 n1 n2"]
    uncertainty: Float[np.ndarray, "n0 n1 n2"]
    table: LabelTable
    reference: UInt8[np.ndarray, "n0 n1 n2"] | None = None


def class_colours(count: int) -> tuple[str, ...]:
    """Colours of the classes beside the background, told apart as far as their number allows; they repeat after 13."""
    palette = (*LINES[:-1], *MORE_COLOURS)  # without black, which no image shows
    return tuple(palette[k % len(palette)] for k in range(count))


def read_segmentation(folder: Path, facts: dict[str, Any]) -> SegmentationRecord | None:
    """The figures' data in a RUN folder with the facts of run.json; None where it holds no segmentation.

    Raises:
        InputError: a file is missing or damaged, or they do not lie on one grid.
    """
    if facts.get("segmentation") is None:
        return None
    table = read_label_table(folder / TABLE)
    image = read_nifti(folder / IMAGE)
    names = [LABELS, UNCERTAINTY, *([REFERENCE] if (folder / REFERENCE).is_file() else [])]
    found = {name: read_nifti(folder / name) for name in names}
    for name, scan in found.items():
        scan.grid.check_same(image.grid, mine=name, theirs=IMAGE, fix=RERUN)

    def indices(name: str) -> np.ndarray:
        return np.asarray(table.indices(found[name].values, where=str(folder / name)).numpy())

    return SegmentationRecord(
        image.grid,
        image.values.numpy(),
        indices(LABELS),
        found[UNCERTAINTY].values.numpy(),
        table,
        indices(REFERENCE) if REFERENCE in found else None,
    )


def segmentation_plates(folder: Path, facts: dict[str, Any], window: tuple[float, float]) -> Iterator[Plate]:
    """Every figure of a segmentation; none where there is none. Errors: `read_segmentation`."""
    record = read_segmentation(folder, facts)
    for view in () if record is None else planes(record):
        assert record is not None
        where = f"{view.name} plane {view.index + 1} of {record.grid.shape[view.axis]}"
        caption = f"{where.capitalize()}, the one through most of what was found: outlines of the classes"
        caption += ", those of the reference" if record.reference is not None else ""
        caption += (
            ", and the uncertainty: the entropy of the classes' probabilities, 0 where the network is sure of one "
            "class, 1 where all are alike. It says how undecided the network is, not how often it errs."
        )
        figure = overlay_figure(record, view, window)
        yield Plate(f"segmentation-{view.plane}", figure, "Outlines of the classes over the image.", caption)


def planes(record: SegmentationRecord) -> list[View]:
    """The planes worth showing, each moved to where most of the foreground is."""
    inside = record.classes > 0
    if not inside.any() and record.reference is not None:
        inside = record.reference > 0
    found = []
    for view in views(record.grid.shape, record.grid.affine):
        across = inside.sum(axis=tuple(k for k in range(3) if k != view.axis))
        fullest = np.flatnonzero(across == across.max())
        found.append(replace(view, index=int(fullest[len(fullest) // 2])) if across.any() else view)
    return found


def overlay_figure(record: SegmentationRecord, view: View, window: tuple[float, float]) -> Figure:
    """Outlines over the image, those of the reference, and the uncertainty, with a legend of the classes."""
    panels: list[tuple[str, np.ndarray | None]] = [("segmentation", record.classes)]
    panels += [("reference", record.reference)] if record.reference is not None else []
    panels += [("uncertainty", None)]
    image = view.cut(record.image).astype(np.float64)
    extent = (image.shape[1] * view.spacing_mm[1], image.shape[0] * view.spacing_mm[0])
    room = WIDTH_MM - 2 * EDGE_MM - (len(panels) - 1) * GAP_MM - BAR_MM - TEXT_MM - GAP_MM
    width = min(room / len(panels), MAX_PANEL_MM, MAX_PANEL_MM * extent[0] / extent[1])
    panel = (width, width * extent[1] / extent[0])
    shown = _shown(record, view)
    legend_mm = 1.0 + ROW_MM * -(-len(shown) // LEGEND_COLUMNS)
    height = 2 * EDGE_MM + TITLE_MM + max(panel[1], 14.0) + legend_mm
    figure = new_figure(WIDTH_MM, height)
    bottom = (height - EDGE_MM - TITLE_MM - panel[1]) / height
    colours = class_colours(len(record.table) - 1)
    drawn: Any = None
    for number, (title, classes) in enumerate(panels):
        left = EDGE_MM + number * (panel[0] + GAP_MM)
        axes = figure.add_axes((left / WIDTH_MM, bottom, panel[0] / WIDTH_MM, panel[1] / height))
        axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=2.5)
        if classes is None:
            scale: dict[str, Any] = {"cmap": "magma", "vmin": 0.0, "vmax": 1.0}
            drawn = show_image(axes, view.cut(record.uncertainty).astype(np.float64), extent, scale)
            continue
        show_image(axes, image, extent, {"cmap": "gray", "vmin": window[0], "vmax": window[1]})
        for index in shown:
            _outline(axes, view.cut(classes) == index, view.spacing_mm, colours[index - 1])
        axes.set(xlim=(0, extent[0]), ylim=(extent[1], 0))
        if number == 0:
            edge_letters(axes, view, panel, ("white", "black"))
            scale_bar(axes, extent, panel, ("white", "black"))
    left = EDGE_MM + len(panels) * (panel[0] + GAP_MM)
    bar = (left / WIDTH_MM, bottom + 0.05 * panel[1] / height, BAR_MM / WIDTH_MM, 0.9 * panel[1] / height)
    colour_bar(figure, drawn, bar, "uncertainty")
    _legend(figure, record.table, shown, colours, height)
    return figure


def _shown(record: SegmentationRecord, view: View) -> list[int]:
    """Classes in the plane, of the segmentation or of the reference."""
    cuts = [view.cut(v) for v in (record.classes, record.reference) if v is not None]
    return [int(k) for k in np.unique(np.concatenate([cut.ravel() for cut in cuts])) if k > 0]


def _outline(axes: Axes, mask: np.ndarray, spacing: tuple[float, float], colour: str) -> None:
    """The pixels' outline at half height, in the axes' millimetres: pixel centres lie half a pixel in."""
    from skimage.measure import find_contours

    for line in find_contours(np.pad(mask.astype(float), 1), 0.5):
        y, x = ((line[:, k] - 0.5) * spacing[k] for k in (0, 1))
        axes.plot(x, y, color=colour, linewidth=0.9, solid_joinstyle="round")


def _legend(figure: Figure, table: LabelTable, shown: Sequence[int], colours: Sequence[str], height_mm: float) -> None:
    column = (WIDTH_MM - 2 * EDGE_MM) / LEGEND_COLUMNS
    for number, index in enumerate(shown):
        row, place = divmod(number, LEGEND_COLUMNS)
        left, below = EDGE_MM + place * column, EDGE_MM + ROW_MM * (row + 0.5)
        y = (ROW_MM * -(-len(shown) // LEGEND_COLUMNS) + 2 * EDGE_MM - below) / height_mm
        line = figure.add_artist(_line([left / WIDTH_MM, (left + 4) / WIDTH_MM], [y, y], colours[index - 1]))
        line.set_transform(figure.transFigure)
        name = shortened(table.names[index], int((column - 6) / 1.25))
        figure.text((left + 5) / WIDTH_MM, y, name, fontsize=SMALL, color=INK, va="center", parse_math=False)


def _line(x: list[float], y: list[float], colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(x, y, color=colour, linewidth=1.6)
