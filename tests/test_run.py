from __future__ import annotations

import json

import pytest
import torch

from scanfield.errors import InputError
from scanfield.run import Run, choose_device


def test_generators_are_named_seeded_and_kept():
    run, same, other = Run(seed=1), Run(seed=1), Run(seed=2)
    draw = torch.rand(4, generator=run.generator("a"))
    assert run.generator("a") is run.generator("a")
    assert not torch.equal(draw, torch.rand(4, generator=run.generator("a")))  # it goes on
    assert torch.equal(draw, torch.rand(4, generator=same.generator("a")))
    assert not torch.equal(draw, torch.rand(4, generator=Run(seed=1).generator("b")))
    assert not torch.equal(draw, torch.rand(4, generator=other.generator("a")))
    for seed in (-1, 0, 2**70):
        assert torch.rand(1, generator=Run(seed=seed).generator("a")).item() >= 0


def test_generator_states_round_trip():
    run = Run(seed=3)
    torch.rand(3, generator=run.generator("a"))
    states = run.generator_states()
    expected = torch.rand(5, generator=run.generator("a"))
    again = Run(seed=99)
    again.restore_generators(states)
    assert torch.equal(torch.rand(5, generator=again.generator("a")), expected)


def test_events_go_to_the_log_and_the_observers(tmp_path):
    seen: list[dict] = []
    run = Run(tmp_path, observers=(seen.append,))
    run.event({"stage": "a", "step": 1})
    run.event({"stage": "b", "step": 2})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == seen
    Run(observers=(seen.append,)).event({"step": 3})
    assert seen[-1] == {"step": 3}


@pytest.mark.parametrize(
    "rest",
    ["", '{"stage": "a", "loss": {"data": 0.1}', '{"stage"', '{"stage": "a", "step": 1}', "[1]\n", "3\n", "\x00\x00\n"],
)
def test_rewriting_the_log_drops_what_is_ahead_and_what_was_cut_off(tmp_path, rest):
    run = Run(tmp_path)
    for event in ({"stage": "a", "step": 1}, {"stage": "b", "step": 1}, {"note": "kept"}, {"stage": "a", "step": 2}):
        run.event(event)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(rest)
    run.rewrite_log("a", [{"stage": "a", "step": 1}])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"stage": "b", "step": 1}, {"note": "kept"}, {"stage": "a", "step": 1}]


def test_rewriting_no_log_is_nothing(tmp_path):
    Run(tmp_path).rewrite_log("a", [])
    Run().rewrite_log("a", [])
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_kept_once_and_times_add_up():
    seen: list[dict] = []
    run = Run(observers=(seen.append,))
    run.warn("careful")
    run.warn("careful")
    assert run.warnings == ["careful"] and seen == [{"warning": "careful"}]
    for _ in range(2):
        with run.timed("fit"):
            pass
    with pytest.raises(ValueError), run.timed("bad"):
        raise ValueError
    assert run.timings["fit"] >= 0 and "bad" in run.timings


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no CUDA"):
        choose_device("cuda")
    with pytest.raises(InputError, match="unknown device"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"


def test_a_run_again_draws_the_same_and_keeps_how_it_computes() -> None:
    seen: list[object] = []
    run = Run(seed=3, observers=(seen.append,), backend="reference")
    first = torch.rand(4, generator=run.generator("a"))
    again = run.again()
    assert torch.equal(torch.rand(4, generator=again.generator("a")), first)
    assert again.folder is None and again.backend == "reference" and again.stop is run.stop
    again.tell({"x": 1})
    run.again(quiet=True).tell({"x": 2})
    assert seen == [{"x": 1}]


def test_a_member_draws_what_a_run_of_its_seed_draws_and_shares_the_rest(tmp_path) -> None:
    run = Run(tmp_path, seed=3)
    first = torch.rand(4, generator=run.generator("a"))
    member = run.member(2)
    assert torch.equal(
        torch.rand(4, generator=member.generator("a")), torch.rand(4, generator=Run(seed=5).generator("a"))
    )
    assert torch.equal(torch.rand(4, generator=run.member(0).generator("a")), first)
    assert member.part == "member-2-" and member.folder == tmp_path and member.stop is run.stop
    member.warn("careful")
    with member.timed("fit"):
        pass
    assert run.warnings == ["careful"] and "fit" in run.timings and run.part == ""
