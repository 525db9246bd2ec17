"""Pictures of a fit while it fits, at a bounded cost.

Every few seconds the planes through the middle of the image are rendered from the field as it is, between two steps,
and left as a file beside the fit's checkpoints, from which the page's process takes them. Rendering draws no random
numbers: a fit that is watched ends with the same bits as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scanfield.data.write import write_atomically
from scanfield.errors import ScanfieldError
from scanfield.report.snapshot import usual_window
from scanfield.report.views import View, views
from scanfield.run import Image
from scanfield.space.grid import Grid
from scanfield.view.raster import Raster, encode

SHARE = 0.03  # of the fit's time that may go into pictures
FIRST_S = 1.0  # before the first one
EVERY_S = 2.0  # from one to the next, at least
SMALLEST, LARGEST = 32, 192  # pixels along the longest side
FILE = Path("state") / "preview.raster"


class FitPreview:
    """Draws what a run shows (`run.Preview`).

    The first drawing is a small one; from what it cost follow the size of the next ones and the time between them, so
    that all of them together take at most `SHARE` of the time, whatever the field costs.

    Args:
        folder: of the run; the pictures are written to `FILE` in it.
        clock: seconds.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.path, self.clock = folder / FILE, clock
        self.spent = 0.0
        self._start: float | None = None
        self._last = 0.0
        self._pixel_s: float | None = None  # of the last drawing
        self._shown: tuple[Image, Grid, str] | None = None

    def show(self, image: Image, grid: Grid, unit: str) -> None:
        """See `Run.show`."""
        self._shown, self._pixel_s = (image, grid, unit), None

    def look(self, stage: str, step: int, in_place: Callable[[], AbstractContextManager[None]]) -> None:
        """Draws if a drawing is due.

        Args:
            in_place: puts what would be returned now, such as averaged parameters, into place for a moment.
        """
        if self._shown is None:
            return
        now = self.clock()
        if self._start is None:
            self._start = self._last = now
        if now - self._last < (FIRST_S if self._pixel_s is None else EVERY_S):
            return
        image, grid, unit = self._shown
        cuts = views(grid.shape, grid.affine)
        side = self._side(len(cuts))
        expected = 0.0 if self._pixel_s is None else self._pixel_s * len(cuts) * side**2
        if self.spent + expected > SHARE * (now - self._start):
            return
        try:
            with in_place(), torch.no_grad():
                pictures = [_plane(image, grid, view, side, unit) for view in cuts]
            self._write(pictures, stage, step)
        except (ScanfieldError, RuntimeError, OSError):  # no memory, no space: a picture must not cost the fit
            self._shown = None
        self._last = self.clock()
        cost = self._last - now
        self.spent += cost
        self._pixel_s = cost / (len(cuts) * side**2)

    def clear(self) -> None:
        """Removes the pictures of a fit that has ended."""
        self.path.unlink(missing_ok=True)

    def _side(self, planes: int) -> int:
        """Pixels along the longest side: as many as may be paid every `EVERY_S`."""
        if self._pixel_s is None:
            return SMALLEST
        return int(np.clip((SHARE * EVERY_S / max(self._pixel_s, 1e-12) / planes) ** 0.5, SMALLEST, LARGEST))

    def _write(self, pictures: list[Raster], stage: str, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        window = usual_window(np.concatenate([picture.values.ravel() for picture in pictures])[None])
        message = encode([replace(p, window=window) for p in pictures], {"stage": stage, "step": step})
        with write_atomically(self.path) as temporary:
            temporary.write_bytes(message)


def _plane(image: Image, grid: Grid, view: View, side: int, unit: str) -> Raster:
    """One plane through the middle, never finer than the grid."""
    shape, spacing = np.asarray(grid.shape), np.asarray(grid.spacing_mm)
    extent = shape * spacing
    pixel = max(extent[view.row_axis], extent[view.column_axis]) / side
    count = np.minimum(shape, np.ceil(extent / pixel - 1e-9)).astype(int).clip(min=1)
    step = shape / count
    first = (step - 1) / 2
    count[view.axis], step[view.axis], first[view.axis] = 1, 1.0, view.index
    values = image(grid.part(first, count, step))
    values = values.abs() if values.is_complex() else values
    volume = values.reshape(*count.tolist(), -1)[..., 0].float().numpy()
    height, width = (float(spacing[k] * step[k]) for k in (view.row_axis, view.column_axis))
    edges = (view.left, view.right, view.top, view.bottom)
    return Raster(view.name, replace(view, index=0).cut(volume), unit, ("row", "column"), (height, width), edges=edges)
