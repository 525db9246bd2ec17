"""The figures of a report: images with error maps, and sinograms.

Every function returns a `matplotlib.figure.Figure` of its own (no pyplot, no global state); `encode` turns it into the
bytes of a PNG or SVG file. Sizes are millimetres on paper. Text is drawn as it stands: '$' and '_' have no meaning.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.errors import InputError
from scanfield.report.record import Projections
from scanfield.report.style import (
    DPI,
    ERROR_MAP,
    HELD_OUT,
    INK,
    LINES,
    MM,
    MUTED,
    NORMAL,
    SMALL,
    WIDTH_MM,
    WITHIN_PERCENT,
    new_figure,
    plain,
    shortened,
)
from scanfield.report.views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a comparison.

    Args:
        label: its name, printed above it.
        image: (rows, columns) as on screen, see `View.cut`.
        caption: a second, smaller line, such as its PSNR.
        error: (rows, columns) image - reference, or None.
    """

    label: str
    image: np.ndarray
    caption: str = ""
    error: np.ndarray | None = None


def comparison_figure(
    panels: Sequence[Panel],
    view: View,
    *,
    window: tuple[float, float],
    unit: str,
    error_limit: float = 0.0,
    error_label: str = "",
    error_name: str = "error",
    colour_map: str = "gray",
    columns: int | None = None,
    width_mm: float = WIDTH_MM,
) -> Figure:
    """Images on one grey scale, under each its error map on one signed scale.

    Scale bar and anatomical letters stand in the first image; colour bars at the right. Pixels keep their physical
    aspect ratio. Values beyond a scale take its end colour.

    Args:
        panels: in reading order, all of one shape.
        view: how the images lie in the patient.
        window: (low, high) of the grey scale, in `unit`.
        unit: of the images, '1/mm' for CT.
        error_limit: error maps span -limit..+limit; needed when a panel has an error.
        error_label: what the error is, 'image - original'; stands where a panel has none, else at the colour bar.
        error_name: one word for it, at the colour bar where the label stands elsewhere.
        colour_map: of the images; `ERROR_MAP` where they are signed.
        columns: panels in a row; by default up to four.
        width_mm: width of the whole figure.

    Raises:
        InputError: no panel, panels of different shapes, or an empty scale.
    """
    shapes = {panel.image.shape for panel in panels} | {p.error.shape for p in panels if p.error is not None}
    has_errors = any(panel.error is not None for panel in panels)
    if len(shapes) != 1:
        raise InputError(f"a comparison needs images of one shape, got {sorted(shapes)}")
    if not window[0] < window[1] or (has_errors and not error_limit > 0):
        raise InputError(f"a grey scale needs low < high and error maps a positive limit, got {window}, {error_limit}")
    (height, width) = shapes.pop()
    extent_mm = (width * view.spacing_mm[1], height * view.spacing_mm[0])
    layout = _Layout(len(panels), extent_mm, has_errors, any(p.caption for p in panels), columns, width_mm)
    figure = new_figure(width_mm, layout.height_mm)
    grey: dict[str, Any] = {"cmap": colour_map, "vmin": window[0], "vmax": window[1]}
    signed: dict[str, Any] = {"cmap": ERROR_MAP, "vmin": -error_limit, "vmax": error_limit}
    drawn: Any = None
    drawn_error: Any = None
    for number, panel in enumerate(panels):
        axes = figure.add_axes(layout.image(number))
        drawn = show_image(axes, panel.image, extent_mm, grey)
        _name(axes, panel, layout)
        if number == 0:
            ink = ("white", "black") if colour_map == "gray" else (INK, "white")
            edge_letters(axes, view, layout.panel_mm, ink)
            scale_bar(axes, extent_mm, layout.panel_mm, ink)
        if panel.error is not None:
            drawn_error = show_image(figure.add_axes(layout.error(number)), panel.error, extent_mm, signed)
        elif has_errors:
            blank = figure.add_axes(layout.error(number))
            blank.set_axis_off()
            text = _wrapped(error_label, layout.panel_mm[0])
            blank.text(0.5, 0.5, text, ha="center", va="center", fontsize=SMALL, color=MUTED, parse_math=False)
    colour_bar(figure, drawn, layout.bar(0), unit)
    if has_errors:
        explained = any(panel.error is None for panel in panels)  # in the place of the missing error map
        colour_bar(figure, drawn_error, layout.bar(1), f"{error_name if explained else error_label} ({unit})")
    return figure


