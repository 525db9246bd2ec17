"""How a result shows itself in a notebook: its images as they stand, and the table of numbers."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from scanfield.report.views import views
from scanfield.space.grid import Grid

HEIGHT = 220  # pixels


def images_html(named: Sequence[tuple[str, np.ndarray]], grid: Grid) -> str:
    """The middle slice of every image, all on the grey scale of the last one.

    Args:
        named: labels and images of the grid's shape.
    """
    view = views(grid.shape, grid.affine)[0]
    cuts = [(label, np.abs(view.cut(values)).astype(np.float64)) for label, values in named]
    low, high = (float(p) for p in np.percentile(cuts[-1][1], [1, 99.5])) if cuts else (0.0, 1.0)
    shown = []
    for label, cut in cuts:
        grey = ((cut - low) / max(high - low, 1e-12)).clip(0, 1)
        picture = Image.fromarray((255 * grey).astype(np.uint8))
        aspect = cut.shape[1] * view.spacing_mm[1] / (cut.shape[0] * view.spacing_mm[0])
        picture = picture.resize((max(1, round(HEIGHT * aspect)), HEIGHT), Image.Resampling.BILINEAR)
        stream = io.BytesIO()
        picture.save(stream, "png")
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        caption = html.escape(label)
        shown.append(
            f'<figure style="margin:0 .5rem .5rem 0"><img alt="{view.name} slice of {caption}" '
            f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(shown)}</div>'
