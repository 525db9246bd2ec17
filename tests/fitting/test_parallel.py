"""Several processes train what one process trains. This file is also the program that they run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scanfield.errors import InputError, ScanfieldError
from scanfield.fields.condition import LatentTable
from scanfield.fitting.groups import ParameterGroup, adam
from scanfield.fitting.minimise import FitConfig
from scanfield.fitting.parallel import joined
from scanfield.fitting.regimes.population import Draw, Epochs, auto_decode
from scanfield.fitting.schedules import halve_every
from scanfield.run import ALONE, Run, Workers

SUBJECTS, SIZE, BATCH, STEPS = 5, 3, 4, 30


def train(run: Run) -> dict[str, object]:
    """Learns lines y = a_i x + b_i, and says what came out."""
    weights = run.generator("weights")
    network = nn.Linear(SIZE, 2)
    spare = nn.Parameter(torch.zeros(2))  # gets no gradient anywhere
    with torch.no_grad():
        network.weight.normal_(generator=weights)
        network.bias.zero_()
    table = LatentTable(SUBJECTS, SIZE, deviation=0.1, generator=weights)

    def loss(step: int, codes: Tensor, drawn: list[Draw]) -> dict[str, Tensor]:
        errors = []
        for code, draw in zip(codes, drawn, strict=True):
            x = torch.randn(16, 1, generator=draw.generator)
            slope, offset = network(code)
            errors.append(((slope - draw.index + 2) * x + offset - 0.3 * draw.index).square().mean())
        return {"data": torch.stack(errors).mean()}

    groups = [
        ParameterGroup("network", [*network.parameters(), spare], 3e-2, halve_every(20)),
        ParameterGroup("codes", [table.free], 1e-1, optimiser=adam()),
    ]
    plan = FitConfig(STEPS, clip_norm=1.0, ema_decay=0.9, check_every=10, keep_best=True, log_every=3)
    members = Epochs(SUBJECTS, BATCH, run)
    log = auto_decode(
        "lines",
        groups,
        table,
        loss,
        members,
        plan,
        run,
        prior=1e-3,
        held_out=lambda: float(network.bias.square().sum()),
    )
    return {
        "losses": [line["loss"] for line in log.history],
        "held_out": [line["held_out"] for line in log.history],
        "weights": torch.cat([network.weight.flatten(), network.bias, table.free.flatten()]).tolist(),
        "steps": log.steps,
        "stopped": log.stopped,
        "spare": spare.grad is None,
    }


def main(out: Path, folder: Path, how: str) -> None:
    """What each process does.

    Where `how` is 'stop', process 1 asks to stop after 15 steps; where it is 'leave', process 0 ends at once.
    """
    with joined(torch.device("cpu")) as workers:
        if how == "leave":
            found: object = left_alone(workers)
        else:
            run = Run(folder, seed=4, resume=how == "resume", workers=workers)
            if workers.rank == 1 and how == "stop":
                run.observers = (lambda event: run.stop.set() if event["step"] >= 15 else None,)
            found = train(run)
        (out / f"{workers.rank}.json").write_text(json.dumps(found))


def left_alone(workers: Workers) -> str:
    """What process 1 is told when it waits for process 0."""
    if workers.rank == 1:
        try:
            workers.any(True)
        except ScanfieldError as error:
            return str(error)
    return ""


def together(out: Path, folder: Path, how: str) -> list[dict]:
    """Runs two processes and returns what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    source = str(Path(__file__).parents[2] / "src")
    program = [sys.executable, __file__, str(out), str(folder), how]
    processes = [
        subprocess.Popen(program, env={**os.environ, **common, "RANK": str(rank), "PYTHONPATH": source})
        for rank in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict:
    return train(Run(seed=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("run")
    (made / "log.jsonl").write_text("")
    return made


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory) -> list[dict]:
    return together(tmp_path_factory.mktemp("out"), folder, "whole")


def test_two_processes_train_what_one_trains(one, found, folder):
    assert found[0] == found[1], "both hold the same weights, bit for bit"
    for mine, theirs in zip(one["losses"], found[0]["losses"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    assert found[0]["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert found[0]["held_out"][-1] == pytest.approx(one["held_out"][-1], rel=1e-4)
    assert found[0]["losses"][-1]["data"] < 0.5 * found[0]["losses"][0]["data"] and found[0]["spare"]
    assert len((folder / "log.jsonl").read_text().splitlines()) == len(one["losses"]), "one of them writes the log"


@pytest.mark.slow
def test_all_stop_together_and_go_on_where_they_were(found, tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    cut = together(tmp_path, tmp_path, "stop")
    assert [(c["steps"], c["stopped"]) for c in cut] == [(15, "interrupted")] * 2
    assert together(tmp_path, tmp_path, "resume") == found


def test_who_waits_for_a_process_that_has_left_is_told(tmp_path):
    assert "another process of this training has ended" in together(tmp_path, tmp_path, "leave")[1]


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as workers:
        assert workers is ALONE
    assert (ALONE.rank, ALONE.count, ALONE.shared) == (0, 1, False)
    assert ALONE.share([1, 2]) == [1, 2] and ALONE.means([0.5]) == [0.5] and ALONE.any(True) and not ALONE.any(False)


def test_an_environment_that_does_not_say_who_is_who(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"one of several.*RANK") as caught, joined(torch.device("cpu")):
        pass
    assert "torchrun" in caught.value.fix


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
