"""`--view`: the page of a run beside its fit."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watched(folder: Path, stop: threading.Event, *, view: bool) -> Iterator[None]:
    """Shows the run in the browser while its block runs, and on a terminal until Ctrl-C after it.

    Args:
        stop: is set when somebody presses Stop on the page.
        view: whether anything is shown at all.

    Raises:
        MissingExtra: the viewer's packages are not installed.
    """
    if not view:
        yield
        return
    from scanfield.view.server import beside_a_fit

    terminal = sys.stderr.isatty()
    with beside_a_fit(folder, stop, browser=terminal) as address:
        print(f"watch it at {address}", file=sys.stderr, flush=True)
        yield
        if terminal:
            print("the page stays open until Ctrl-C", file=sys.stderr, flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
