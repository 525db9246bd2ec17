"""Every method that is trained learns in two processes what it learns in one. Also the program that these run."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from scanfield.fitting.parallel import joined
from scanfield.methods import api
from scanfield.run import Run

TRAINED = [name for name in sorted(api.discover()) if "train" in vars(api.load(name))]
STEPS = 12  # compared: rounding grows with every step


def train(name: str, run: Run) -> dict[str, Any]:
    """A tiny training, stopped after a few steps."""
    spec = importlib.util.spec_from_file_location("tiny_data", Path(__file__).with_name("data.py"))
    tiny_data = importlib.util.module_from_spec(spec)
    sys.modules["tiny_data"] = tiny_data
    spec.loader.exec_module(tiny_data)
    (kind,) = set(api.card(name).accepts) & set(tiny_data.COHORTS)
    module = api.load(name)
    run.observers = (lambda event: run.stop.set() if event.get("step", 0) >= STEPS else None,)
    with tempfile.TemporaryDirectory() as folder:
        model = module.train(module.Config.tiny(), tiny_data.COHORTS[kind](Path(folder)), run)
    losses = [line["loss"] for line in model.logs[0].history]
    return {"losses": losses, "key": model.key, "shared": run.workers.shared}


def main(out: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as workers:
        found = {name: train(name, Run(seed=3, workers=workers)) for name in TRAINED}
        (out / f"{workers.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """What two processes say."""
    out = tmp_path_factory.mktemp("out")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": source}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(out)], env={**os.environ, **common, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_learn_what_one_learns(found, name):
    first, second = (part[name] for part in found)
    assert first["key"] == second["key"], "both hold the same model, bit for bit"
    one = train(name, Run(seed=3))
    assert len(one["losses"]) == len(first["losses"]) > 0
    for alone, together in zip(one["losses"], first["losses"], strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-6)
    if not first["shared"]:
        assert first["key"] == one["key"], "a method that does not share its batches learns just the same"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
