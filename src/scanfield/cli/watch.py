"""`--view`: the page of a run beside its fit."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfield.run import Run


@contextmanager
def watched(run: Run, *, view: bool) -> Iterator[None]:
    """Shows a run in the browser while its block runs, curves and images, and on a terminal until Ctrl-C after it.

    Args:
        run: has a folder; is stopped when somebody presses Stop on the page.
        view: whether anything is shown at all.

    Raises:
        MissingExtra: the viewer's packages are not installed.
    """
    if not view:
        yield
        return
    from scanfield.view.preview import FitPreview
    from scanfield.view.server import beside_a_fit

    assert run.folder is not None
    terminal = sys.stderr.isatty()
    with beside_a_fit(run.folder, run.stop, browser=terminal) as address:
        print(f"watch it at {address}", file=sys.stderr, flush=True)
        run.preview = preview = FitPreview(run.folder)
        try:
            yield
        finally:
            preview.clear()
        if terminal:
            print("the page stays open until Ctrl-C", file=sys.stderr, flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
