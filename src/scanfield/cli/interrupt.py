"""Ctrl-C and SIGTERM: the first asks the run to stop after its current step, the second ends the program.

The second of its kind, that is: on Ctrl-C `torchrun` also sends SIGTERM to its processes, which asks for nothing more.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """Sets `stop` on the first signal; a second one of its kind raises KeyboardInterrupt. Old handlers return at the
    end."""
    asked: set[int] = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.add(number)
        stop.set()
        print("\nstopping: writing what there is (once more to end at once)", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
