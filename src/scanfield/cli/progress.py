"""Progress of a fit with the time left: a bar on a terminal, a plain line about every tenth otherwise.

Watches a run's events (`scanfield.run.Run.observers`): {"stage", "step", "of", "seconds", "loss", "held_out"} while a
stage is fitted, {"baseline"} when a rival begins, {"warning"} at any time (shown only when quiet,
because the summary lists them). Everything goes to stderr.
"""

from __future__ import annotations

import sys
from typing import Any

from scanfield.cli.text import duration


def progress(*, quiet: bool) -> WarningsOnly | Lines | Bar:
    """The right display for this terminal; it receives the events of a run inside its `with` block."""
    if quiet:
        return WarningsOnly()
    return Bar() if sys.stderr.isatty() else Lines()


class WarningsOnly:
    """Says nothing but warnings."""

    def __enter__(self) -> WarningsOnly:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: dict[str, Any]) -> None:
        if "warning" in event:
            print(f"warning: {event['warning']}", file=sys.stderr)


class Lines:
    """One line for every tenth of a stage."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: dict[str, Any]) -> None:
        if "baseline" in event:
            print(f"{event['baseline']} ...", file=sys.stderr, flush=True)
        elif "step" in event:
            tenth = 10 * event["step"] // event["of"]
            if tenth > self._said.get(event["stage"], 0):
                self._said[event["stage"]] = tenth
                left = event["seconds"] / event["step"] * (event["of"] - event["step"])
                line = f"{event['stage']}: {event['step']}/{event['of']}  {describe(event)}  {duration(left)} left"
                print(line, file=sys.stderr, flush=True)


class Bar:
    """A rich progress bar per stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._rich = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}", style="dim"),
            console=Console(stderr=True),
            transient=False,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if "baseline" in event:
            self._rich.console.print(f"{event['baseline']} ...", markup=False, highlight=False)
        elif "step" in event:
            stage = event["stage"]
            if stage not in self._tasks:
                self._tasks[stage] = self._rich.add_task(stage, total=event["of"], values="")
            self._rich.update(self._tasks[stage], completed=event["step"], values=describe(event))


def describe(event: dict[str, Any]) -> str:
    """'projection 0.0123, held out 0.0150'."""
    terms = [f"{name} {value:.4g}" for name, value in event["loss"].items()]
    if event.get("held_out") is not None:
        terms.append(f"held out {event['held_out']:.4g}")
    return ", ".join(terms)
