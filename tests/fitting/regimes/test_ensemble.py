"""Members of an ensemble: independent, reproducible one by one, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.ensemble import fit_members
from scanfield.run import Run


def _fit(run: Run) -> torch.Tensor:
    """A noisy descent whose path depends on the run's seed alone."""
    parameter, draws = nn.Parameter(torch.zeros(3)), run.generator("batches")

    def loss(step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"distance": (parameter - batch).square().sum()}

    groups = [ParameterGroup("field", [parameter], 0.05)]
    minimise("fit", groups, loss, lambda step: torch.randn(3, generator=draws), FitConfig(20), run)
    return parameter.detach().clone()


def test_member_k_is_the_fit_of_the_next_seeds():
    members = fit_members(_fit, 3, Run(seed=7))
    for k, member in enumerate(members):
        assert torch.equal(member, _fit(Run(seed=7 + k)))
    assert not torch.equal(members[0], members[1])


def test_every_member_has_checkpoints_and_log_lines_of_its_own(tmp_path):
    run = Run(tmp_path, seed=7)
    fit_members(_fit, 3, run)
    assert sorted(path.stem for path in (tmp_path / "state").glob("*")) == [f"member-{k}-fit" for k in range(3)]
    text = (tmp_path / "log.jsonl").read_text()
    assert all(f'"member-{k}-fit"' in text for k in range(3))


@pytest.mark.parametrize("at", [10, 30])
def test_a_stopped_ensemble_keeps_finished_members_and_continues(tmp_path: Path, at: int):
    """Stopped in the first member (which is kept as it is) and in the second (which is not)."""
    whole = fit_members(_fit, 3, Run(seed=7))
    run, count = Run(tmp_path, seed=7), 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count >= at:
            run.stop.set()

    run.observers = (stop,)
    part = fit_members(_fit, 3, run)
    assert len(part) == 1 and torch.equal(part[0], whole[0]) is (at == 30)
    assert "1 of 3 members" in run.warnings[0]
    resumed = Run(tmp_path, seed=7, resume=True)
    again = fit_members(_fit, 3, resumed)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    assert resumed.warnings == []


def test_an_ensemble_of_one_is_refused():
    with pytest.raises(InputError, match="at least two members"):
        fit_members(_fit, 1, Run())


def test_ensembles_of_ensembles_are_refused():
    with pytest.raises(InputError, match="cannot be an ensemble"):
        fit_members(lambda run: fit_members(_fit, 2, run), 2, Run())
