"""The figure of a registration: checkerboards before and after, determinants, displacements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.report.pictures import colour_bar, edge_letters, robust_limit, scale_bar, show_image
from scanfield.report.record import Deformation
from scanfield.report.snapshot import usual_window
from scanfield.report.style import ERROR_MAP, INK, NORMAL, WIDTH_MM, new_figure
from scanfield.report.views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILES = 8  # of a checkerboard, along the shorter side
GRID_LINES = 20  # along the longer side
ARROWS = 24  # along the longer side
FOLDED = "#111111"
STILL_MM = 1e-6
EDGE_MM, GAP_MM, TITLE_MM, BAR_MM, TEXT_MM, MAX_PANEL_MM = 1.0, 3.0, 4.6, 2.6, 12.0, 78.0


def deformation_figure(
    deformation: Deformation,
    number: int,
    view: View,
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    width_mm: float = WIDTH_MM,
) -> Figure:
    """Four panels: checkerboards of the fixed image with the moving one before and after, and what the map does.

    The third panel shows determinants on a logarithmic scale about 1, black where the map folds, with lines on which a
    coordinate of the moving image is constant. The fourth shows displacements in true length, coloured by their length
    in three dimensions.

    Args:
        number: of the view within the record.
        images: cuts of the fixed image, and of the moving one before and after.
    """
    fixed, before, after = images
    determinant, displacement = deformation.determinants[number], deformation.displacements[number]
    rows, columns = fixed.shape
    extent = (columns * view.spacing_mm[1], rows * view.spacing_mm[0])
    beside = BAR_MM + TEXT_MM  # of either column, for the colour bars of the lower row
    room = (width_mm - 2 * EDGE_MM - GAP_MM) / 2 - beside
    panel_width = min(room, MAX_PANEL_MM * extent[0] / extent[1])
    panel = (panel_width, panel_width * extent[1] / extent[0])
    height_mm = 2 * (EDGE_MM + TITLE_MM + panel[1]) + GAP_MM
    figure = new_figure(width_mm, height_mm)

    def box(column: int, row: int) -> tuple[float, float, float, float]:
        left = EDGE_MM + column * (panel[0] + beside + GAP_MM)
        bottom = height_mm - (row + 1) * (TITLE_MM + panel[1]) - EDGE_MM - row * GAP_MM
        return left / width_mm, bottom / height_mm, panel[0] / width_mm, panel[1] / height_mm

    def bar(column: int) -> tuple[float, float, float, float]:
        left, bottom, width, height = box(column, 1)
        return left + width + 0.8 / width_mm, bottom + 0.05 * height, BAR_MM / width_mm, 0.9 * height

    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}
    board = _board((rows, columns), view)
    a, b, c = _scaled(fixed, fixed), _scaled(before, before), _scaled(after, before)
    for column, (title, moving) in enumerate((("before", b), ("after", c))):
        axes = figure.add_axes(box(column, 0))
        show_image(axes, np.where(board, a, moving), extent, grey)
        _title(axes, f"fixed and moving, {title}")
        if column == 0:
            edge_letters(axes, view, panel, ("white", "black"))
            scale_bar(axes, extent, panel, ("white", "black"))

    axes = figure.add_axes(box(0, 1))
    upright = np.where(determinant > 0, determinant, np.nan)  # blank pixels take the colour of folds
    drawn = show_image(axes, upright, extent, _logarithmic(determinant))
    _lines(axes, displacement, view, extent)
    _title(axes, "determinant of the map")
    colour_bar(figure, drawn, bar(0), "det (1: volume kept)")

    axes = figure.add_axes(box(1, 1))
    show_image(axes, a, extent, {**grey, "alpha": 0.5})
    arrows = _arrows(axes, displacement, view, extent)
    _title(axes, "displacement")
    colour_bar(figure, arrows, bar(1), "length (mm)")
    return figure


def _board(shape: tuple[int, int], view: View) -> np.ndarray:
    """True on every other tile; tiles are squares in millimetres."""
    size = min(shape[0] * view.spacing_mm[0], shape[1] * view.spacing_mm[1]) / TILES
    row = np.floor((np.arange(shape[0]) + 0.5) * view.spacing_mm[0] / size).astype(int)
    column = np.floor((np.arange(shape[1]) + 0.5) * view.spacing_mm[1] / size).astype(int)
    return np.asarray((row[:, None] + column) % 2 == 0)


def _scaled(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Intensities as 0..1 between the 1st and 99.5th percentile of `like`: two modalities have one range."""
    low, high = usual_window(like)
    return np.clip((image - low) / (high - low if high > low else 1.0), 0, 1)


def _logarithmic(determinant: np.ndarray) -> dict[str, Any]:
    """Colours symmetric about 1, and for blank pixels that of folds."""
    from matplotlib import colormaps
    from matplotlib.colors import FuncNorm

    upright = determinant[determinant > 0]
    limit = max(robust_limit([np.log(upright)]), 0.05) if upright.size else 1.0
    norm = FuncNorm((lambda d: np.log(np.maximum(d, 1e-12)), np.exp), vmin=np.exp(-limit), vmax=np.exp(limit))
    return {"cmap": colormaps[ERROR_MAP].with_extremes(bad=FOLDED), "norm": norm}


def _centres(shape: tuple[int, ...], view: View) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pixels in the axes of a panel: (rows,) and (columns,), mm."""
    return (np.arange(shape[0]) + 0.5) * view.spacing_mm[0], (np.arange(shape[1]) + 0.5) * view.spacing_mm[1]


def _lines(axes: Axes, displacement: np.ndarray, view: View, extent: tuple[float, float]) -> None:
    down, right = _centres(displacement.shape, view)
    step = max(extent) / GRID_LINES
    for values, length in (
        (right + displacement[..., 1], extent[0]),
        (down[:, None] + displacement[..., 0], extent[1]),
    ):
        levels = np.arange(0.0, length + step, step)
        axes.contour(right, down, values, levels=levels, colors=INK, linewidths=0.3)
    axes.set_xlim(0, extent[0])
    axes.set_ylim(extent[1], 0)


def _arrows(axes: Axes, displacement: np.ndarray, view: View, extent: tuple[float, float]) -> Any:
    down, right = _centres(displacement.shape, view)
    step = max(extent) / ARROWS
    i, j = (slice(None, None, max(1, round(step / spacing))) for spacing in view.spacing_mm)
    shown = displacement[i, j]
    length = np.linalg.norm(shown, axis=-1)
    drawn = axes.quiver(
        right[j], down[i], shown[..., 1], shown[..., 0], length,
        angles="xy", scale_units="xy", scale=1.0, units="width", width=0.004, cmap="plasma",
    )  # fmt: skip
    drawn.set_clim(0, max(float(length.max()), STILL_MM))
    axes.set_xlim(0, extent[0])
    axes.set_ylim(extent[1], 0)
    return drawn


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=2)