class _Layout:
    """Places of panels and colour bars, in figure fractions, from sizes in millimetres."""

    EDGE, GAP, BAR, BAR_TEXT = 1.0, 1.6, 2.6, 14.0
    ERROR_GAP, ROW_GAP = 1.2, 3.0
    MAX_PANEL_HEIGHT, SHORTEST_BAR = 85.0, 20.0

    def __init__(
        self,
        count: int,
        extent_mm: tuple[float, float],
        has_errors: bool,
        has_captions: bool,
        columns: int | None,
        width_mm: float,
    ) -> None:
        self.columns = min(columns or _balanced(count), count)
        self.rows = -(-count // self.columns)
        self.title_mm = 7.2 if has_captions else 4.2
        self.width_mm = width_mm
        room = width_mm - 2 * self.EDGE - self.BAR_TEXT - self.BAR - 2 * self.GAP - (self.columns - 1) * self.GAP
        width = min(room / self.columns, self.MAX_PANEL_HEIGHT * extent_mm[0] / extent_mm[1], 80.0)
        self.panel_mm = (width, width * extent_mm[1] / extent_mm[0])
        self.bar_mm = max(self.panel_mm[1], self.SHORTEST_BAR)
        self.has_errors = has_errors
        height = self.panel_mm[1]
        self.row_mm = self.title_mm + height + (self.ERROR_GAP + height if has_errors else 0.0)
        panels = self.rows * self.row_mm + (self.rows - 1) * self.ROW_GAP
        bars = self.title_mm + self.bar_mm + (self.ERROR_GAP + self.bar_mm if has_errors else 0.0)
        self.height_mm = max(panels, bars) + 2 * self.EDGE

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        bottom = self.height_mm - top - height
        return left / self.width_mm, bottom / self.height_mm, width / self.width_mm, height / self.height_mm

    def image(self, number: int) -> tuple[float, float, float, float]:
        row, column = divmod(number, self.columns)
        left = self.EDGE + column * (self.panel_mm[0] + self.GAP)
        top = self.EDGE + row * (self.row_mm + self.ROW_GAP) + self.title_mm
        return self._box(left, top, *self.panel_mm)

    def error(self, number: int) -> tuple[float, float, float, float]:
        left, bottom, width, height = self.image(number)
        return left, bottom - (self.panel_mm[1] + self.ERROR_GAP) / self.height_mm, width, height

    def bar(self, which: int) -> tuple[float, float, float, float]:
        """The colour bar of the images (0) or the error maps (1), beside the first row of panels."""
        left = self.EDGE + self.columns * (self.panel_mm[0] + self.GAP) + self.GAP
        top = self.EDGE + self.title_mm + which * (self.bar_mm + self.ERROR_GAP)
        return self._box(left, top + 1.5, self.BAR, self.bar_mm - 3.0)


def _balanced(count: int) -> int:
    """Panels in a row: at most four, and rows as full as possible."""
    return count if count <= 4 else min((4, 3), key=lambda columns: (-count % columns, -columns))


def show_image(axes: Axes, image: np.ndarray, extent_mm: tuple[float, float], scale: dict[str, Any]) -> Any:
    """An image in axes that measure millimetres, rows downwards; NaN stays blank. `scale` goes to matplotlib."""
    box = (0.0, extent_mm[0], extent_mm[1], 0.0)
    drawn = axes.imshow(np.ma.masked_invalid(image), extent=box, aspect="auto", **scale)
    axes.set_axis_off()
    return drawn


def _name(axes: Axes, panel: Panel, layout: _Layout) -> None:
    bold, plain = int(layout.panel_mm[0] / 1.7), int(layout.panel_mm[0] / 1.25)  # letters that fit
    style: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "parse_math": False, "color": INK}
    points = layout.panel_mm[1] * MM * 72
    has_caption = layout.title_mm > 5
    above = 1 + (9.2 if has_caption else 1.8) / points
    axes.text(0, above, shortened(panel.label, bold), va="bottom", fontsize=NORMAL, fontweight="bold", **style)
    if panel.caption:
        style["color"] = MUTED
        axes.text(0, 1 + 1.8 / points, shortened(panel.caption, plain), va="bottom", fontsize=SMALL, **style)


