"""One run: where it writes, where it computes, from which seeds, and who watches."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch

from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.kernels.backend import using
from scanfield.space.grid import Grid

Observer = Callable[[dict[str, Any]], None]
Image = Callable[[Grid], torch.Tensor]  # renders on any grid, (n0, n1, n2) on the CPU
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Shown:
    """What is seen of a fit while it runs.

    Args:
        prepare: makes the image of what is fitted as it is when it is called, once for all planes of a picture: here
            belongs what has to be computed before any point can be asked, such as an image's features. Neither this
            nor the image draws random numbers of the run or changes anything.
        grid: where the image will be wanted.
        unit: of the image.
        what: a few words, where the run does not say it: which of many things is seen.
        window: black and white; None: what suits each picture.
    """

    prepare: Callable[[], Image]
    grid: Grid
    unit: str
    what: str = ""
    window: tuple[float, float] | None = None


@runtime_checkable
class Preview(Protocol):
    """Draws what is fitted while it is fitted (`view.preview`); changes nothing of it."""

    def show(self, shown: Shown) -> None: ...
    def look(self, stage: str, step: int, in_place: Callable[[], AbstractContextManager[None]]) -> None: ...


@runtime_checkable
class Workers(Protocol):
    """Processes that fit the same thing together, each with its part of every batch (`fitting.parallel`).

    They run the same program with the same seed, so whatever does not depend on their part of a batch is the same in
    all of them. Functions that compare or average are called by all of them at the same place, and wait for the others.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0. Number 0 alone writes files and talks to the user."""

    @property
    def count(self) -> int: ...

    @property
    def shared(self) -> bool:
        """Whether a batch was ever cut into parts."""

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a batch: the same number of items in every process."""

    def average(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replaces the parameters' gradients by their means over the processes; where no process has one, none."""

    def means(self, values: Sequence[float]) -> list[float]:
        """Mean over the processes, the same numbers in all of them."""

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes."""


@dataclass(frozen=True)
class Alone:
    """One process: what a run has unless it is told otherwise."""

    rank: int = 0
    count: int = 1
    shared: bool = False

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """All of them."""
        return items

    def average(self, parameters: Iterable[torch.Tensor]) -> None:
        """Leaves the gradients as they are."""

    def means(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag


ALONE = Alone()


@dataclass(eq=False)
class Run:
    """Everything a fit needs that is not data: no module touches a global seed, device or folder.

    Args:
        folder: where results, log and resume state go; None keeps everything in memory.
        device: where tensors live.
        seed: every generator is derived from it.
        resume: whether stages found in `folder` are continued.
        replace: whether a run found in `folder` may be replaced.
        observers: called with every log event (progress bars, live views).
        backend: which implementation of the kernels computes (see `kernels.backend`).
        part: what the names of all stages begin with: '', or 'member-2-' in a run of several fits (see `member`).
        preview: who draws images while the run fits, if anyone does (see `show`).
        workers: the processes that fit together; only the first of them writes to `folder`.
    """

    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    resume: bool = False
    replace: bool = False
    observers: tuple[Observer, ...] = ()
    backend: str = "auto"
    part: str = ""
    preview: Preview | None = None
    workers: Workers = ALONE
    stop: threading.Event = field(default_factory=threading.Event)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    _generators: dict[str, torch.Generator] = field(default_factory=dict)

    def again(self, *, quiet: bool = False) -> Run:
        """A run in memory with the same device, seed, backend and stop, and with generators of its own: what is fitted
        in it draws the same numbers whatever was fitted before.

        Args:
            quiet: whether nobody is told about it.
        """
        observers = () if quiet else self.observers
        run = Run(device=self.device, seed=self.seed, observers=observers, stop=self.stop, backend=self.backend)
        return replace(run, workers=self.workers)

    def member(self, index: int) -> Run:
        """The run of one of several fits in the same folder: seed `seed + index`, generators and stages of its own.

        Log, warnings, notes, timings and stop are shared. What it draws is what a run with that seed draws.
        """
        return replace(self, seed=self.seed + index, part=f"{self.part}member-{index}-", _generators={})

    @property
    def writes(self) -> bool:
        """Whether this process writes to the folder; the others only read what is to be continued."""
        return self.workers.rank == 0

    def stopped(self) -> bool:
        """Whether somebody asked to stop, in any of the processes: all of them get the same answer."""
        if self.workers.any(self.stop.is_set()):
            self.stop.set()
        return self.stop.is_set()

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator called `name`, seeded from the run's seed and the name; the same object every time."""
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
            self._generators[name] = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return self._generators[name]

    def generator_states(self) -> dict[str, torch.Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def restore_generators(self, states: dict[str, torch.Tensor]) -> None:
        for name, state in states.items():
            self.generator(name).set_state(state)

    def event(self, event: dict[str, Any]) -> None:
        """Appends one event to log.jsonl and tells the observers."""
        if self.folder is not None and self.writes:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        self.tell(event)

    def tell(self, event: dict[str, Any]) -> None:
        """Tells the observers something that is not part of the fit's log."""
        for observer in self.observers:
            observer(event)

    def rewrite_log(self, stage: str, history: list[dict[str, Any]]) -> None:
        """Replaces a stage's lines in log.jsonl: after a kill the file may be ahead of the checkpoint."""
        if self.folder is None or not self.writes or not (self.folder / "log.jsonl").is_file():
            return
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _stage(line) not in (stage, _CUT_OFF)]
        text = "".join(line + "\n" for line in [*kept, *map(json.dumps, history)])
        with write_atomically(self.folder / "log.jsonl") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def warn(self, message: str) -> None:
        """Keeps a warning for the table, the report and the terminal."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.tell({"warning": message})

    def note(self, message: str) -> None:
        """Keeps a remark a reader of the numbers needs; unlike a warning, nothing is wrong."""
        if message not in self.notes:
            self.notes.append(message)

    def show(self, image: Image, grid: Grid, unit: str) -> None:
        """Lets whoever watches the run draw what is fitted as it is at any moment: called before a fit's first stage.

        Args:
            image: renders what is fitted as it is when it is called; draws no random numbers and changes nothing.
            grid: where the image will be wanted.
            unit: of the image.
        """
        self.show_prepared(Shown(lambda: image, grid, unit))

    def show_prepared(self, shown: Shown) -> None:
        """As `show`, where more than an image has to be said, or something computed before it can be asked."""
        if self.preview is not None:
            self.preview.show(shown)

    def timed(self, name: str) -> _Timer:
        """Context manager that adds the seconds spent inside to `timings[name]`."""
        return _Timer(self, name)


def on_the_run_s_backend(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator of functions with an argument `run`: kernels called inside use `run.backend`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with using(signature.bind(*args, **kwargs).arguments["run"].backend):
            return function(*args, **kwargs)

    return wrapped


_CUT_OFF = object()


def _stage(line: str) -> object:
    """The stage a log line belongs to; a line that a kill cut off in the middle is no JSON."""
    try:
        return json.loads(line).get("stage")
    except (ValueError, AttributeError):
        return _CUT_OFF


class _Timer:
    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.run.timings[self.name] = self.run.timings.get(self.name, 0.0) + time.perf_counter() - self.start


def choose_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' -> a device that exists.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{name}'", fix="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available", fix="use --device cpu, or install a CUDA build of torch")
    return torch.device(name)
