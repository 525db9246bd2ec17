"""Starts the local server: in this process for `scanfield view`, in a second one beside a fit."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from scanfield.errors import InputError, MissingExtra

HOST = "127.0.0.1"
START_S = 60.0  # a second process imports torch before it serves


def serve(
    paths: Sequence[Path],
    *,
    port: int = 0,
    announce: Callable[[str], None],
    stop: Callable[[], None] | None = None,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        port: 0 takes a free one.
        announce: is told the address as soon as the server answers there.
        stop: see `view.app.View`.

    Raises:
        InputError: the port is taken.
        MissingExtra: starlette or uvicorn is not installed.
    """
    check_installed()
    import uvicorn

    from scanfield.view.app import View

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error.strerror}", fix="choose another --port") from None
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    config = uvicorn.Config(View(paths, stop=stop).app(token, port), log_level="error", timeout_graceful_shutdown=1)
    announce(f"http://{HOST}:{port}/?token={token}")
    uvicorn.Server(config).run(sockets=[listening])


def check_installed() -> None:
    """Raises MissingExtra unless the server's packages are there."""
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise MissingExtra("starlette and uvicorn", "view", "the viewer") from None
    del starlette, uvicorn


@contextmanager
def beside_a_fit(folder: Path, stop: threading.Event, *, browser: bool = True) -> Iterator[str]:
    """Serves a run that is being fitted, from a second process, so that neither waits for the other.

    Args:
        folder: of the run; it need not exist yet.
        stop: is set when somebody presses Stop on the page.
        browser: whether a browser is opened.

    Yields:
        The address.

    Raises:
        MissingExtra: starlette or uvicorn is not installed.
    """
    check_installed()
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_attached, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    if not ours.poll(START_S):
        process.terminate()
        raise InputError(f"the viewer did not start within {START_S:.0f} s", fix="run without --view")
    address = str(ours.recv())

    def listen() -> None:
        try:
            while ours.recv() == "stop":
                stop.set()
        except (EOFError, OSError):
            return

    threading.Thread(target=listen, daemon=True).start()
    if browser:
        webbrowser.open(address)
    try:
        yield address
    finally:
        process.terminate()
        process.join()


def _attached(folder: Path, connection: Connection) -> None:
    """The second process: the fit's Ctrl-C is not for it, it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve([folder], announce=connection.send, stop=lambda: connection.send("stop"))
