from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scanfield.errors import InputError, ScanfieldError
from scanfield.fitting.groups import ParameterGroup, adam, sgd
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.run import Run

TARGET = torch.tensor([1.0, -2.0, 3.0])


class Problem:
    """A noisy regression with two groups of parameters, one of them frozen for a while."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.slope = nn.Parameter(torch.zeros(3))
        self.offset = nn.Parameter(torch.zeros(1))
        self.steps_run: list[int] = []
        self.kill_at: int | None = None

    @property
    def values(self) -> Tensor:
        return torch.cat([self.slope, self.offset]).detach().clone()

    def groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup("slope", [self.slope], 0.05, cosine()),
            ParameterGroup("offset", [self.offset], 0.1, optimiser=sgd(momentum=0.5), start_step=5, stop_step=17),
        ]

    def batches(self, step: int) -> Tensor:
        return torch.randn(8, 3, generator=self.run.generator("batches"))

    def loss(self, step: int, x: Tensor) -> dict[str, Tensor]:
        if step == self.kill_at:
            raise KeyboardInterrupt
        self.steps_run.append(step)
        noise = 0.1 * torch.randn(8, generator=self.run.generator("noise"))
        residual = x @ self.slope + self.offset - (x @ TARGET + 0.5 + noise)
        return {"data": residual.square().mean(), "size": self.slope.abs().sum()}

    def fit(self, stage: str = "fit", **more: object) -> FitLog:
        options = {"steps": 24, "ema_decay": 0.9, "check_every": 4, "keep_best": True, "log_every": 3}
        options |= {"checkpoint_every_s": 0.0} | more
        return minimise(
            stage,
            self.groups(),
            self.loss,
            self.batches,
            FitConfig(**options),
            self.run,
            weights={"size": 1e-3},
            held_out=self.held_out,
        )

    def held_out(self) -> float:
        return float((self.slope - TARGET).square().sum())


def quadratic(parameter: nn.Parameter, centre: float = 3.0):
    return lambda step, batch: {"data": (parameter - centre).square().sum()}


def nothing(step: int) -> None:
    return None


def test_finds_the_minimum_of_a_quadratic():
    x = nn.Parameter(torch.tensor([10.0, -10.0]))
    log = minimise("fit", [ParameterGroup("x", [x], 0.3, cosine())], quadratic(x), nothing, FitConfig(300), Run())
    torch.testing.assert_close(x.detach(), torch.tensor([3.0, 3.0]), atol=1e-3, rtol=0)
    assert (log.steps, log.stopped) == (300, "steps")
    assert log.history[-1]["loss"]["data"] < 1e-3 * log.history[0]["loss"]["data"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_is_the_weighted_sum_of_the_terms(dtype):
    x = nn.Parameter(torch.zeros(1, dtype=dtype))
    seen = []

    def loss(step, batch):
        seen.append((step, batch))
        return {"a": x.sum(), "b": x.sum(), "c": x.sum()}

    weights = {"a": 2.0, "b": lambda step: 10.0 * step}
    log = minimise(
        "fit",
        [ParameterGroup("x", [x], 1.0, optimiser=sgd())],
        loss,
        lambda step: step * 11,
        FitConfig(3, log_every=1),
        Run(),
        weights=weights,
    )
    assert x.item() == -(2 + 0 + 1) - (2 + 10 + 1) - (2 + 20 + 1)
    assert seen == [(0, 0), (1, 11), (2, 22)]
    assert [line["loss"]["a"] for line in log.history] == [0, -3, -16]  # terms are logged without their weights


def test_a_log_line_is_the_mean_since_the_last_one():
    x = nn.Parameter(torch.zeros(1))
    groups = [ParameterGroup("x", [x], 0.0)]
    log = minimise("fit", groups, lambda s, b: {"data": 0 * x.sum() + s}, nothing, FitConfig(7, log_every=3), Run())
    assert [(h["step"], h["loss"]["data"]) for h in log.history] == [(3, 1.0), (6, 4.0), (7, 6.0)]


def test_about_two_hundred_log_lines_by_default():
    x = nn.Parameter(torch.zeros(1))
    log = minimise("fit", [ParameterGroup("x", [x], 0.1)], quadratic(x), nothing, FitConfig(1000), Run())
    assert len(log.history) == 200


def test_average_of_the_parameters():
    x = nn.Parameter(torch.zeros(1))
    plan = FitConfig(3, ema_decay=0.5)
    minimise(
        "fit", [ParameterGroup("x", [x], 1.0, optimiser=sgd())], lambda s, b: {"d": -x.sum()}, nothing, plan, Run()
    )
    assert x.item() == 0.5 * 3 + 0.25 * 2 + 0.125 * 1  # x was 0, 1, 2, 3; the average starts at 0


def test_held_out_checks_see_the_average_and_leave_the_parameters_alone():
    x = nn.Parameter(torch.zeros(1))
    seen = []
    plan = FitConfig(4, ema_decay=0.5, check_every=2)
    minimise(
        "fit",
        [ParameterGroup("x", [x], 1.0, optimiser=sgd())],
        lambda s, b: {"d": -x.sum()},
        nothing,
        plan,
        Run(),
        held_out=lambda: seen.append(x.item()) or x.item(),
    )
    assert seen == [0.5 * 2 + 0.25, 0.5 * 4 + 0.25 * 3 + 0.125 * 2 + 0.0625]


def test_the_best_held_out_parameters_are_returned():
    x = nn.Parameter(torch.zeros(1))
    plan = FitConfig(10, check_every=1, keep_best=True)
    log = minimise(
        "fit",
        [ParameterGroup("x", [x], 1.0, optimiser=sgd())],
        lambda s, b: {"d": -x.sum()},
        nothing,
        plan,
        Run(),
        held_out=lambda: abs(x.item() - 4),
    )
    assert x.item() == 4 and log.best_step == 4 and log.best_held_out == 0 and log.steps == 10


def test_early_stopping():
    x = nn.Parameter(torch.zeros(1))
    plan = FitConfig(100, check_every=2, patience=3)
    log = minimise(
        "fit",
        [ParameterGroup("x", [x], 1.0, optimiser=sgd())],
        lambda s, b: {"d": -x.sum()},
        nothing,
        plan,
        Run(),
        held_out=lambda: abs(x.item() - 4),
    )
    assert (log.stopped, log.steps, log.best_step) == ("held-out", 10, 4)
    assert x.item() == 10  # the last ones, as keep_best was not asked for


def test_a_held_out_value_that_is_not_a_number_is_never_the_best():
    x = nn.Parameter(torch.zeros(1))
    values = iter([math.nan, 5.0, math.nan, 7.0])
    log = minimise(
        "fit",
        [ParameterGroup("x", [x], 1.0, optimiser=sgd())],
        lambda s, b: {"d": -x.sum()},
        nothing,
        FitConfig(4, check_every=1, keep_best=True),
        Run(),
        held_out=lambda: next(values),
    )
    assert log.best_step == 2 and x.item() == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_says_where(value):
    x = nn.Parameter(torch.zeros(1))

    def loss(step, batch):
        return {"data": x.sum() * (value if step == 3 else 1.0) + (value if step == 3 else 0.0)}

    with pytest.raises(ScanfieldError, match=r"stage 'coarse' at step 3.*learning rate"):
        minimise("coarse", [ParameterGroup("x", [x], 0.1)], loss, nothing, FitConfig(10), Run())
    assert torch.isfinite(x).all()


def test_a_weight_for_an_unknown_term_is_a_mistake():
    x = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="smoothnes"):
        minimise(
            "fit",
            [ParameterGroup("x", [x], 0.1)],
            quadratic(x),
            nothing,
            FitConfig(1),
            Run(),
            weights={"smoothnes": 1.0},
        )


def test_no_steps_change_nothing():
    x = nn.Parameter(torch.tensor([2.0]))
    log = minimise("fit", [ParameterGroup("x", [x], 0.1)], quadratic(x), nothing, FitConfig(0), Run())
    assert x.item() == 2 and log.stopped == "steps" and log.history == []


def test_stop_event_between_two_steps():
    run = Run()
    x = nn.Parameter(torch.zeros(1))

    def loss(step, batch):
        if step == 4:
            run.stop.set()
        return {"d": -x.sum()}

    log = minimise("fit", [ParameterGroup("x", [x], 1.0, optimiser=sgd())], loss, nothing, FitConfig(10), run)
    assert (log.stopped, log.steps, x.item()) == ("interrupted", 5, 5.0)


def lines(folder: Path) -> list[dict]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


@pytest.fixture
def uninterrupted(tmp_path):
    """Two stages that share generators, run through."""
    folder = tmp_path / "whole"
    folder.mkdir()
    problem = Problem(Run(folder, seed=5))
    logs = [problem.fit("one"), problem.fit("two")]
    return problem.values, lines(folder), logs


def without_times(log: FitLog) -> dict:
    facts = log.to_json() | {"seconds": None}
    return facts | {"history": [line | {"seconds": None} for line in facts["history"]]}


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize(
    ("stage", "at"), [("one", 0), ("one", 1), ("one", 10), ("one", 23), ("two", 0), ("two", 13), ("two", 16)]
)
def test_resumed_is_bit_equal_to_uninterrupted(uninterrupted, tmp_path, how, stage, at):
    folder = tmp_path / "cut"
    folder.mkdir()
    run = Run(folder, seed=5)
    problem = Problem(run)
    stages = ["one", "two"]
    try:
        for name in stages:
            if name == stage and how == "killed":
                problem.kill_at = at
            elif name == stage:
                original = problem.loss

                def loss(step, batch, original=original):
                    if step == at:
                        run.stop.set()
                    return original(step, batch)

                problem.loss = loss
            problem.fit(name)
    except KeyboardInterrupt:
        pass
    with (folder / "log.jsonl").open(
        "a"
    ) as file:  # a kill may also leave a line ahead of the checkpoint, or half a line
        file.write(
            '{"stage": "'
            + stage
            + '", "step": 99999, "loss": {"data": 0.1}, "held_out": null}\n{"stage": "x", "loss": {"a": 1}'
        )
    again = Problem(Run(folder, seed=5, resume=True))
    logs = [again.fit(name) for name in stages]
    values, whole, whole_logs = uninterrupted
    assert torch.equal(again.values, values)
    assert [without_times(log) for log in logs] == [without_times(log) for log in whole_logs]
    assert lines(folder) == whole
    assert len(again.steps_run) < 48 or (stage, at) == ("one", 0)


def test_a_finished_stage_returns_at_once(tmp_path):
    first = Problem(Run(tmp_path, seed=1))
    log = first.fit()
    again = Problem(Run(tmp_path, seed=1, resume=True))
    assert without_times(again.fit()) == without_times(log)
    assert again.steps_run == [] and torch.equal(again.values, first.values)


def test_without_resume_a_checkpoint_is_ignored(tmp_path):
    first = Problem(Run(tmp_path, seed=1))
    first.fit()
    again = Problem(Run(tmp_path, seed=2))
    again.fit()
    assert len(again.steps_run) == 24 and not torch.equal(again.values, first.values)


def test_an_interrupted_fit_returns_its_average_and_resumes_from_the_raw_parameters(tmp_path):
    run = Run(tmp_path)
    x = nn.Parameter(torch.zeros(1))

    def loss(step, batch):
        if step == 2:
            run.stop.set()
        return {"d": -x.sum()}

    groups = [ParameterGroup("x", [x], 1.0, optimiser=sgd())]
    minimise("fit", groups, loss, nothing, FitConfig(10, ema_decay=0.5), run)
    assert x.item() == 0.5 * 3 + 0.25 * 2 + 0.125
    minimise(
        "fit", groups, lambda s, b: {"d": -x.sum()}, nothing, FitConfig(3, ema_decay=0.5), Run(tmp_path, resume=True)
    )
    assert x.item() == 0.5 * 3 + 0.25 * 2 + 0.125


def test_resuming_with_another_model_or_plan_is_refused(tmp_path):
    x = nn.Parameter(torch.zeros(3))
    minimise("fit", [ParameterGroup("x", [x], 0.1)], quadratic(x), nothing, FitConfig(3), Run(tmp_path))
    other = nn.Parameter(torch.zeros(4))
    with pytest.raises(InputError, match="another model"):
        minimise(
            "fit",
            [ParameterGroup("x", [other], 0.1)],
            quadratic(other),
            nothing,
            FitConfig(3),
            Run(tmp_path, resume=True),
        )
    with pytest.raises(InputError, match="configuration"):
        minimise(
            "fit",
            [ParameterGroup("x", [x], 0.1)],
            quadratic(x),
            nothing,
            FitConfig(3, ema_decay=0.9),
            Run(tmp_path, resume=True),
        )


def test_every_optimiser_resumes(tmp_path):
    """Adam and SGD keep tensors and numbers of different kinds; all survive the round trip."""
    results = []
    for cut in (None, 5):
        folder = tmp_path / str(cut)
        folder.mkdir()
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]

        def loss(step, batch, parameters=parameters, cut=cut):
            if step == cut:
                raise KeyboardInterrupt
            return {"d": sum((p * (k + 1) - 2).square().sum() for k, p in enumerate(parameters))}

        def groups(parameters=parameters):
            makers = [adam(weight_decay=0.1), sgd(momentum=0.9), sgd()]
            return [
                ParameterGroup(str(k), [p], 0.01, optimiser=m)
                for k, (p, m) in enumerate(zip(parameters, makers, strict=True))
            ]

        plan = FitConfig(12, checkpoint_every_s=0.0)
        if cut:
            with pytest.raises(KeyboardInterrupt):
                minimise("fit", groups(), loss, nothing, plan, Run(folder))
            for p in parameters:
                nn.init.zeros_(p)
            minimise("fit", groups(), lambda step, batch: loss(-1, batch), nothing, plan, Run(folder, resume=True))
        else:
            minimise("fit", groups(), loss, nothing, plan, Run(folder))
        results.append(torch.cat(parameters).detach())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "setting", [{"clip_norm": 0.0}, {"clip_norm": -1.0}, {"clip_norm": math.nan}, {"check_every": -1}, {"patience": -1}]
)
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(InputError):
        FitConfig(3, **setting)
