"""Fits side by side give what they give one after the other, and what they give after an interruption."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from scanfield.bench import parallel
from scanfield.bench.kept import BenchRun, Kept
from scanfield.run import Run


def draw(job: int, run: Run) -> list[float]:
    value = torch.rand((), generator=run.generator("draw"))
    return [job, job + float(value), torch.get_num_threads(), os.getpid()]


@dataclass(frozen=True)
class Fit:
    """Writes down that it was made; fails while there is a file 'broken', if it is the one that breaks."""

    number: int
    folder: str
    breaks: bool = False


def fit(job: Fit, run: Run) -> dict[str, float | list[int]]:
    if job.breaks and (Path(job.folder) / "broken").exists():
        raise RuntimeError("interrupted")
    with (Path(job.folder) / "made").open("a") as file:
        file.write(f"{job.number}\n")
    noise = torch.randn(3, generator=run.generator(f"fit {job.number}"))
    return {"psnr_db": float(noise.mean()), "odd": float("inf"), "sizes": [job.number]}


@pytest.mark.parametrize("processors", [1, 3])
def test_results_do_not_depend_on_the_number_of_processes(processors, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(parallel, "_processors", lambda: processors * threads)
    found = parallel.each(draw, [4, 1, 7], Run(seed=5))
    value = float(torch.rand((), generator=Run(seed=5).generator("draw")))
    assert [row[:3] for row in found] == [[job, job + value, threads] for job in (4, 1, 7)]
    assert (os.getpid() in {row[3] for row in found}) == (processors == 1)


@pytest.mark.parametrize("processors", [1, 2])
def test_an_interrupted_run_goes_on_where_it_was(processors, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_processors", lambda: processors * torch.get_num_threads())
    jobs = [Fit(number, str(tmp_path), breaks=number == 3) for number in range(5)]
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="interrupted"):
        parallel.each(fit, jobs, BenchRun(seed=2, kept=Kept(tmp_path / "kept", {})))
    (tmp_path / "broken").unlink()
    before = (tmp_path / "made").read_text().split()
    assert "3" not in before and (processors > 1 or before == ["0", "1", "2"])

    seen: list[dict] = []
    run = BenchRun(seed=2, kept=Kept(tmp_path / "kept", {}), observers=(seen.append,))
    resumed = parallel.each(fit, jobs, run)
    made = (tmp_path / "made").read_text().split()
    assert sorted(made) == ["0", "1", "2", "3", "4"], "nothing is made twice"
    assert run.kept.jobs == 5 and len(run.kept.taken_s) == len(before)
    assert [event["done"] for event in seen] == list(range(len(before), 6))
    assert {(event["of"], event["taken"], event["edited"]) for event in seen} == {(5, len(before), False)}
    assert resumed == parallel.each(fit, jobs, Run(seed=2)), "as in one go"


def test_an_edited_or_damaged_result_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_processors", lambda: torch.get_num_threads())
    jobs = [Fit(number, str(tmp_path)) for number in range(3)]

    def taken(seed: int = 0, machine: str = "this") -> int:
        run = BenchRun(seed=seed, kept=Kept(tmp_path / "kept", {"torch": machine}))
        assert parallel.each(fit, jobs, run) == parallel.each(fit, jobs, Run(seed=seed))
        return len(run.kept.taken_s)

    assert [taken(), taken(), taken(seed=1), taken(machine="other"), taken()] == [0, 3, 0, 0, 3]
    place = Kept(tmp_path / "kept", {"torch": "this"}).place(fit, jobs[1], Run())
    place.write_bytes(place.read_bytes()[:-5])
    assert [taken(), taken()] == [2, 3]


def test_without_a_folder_nothing_is_left_and_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_processors", lambda: torch.get_num_threads())
    seen: list[dict] = []
    parallel.each(draw, [1, 2], Run(observers=(seen.append,)))
    assert seen == [{"done": n, "of": 2, "taken": 0, "edited": False} for n in (1, 2)]
    assert parallel.each(draw, [], Run()) == []