def _wrapped(text: str, width_mm: float) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(8, int(width_mm / 1.4)))[:6])


def _stroke(colour: str) -> Any:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=1.2, foreground=colour)]


def edge_letters(axes: Axes, view: View, panel_mm: tuple[float, float], ink: tuple[str, str]) -> None:
    """Anatomical letters at the four edges; `ink` is the colour of letters and of their outline."""
    side, align = (0.5, "center") if panel_mm[1] > 18 else (0.97, "top")  # clear of the scale bar in flat panels
    places = (
        (0.015, side, view.left, "left", align),
        (0.985, side, view.right, "right", align),
        (0.5, 0.985, view.top, "center", "top"),
        (0.5, 0.015, view.bottom, "center", "bottom"),
    )
    for x, y, letter, ha, va in places:
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va, fontsize=SMALL, color=ink[0])
        text.set_path_effects(_stroke(ink[1]))


def nice_length_mm(extent_mm: float) -> float:
    """The longest of 1, 2, 5 x 10^n mm that is at most a third of the extent."""
    exponent = np.floor(np.log10(extent_mm / 3))
    return float(max(m * 10.0**exponent for m in (1, 2, 5) if m * 10.0**exponent <= extent_mm / 3 * (1 + 1e-9)))


def scale_bar(axes: Axes, extent_mm: tuple[float, float], panel_mm: tuple[float, float], ink: tuple[str, str]) -> None:
    """A bar of a round number of millimetres, lower left."""
    length = nice_length_mm(extent_mm[0])
    left, low = 0.04 * extent_mm[0], 1 - 2.0 / panel_mm[1]
    bar = axes.plot([left, left + length], [low * extent_mm[1]] * 2, color=ink[0], linewidth=1.6)
    bar[0].set_path_effects(_stroke(ink[1]))
    text = axes.text(left + length / 2, (low - 0.8 / panel_mm[1]) * extent_mm[1], f"{length:g} mm")
    text.set(ha="center", va="bottom", fontsize=SMALL - 0.5, color=ink[0], path_effects=_stroke(ink[1]))
    text.set_x(max(left + length / 2, 5.5 / panel_mm[0] * extent_mm[0]))
    axes.set_xlim(0, extent_mm[0])
    axes.set_ylim(extent_mm[1], 0)


def colour_bar(figure: Figure, drawn: Any, box: tuple[float, float, float, float], label: str) -> None:
    """A colour bar for what was `drawn`, at a place in figure fractions."""
    length_mm = box[3] * figure.get_size_inches()[1] / MM
    bar = figure.colorbar(drawn, cax=figure.add_axes(box))
    bar.set_label(_wrapped(label, length_mm + 3), fontsize=SMALL, color=INK, parse_math=False)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=SMALL - 0.5, width=0.4, length=2, colors=INK)
    bar.ax.locator_params(nbins=max(3, int(length_mm / 6)))


def robust_limit(errors: Sequence[np.ndarray]) -> float:
    """A symmetric scale for error maps: the `WITHIN_PERCENT` percentile of |error| over all of them, never zero."""
    sizes = np.abs(np.concatenate([error[np.isfinite(error)] for error in errors]))
    limit = float(np.percentile(sizes, WITHIN_PERCENT)) if sizes.size else 0.0
    return limit if limit > 0 else float(sizes.max(initial=0.0)) or 1.0


