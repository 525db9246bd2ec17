"""Fits side by side give what they give one after the other."""

from __future__ import annotations

import os

import pytest
import torch

from scanfield.bench import parallel
from scanfield.run import Run


def draw(job: int, run: Run) -> tuple[int, float, int, int]:
    value = torch.rand((), generator=run.generator("draw"))
    return job, job + float(value), torch.get_num_threads(), os.getpid()


@pytest.mark.parametrize("processors", [1, 3])
def test_results_do_not_depend_on_the_number_of_processes(processors, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(parallel, "_processors", lambda: processors * threads)
    found = parallel.each(draw, [4, 1, 7], Run(seed=5))
    value = float(torch.rand((), generator=Run(seed=5).generator("draw")))
    assert [row[:3] for row in found] == [(job, job + value, threads) for job in (4, 1, 7)]
    assert (os.getpid() in {row[3] for row in found}) == (processors == 1)
