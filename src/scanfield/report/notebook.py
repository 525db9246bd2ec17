"""How a result shows itself in a notebook: its images as they stand, and the table of numbers."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scanfield.data.sequences import MaskSequence
from scanfield.errors import InputError, MissingExtra
from scanfield.report.pictures import encode
from scanfield.report.segmentation import SegmentationRecord, overlay_figure, planes
from scanfield.report.snapshot import snapshot, usual_window
from scanfield.report.synthesis import contact_sheet
from scanfield.report.views import views
from scanfield.space.grid import Grid

HEIGHT = 220  # pixels
NOTEBOOK_DPI = 110


def widget(folder: Path | None, layers: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """A viewer on the images of a run's folder.

    Args:
        layers: from the lowest: a file of the folder, and options of ipyniivue's volumes such as 'opacity'.

    Raises:
        MissingExtra: ipyniivue is not installed.
        InputError: the run kept no folder.
    """
    try:
        from ipyniivue import NiiVue
    except ImportError:
        raise MissingExtra("ipyniivue", "notebook", "a view in a notebook") from None
    if folder is None:
        raise InputError("there are no files to show: this run kept everything in memory", fix="give it a folder")
    viewer = NiiVue()
    viewer.load_volumes([{"path": str(folder / file), **options} for file, options in layers])
    return viewer


def with_table(pictures: str, table: str) -> str:
    """What a notebook shows of a result: its pictures as HTML, and below them its numbers as plain text."""
    return f"{pictures}<pre>{html.escape(table)}</pre>"


def images_html(named: Sequence[tuple[str, np.ndarray]], grid: Grid) -> str:
    """The middle slice of every image, all on the grey scale of the last one.

    Args:
        named: labels and images of the grid's shape.
    """
    view = views(grid.shape, grid.affine)[0]
    cuts = [(label, np.abs(view.cut(values)).astype(np.float64)) for label, values in named]
    window = usual_window(cuts[-1][1]) if cuts else (0.0, 1.0)
    shown = []
    for label, cut in cuts:
        aspect = cut.shape[1] * view.spacing_mm[1] / (cut.shape[0] * view.spacing_mm[0])
        png = snapshot(cut, window, (max(1, round(HEIGHT * aspect)), HEIGHT))
        data = base64.b64encode(png).decode("ascii")
        caption = html.escape(label)
        shown.append(
            f'<figure style="margin:0 .5rem .5rem 0"><img alt="{view.name} slice of {caption}" '
            f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(shown)}</div>'


def segmentation_html(record: SegmentationRecord) -> str:
    """Outlines of the classes and the uncertainty in the first plane worth showing."""
    view = planes(record)[0]
    figure = overlay_figure(record, view, usual_window(view.cut(record.image)))
    data = base64.b64encode(encode(figure, "png", NOTEBOOK_DPI)).decode("ascii")
    return f'<img alt="outlines of the classes, {view.name} plane" src="data:image/png;base64,{data}">'


def shapes_html(sequences: Sequence[MaskSequence]) -> str:
    """Some moments of generated sequences, shaded."""
    data = base64.b64encode(encode(contact_sheet(sequences), "png", NOTEBOOK_DPI)).decode("ascii")
    return f'<img alt="shapes in time" src="data:image/png;base64,{data}">'