def projections_figure(scan: Projections, *, width_mm: float = WIDTH_MM) -> Figure:
    """Measured and predicted sinogram, their difference, and its RMS in every view; held-out views marked.

    Views stand in the order of their angle, one line each; of several detector rows the middle one is shown.
    """
    order = np.argsort(scan.angles_deg, kind="stable")
    angles = scan.angles_deg[order]
    middle = scan.measured.shape[1] // 2
    measured, predicted = scan.measured[order, middle], scan.predicted[order, middle]
    residual = predicted - measured
    rms = np.sqrt(np.mean((scan.predicted - scan.measured) ** 2, axis=(1, 2)))[order]
    held_out = np.isin(order, scan.held_out)
    views, bins = measured.shape
    figure = new_figure(width_mm, 76.0)
    low, high = float(np.nanmin(measured)), float(np.nanmax(measured))
    scale: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high if high > low else low + 1}
    limit = robust_limit([residual])
    signed: dict[str, Any] = {"cmap": ERROR_MAP, "vmin": -limit, "vmax": limit}
    parts = (("measured", measured, scale), ("predicted", predicted, scale), ("predicted − measured", residual, signed))
    left, width, gap = 13.0, 39.0, 4.0
    bottom, height, bar_bottom = 22.0, 48.0, 9.0
    spacing = scan.column_spacing_mm
    half = bins / 2 * (spacing or 1.0)
    across = (-half, half) if spacing else (-0.5, bins - 0.5)
    ticks = np.unique(np.linspace(0, views - 1, min(views, 7)).round().astype(int))
    unit = "no unit" if scan.unit == "1" else scan.unit

    def box(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / width_mm, y / 76.0, w / width_mm, h / 76.0

    for number, (title, image, colours) in enumerate(parts):
        x = left + number * (width + gap)
        axes = figure.add_axes(box(x, bottom, width, height))
        drawn = axes.imshow(image, extent=(*across, views - 0.5, -0.5), aspect="auto", **colours)
        axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=4)
        axes.set_xlabel("detector position (mm)" if spacing else "detector bin", fontsize=SMALL, labelpad=1)
        axes.set_yticks(ticks, [f"{angles[k]:g}" if number == 0 else "" for k in ticks])
        if number == 0:
            axes.set_ylabel("view angle (degrees)", fontsize=SMALL)
        _mark_rows(axes, np.flatnonzero(held_out))
        plain(axes)
        if number != 1:  # measured and predicted share one bar
            bar_width = 2 * width + gap if number == 0 else width
            bar = figure.colorbar(
                drawn, cax=figure.add_axes(box(x, bar_bottom, bar_width, 2.2)), orientation="horizontal"
            )
            bar.set_label(
                f"{'line integral' if number == 0 else 'difference'} ({unit})", fontsize=SMALL, parse_math=False
            )
            bar.ax.tick_params(labelsize=SMALL - 0.5, width=0.4, length=2)
            bar.outline.set_linewidth(0.4)
    x = left + 3 * (width + gap)
    axes = figure.add_axes(box(x, bottom, width_mm - x - 3, height))
    place = np.arange(views)
    axes.plot(rms[~held_out], place[~held_out], "o", color=LINES[0], markersize=2, label="fitted views")
    if held_out.any():
        axes.plot(rms[held_out], place[held_out], "D", color=HELD_OUT, markersize=3, label="held-out views")
    axes.set_ylim(views - 0.5, -0.5)
    axes.set_xlim(0, float(rms.max()) * 1.1 or 1.0)
    axes.set_yticks(ticks, ["" for _ in ticks])
    axes.set_title("RMS by view", fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=4)
    axes.set_xlabel(f"RMS difference ({unit})", fontsize=SMALL, labelpad=1, parse_math=False)
    axes.locator_params(axis="x", nbins=3)
    axes.grid(axis="x", color="#d8dee4", linewidth=0.4)
    plain(axes)
    axes.legend(fontsize=SMALL - 0.5, loc="upper center", bbox_to_anchor=(0.5, -0.19), frameon=False, handletextpad=0.2)
    return figure


def _mark_rows(axes: Axes, rows: np.ndarray) -> None:
    """Small triangles at the left edge of an image, pointing at rows."""
    style: dict[str, Any] = {"color": HELD_OUT, "markersize": 3, "linestyle": "none", "clip_on": False}
    axes.plot(np.full(len(rows), -0.025), rows, marker=">", transform=axes.get_yaxis_transform(), **style)


def encode(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a 'png' or 'svg' file, the same for the same figure.

    A PNG resamples images to its resolution; an SVG keeps their own pixels.
    """
    import matplotlib

    for axes in figure.axes:
        for image in axes.images:
            image.set_interpolation("none" if kind == "svg" else "antialiased")
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": "scanfield"} if kind == "svg" else {"Software": "scanfield"}
    with matplotlib.rc_context({"svg.hashsalt": "scanfield"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
