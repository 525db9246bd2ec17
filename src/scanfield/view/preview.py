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
from scanfield.run import Image, Shown
from scanfield.view.raster import Raster, encode

SHARE = 0.03  # of the fit's time that may go into pictures
FIRST_S = 1.0  # before the first one
EVERY_S = 2.0  # from one to the next, at least
SMALLEST, LARGEST = 32, 192  # pixels along the longest side
FILE = Path("state") / "preview.raster"


class FitPreview:
    """Draws what a run shows (`run.Preview`).

    The first drawing is a small one; from what it cost follow the size of the next ones and the time between them, so
    that all of them together take at most `SHARE` of the time, whatever the field costs. What is computed once for a
    drawing counts apart from what its pixels cost: where it is dear, drawings are rare, and not smaller.

    Args:
        folder: of the run; the pictures are written to `FILE` in it.
        clock: seconds.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.path, self.clock = folder / FILE, clock
        self.spent = 0.0
        self._start: float | None = None
        self._last = 0.0
        self._cost: tuple[float, float] | None = None  # of the last drawing: what was prepared, and a pixel
        self._shown: Shown | None = None

    def show(self, shown: Shown) -> None:
        """See `Run.show`."""
        self._shown, self._cost = shown, None

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
        if now - self._last < (FIRST_S if self._cost is None else EVERY_S):
            return
        shown = self._shown
        cuts = views(shown.grid.shape, shown.grid.affine)
        prepared_s, pixel_s = self._cost or (0.0, 0.0)
        side = self._side(len(cuts))
        pixels = len(cuts) * side**2
        if self.spent + prepared_s + pixel_s * pixels > SHARE * (now - self._start):
            return
        ready = now
        try:
            with in_place(), torch.no_grad():
                image = shown.prepare()
                ready = self.clock()
                pictures = [_plane(image, shown, view, side) for view in cuts]
            self._write(pictures, shown.window, stage, step)
        except (ScanfieldError, RuntimeError, OSError):  # no memory, no space: a picture must not cost the fit
            self._shown = None
        self._last = self.clock()
        self.spent += self._last - now
        self._cost = ready - now, (self._last - ready) / pixels

    def clear(self) -> None:
        """Removes the pictures of a fit that has ended."""
        self.path.unlink(missing_ok=True)

    def _side(self, planes: int) -> int:
        """Pixels along the longest side: as many as may be paid every `EVERY_S`, or cost what had to be prepared."""
        if self._cost is None:
            return SMALLEST
        prepared_s, pixel_s = self._cost
        affordable_s = max(SHARE * EVERY_S - prepared_s, prepared_s)
        return int(np.clip((affordable_s / max(pixel_s, 1e-12) / planes) ** 0.5, SMALLEST, LARGEST))

    def _write(self, pictures: list[Raster], window: tuple[float, float] | None, stage: str, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if window is None:
            window = usual_window(np.concatenate([picture.values.ravel() for picture in pictures]))
        message = encode([replace(p, window=window) for p in pictures], {"stage": stage, "step": step})
        with write_atomically(self.path) as temporary:
            temporary.write_bytes(message)


def _plane(image: Image, shown: Shown, view: View, side: int) -> Raster:
    """One plane through the middle, never finer than the grid."""
    grid = shown.grid
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
    label = f"{view.name}: {shown.what}" if shown.what else view.name
    cut = replace(view, index=0).cut(volume)
    return Raster(label, cut, shown.unit, ("row", "column"), (height, width), edges=edges)
