"""Independent fits of a protocol side by side, in processes of their own; each kept once it is there, if so wished."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from scanfield.bench.kept import BenchRun, Kept
from scanfield.run import Run
from scanfield.tasks.model import Model

Job = TypeVar("Job")
Found = TypeVar("Found")
Call = tuple[Callable[..., Any], Any, tuple[str, int, str], Kept | None, Path | None]  # the arguments of `_one`


def each(function: Callable[[Job, Run], Found], jobs: Sequence[Job], run: Run) -> list[Found]:
    """`function(job, run)` for every job, in the order of the jobs.

    As many run at a time as torch's threads fit into the processors: set OMP_NUM_THREADS=1 for one on each. A job's
    run has the seed, device and backend of `run`, so results do not depend on how many there are; seconds do, a
    little, since processes share memory. If `run` keeps results (`bench.kept`), those in its folder are taken, and the
    others are left there, each as soon as it is there.

    Args:
        function: of a module's top level; it must not raise what cannot be sent between processes. It returns a
            `Model`, or what JSON holds: tuples become lists.
        jobs: what can be sent between processes, and, to be kept, `bench.kept.described`.
        run: told {"done": how many, "of": all, "taken": how many of those done were in the folder, "edited": whether
            the last one could not be kept because sources were edited after the run began}.
    """
    kept = run.kept if isinstance(run, BenchRun) else None
    settings = (str(run.device), run.seed, run.backend)
    found: dict[int, Any] = {}
    calls: dict[int, Call] = {}
    for number, job in enumerate(jobs):
        place = kept.place(function, job, run) if kept else None
        there = kept.take(place) if kept and place else None
        if kept and there:
            found[number] = there[0]
            kept.taken_s.append(there[1])
        else:
            calls[number] = (function, job, settings, kept, place)
    taken = len(found)
    if kept:
        kept.jobs += len(jobs)
    if taken:
        run.tell({"done": taken, "of": len(jobs), "taken": taken, "edited": False})
    for number, result, edited in _as_they_come(calls):
        found[number] = result
        run.tell({"done": len(found), "of": len(jobs), "taken": taken, "edited": edited})
    return [found[number] for number in range(len(jobs))]


def _as_they_come(calls: dict[int, Call]) -> Iterator[tuple[int, Any, bool]]:
    """Number, result, and whether sources were edited; the first to finish comes first."""
    threads = torch.get_num_threads()
    count = min(len(calls), max(1, _processors() // threads))
    if count <= 1:
        for number, call in calls.items():
            yield number, *_one(*call)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(count, context, torch.set_num_threads, (threads,))
    try:
        futures = {pool.submit(_one, *call): number for number, call in calls.items()}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], *future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error those that run are still kept


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def _one(
    function: Callable[[Any, Run], Any], job: Any, settings: tuple[str, int, str], kept: Kept | None, place: Path | None
) -> tuple[Any, bool]:
    """A job's result, and whether sources were edited, so that it could not be kept."""
    device, seed, backend = settings
    start = time.perf_counter()
    result = function(job, Run(device=torch.device(device), seed=seed, backend=backend))
    seconds = time.perf_counter() - start
    if not isinstance(result, Model):
        result = json.loads(json.dumps(result))  # the same whether it is kept or not
    edited = kept is not None and place is not None and not kept.save(place, result, seconds)
    return result, edited
