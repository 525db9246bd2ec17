"""Results of a benchmark's independent jobs in a folder: an interrupted run goes on where it was.

A result's file is named by its function, job, seed and backend, and by the machine as the line states it. Its facts
hold the digests of all sources that were loaded when it was made, and it is taken only while those are the same. Data
that a job reads by itself are not looked at. Files are written atomically under a checksum, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scanfield.bench.runner import source_sha256
from scanfield.errors import InputError
from scanfield.fitting.state import load_state, save_state
from scanfield.run import Run
from scanfield.tasks.model import Model

KIND, SCHEMA = "benchmark job", 1
PACKAGE = Path(__file__).parents[1]


@dataclass
class Kept:
    """A folder of results.

    Args:
        folder: where they are; made if there is none.
        machine: where the jobs run, JSON-able.
        jobs: how many results the run has asked for.
        taken_s: of each result that was there, the seconds that it took when it was made.
        sources: digest of every file that a job may load, by name, as it is at the beginning of the run.

    Raises:
        InputError: there is a file of this name.
    """

    folder: Path
    machine: dict[str, Any]
    jobs: int = 0
    taken_s: list[float] = field(default_factory=list)
    sources: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("results are kept in a folder, and this is a file", where=str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sources = _digests([*PACKAGE.rglob("*.py"), *_read_by_code()])

    def place(self, function: Callable[..., Any], job: Any, run: Run) -> Path:
        """Where the result of a job is, or will be."""
        key = [function.__module__, function.__qualname__, described(job), run.seed, run.backend, self.machine]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    def take(self, place: Path) -> tuple[Any, float] | None:
        """A result and the seconds it took; None if it is missing, damaged, or of other sources."""
        try:
            _, facts = load_state(place, kind=KIND, schema=SCHEMA)
            if not facts["sources"].items() <= self.sources.items():
                return None
            return Model.load(_model_file(place)) if facts["model"] else facts["result"], facts["seconds"]
        except InputError:
            return None

    def save(self, place: Path, result: Any, seconds: float) -> bool:
        """Writes a result; False, and nothing is written, if sources were edited after the run began: which of them it
        was made with is not known."""
        loaded = (vars(module).get("__file__") for module in list(sys.modules.values()))
        ours = [path for path in map(Path, filter(None, loaded)) if path.is_relative_to(PACKAGE)]
        sources = _digests([*(path for path in ours if not path.is_relative_to(PACKAGE / "cli")), *_read_by_code()])
        if not sources.items() <= self.sources.items():
            return False
        place.unlink(missing_ok=True)  # the facts come last, so that they are never those of an earlier model
        facts = {"kind": KIND, "schema": SCHEMA, "seconds": seconds, "sources": sources, "model": False}
        if isinstance(result, Model):
            result.save(_model_file(place))
            facts["model"] = True
        else:
            facts["result"] = result
        save_state(place, {}, facts)
        return True


@dataclass(eq=False)
class BenchRun(Run):
    """The run of a protocol; `kept` is where `bench.parallel.each` keeps results, if it shall."""

    kept: Kept | None = None


def described(job: Any) -> Any:
    """A job as JSON: plain values as they are, arrays and models by their digests, dataclasses by their fields.

    Raises:
        TypeError: it holds something else.
    """
    if job is None or isinstance(job, str | bool | int | float):
        return job
    if isinstance(job, np.generic):
        return job.item()
    if isinstance(job, Model):
        return job.key
    if isinstance(job, Tensor):
        return described(job.detach().cpu().numpy())
    if isinstance(job, np.ndarray):
        return [str(job.dtype), job.shape, hashlib.sha256(job.tobytes()).hexdigest()]
    if isinstance(job, list | tuple):
        return [described(item) for item in job]
    if isinstance(job, dict):
        return [[described(key), described(item)] for key, item in job.items()]
    if is_dataclass(job) and not isinstance(job, type):
        return [type(job).__qualname__, {each.name: described(getattr(job, each.name)) for each in fields(job)}]
    raise TypeError(f"a job holds plain values, arrays, models and dataclasses, not a {type(job).__qualname__}")


def _digests(files: list[Path]) -> dict[str, str]:
    return {path.relative_to(PACKAGE).as_posix(): source_sha256(path) for path in files}


def _read_by_code() -> list[Path]:
    """Files that are no modules: samples, spectra, compiled kernels."""
    inside = [path for folder in ("data", "kernels/lib") for path in (PACKAGE / folder).rglob("*")]
    return [path for path in inside if path.is_file() and path.suffix not in (".py", ".pyc")]


def _model_file(place: Path) -> Path:
    return place.with_suffix(".model.safetensors")
