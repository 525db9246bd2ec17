"""The line that a run leaves, with a protocol of its own."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
import torch

from scanfield.bench import parallel, runner
from scanfield.bench.compare import as_text, before_after
from scanfield.bench.protocol import BenchResult, Check
from scanfield.run import Run

JOBS = [1, 2, 3]


def fit(job: int, run: Run) -> dict[str, float]:
    return {"psnr_db": 30.0 + job + float(torch.rand((), generator=run.generator("noise")))}


def run_toy(run: Run) -> BenchResult:
    rows = parallel.each(fit, JOBS, run)
    return BenchResult(rows, [Check("best", max(row["psnr_db"] for row in rows), 32.0, unit="dB")])


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The source of a protocol 'toy'."""
    module = ModuleType("toy")
    module.run = run_toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scanfield.bench.protocols.toy", module)
    monkeypatch.setattr(runner, "PROTOCOLS", tmp_path)
    monkeypatch.setattr(parallel, "_processors", lambda: torch.get_num_threads())
    (tmp_path / "toy.py").write_bytes(b'"""A toy."""\nx = 1\n')
    return tmp_path / "toy.py"


def test_a_line_names_its_protocol_whatever_its_line_endings(toy):
    line = runner.run_protocol("toy", device="cpu")
    assert line["protocol_sha256"] == runner.protocol_sha256("toy") and len(line["protocol_sha256"]) == 64
    assert not runner.changed_since("toy", line)
    toy.write_bytes(toy.read_bytes().replace(b"\n", b"\r\n"))
    assert not runner.changed_since("toy", line)
    toy.write_bytes(toy.read_bytes() + b"y = 1\n")
    assert runner.changed_since("toy", line)
    assert not runner.changed_since("toy", {}), "an older line does not say"


def test_a_resumed_line_says_what_it_took_and_no_seconds(toy, tmp_path):
    whole = runner.run_protocol("toy", device="cpu", seed=3)
    assert "taken" not in whole and whole["seconds"] >= 0
    first = runner.run_protocol("toy", device="cpu", seed=3, keep=tmp_path / "kept")
    assert first["taken"] == {"results": 0, "of": 3, "seconds": 0} and first["seconds"] is not None
    next((tmp_path / "kept").iterdir()).unlink()
    second = runner.run_protocol("toy", device="cpu", seed=3, keep=tmp_path / "kept")
    assert second["taken"]["results"] == 2 and second["taken"]["of"] == 3 and second["seconds"] is None
    for key in ("table", "checks"):
        assert whole[key] == first[key] == second[key]
    assert "2 of 3 results kept from before" in as_text(second) and "kept" not in as_text(first)
    assert json.loads(json.dumps(second)) == second
    row = before_after(first, second).splitlines()[-1].split()
    assert row[0] == "seconds" and row[2:4] == ["-", "-"]


def test_a_comparison_says_when_the_protocols_are_not_known_to_be_the_same(toy):
    line = runner.run_protocol("toy", device="cpu")
    old = {key: value for key, value in line.items() if key != "protocol_sha256"}
    other = line | {"protocol_sha256": "0" * 64}
    assert "rotocol" not in before_after(line, line)
    assert "The protocols differ" in before_after(other, line)
    assert "not known" in before_after(old, line)
