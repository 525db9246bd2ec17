"""Independent fits of a protocol side by side, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from scanfield.run import Run

Job = TypeVar("Job")
Found = TypeVar("Found")


def each(function: Callable[[Job, Run], Found], jobs: Sequence[Job], run: Run) -> list[Found]:
    """`function(job, run)` for every job, in the order of the jobs.

    As many run at a time as torch's threads fit into the processors: set OMP_NUM_THREADS=1 for one on each. A job's
    run has the seed, device and backend of `run`, so results do not depend on how many there are; seconds do, a
    little, since processes share memory.

    Args:
        function: of a module's top level; it must not raise what cannot be sent between processes.
        jobs: what can be sent between processes.
    """
    threads = torch.get_num_threads()
    count = min(len(jobs), max(1, _processors() // threads))
    settings = (str(run.device), run.seed, run.backend)
    if count == 1:
        return [function(job, _run(*settings)) for job in jobs]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, context, torch.set_num_threads, (threads,)) as pool:
        return list(pool.map(_one, [function] * len(jobs), jobs, [settings] * len(jobs)))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def _run(device: str, seed: int, backend: str) -> Run:
    return Run(device=torch.device(device), seed=seed, backend=backend)


def _one(function: Callable[[Job, Run], Found], job: Job, settings: tuple[str, int, str]) -> Found:
    return function(job, _run(*settings))
