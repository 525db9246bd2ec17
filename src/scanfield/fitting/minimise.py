"""The one optimisation loop: it receives its parts and returns what happened.

Per step: draw a batch, evaluate the named loss terms, add them with their weights, update the parameter groups. Between
steps: log, check held-out data, average weights, write a checkpoint from which the fit continues bit for bit (CPU,
same number of threads), stop when asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from scanfield.errors import InputError, ScanfieldError
from scanfield.fitting.groups import ParameterGroup, Step, make_step
from scanfield.fitting.state import adopt_parameters, load_state, save_state
from scanfield.run import Run

Batch = TypeVar("Batch")
LossFn = Callable[[int, Batch], Mapping[str, Tensor]]
Weight = float | Callable[[int], float]
Stopped = Literal["steps", "held-out", "interrupted"]


@dataclass(frozen=True)
class FitConfig:
    """How long and how carefully to minimise.

    Args:
        steps: number of steps.
        clip_norm: largest norm of the gradient over all active groups.
        ema_decay: keep an exponential moving average of the parameters and return it.
        check_every: steps between held-out checks (0: only at the end).
        patience: stop after so many checks without a better held-out value (0: never).
        keep_best: return the parameters of the best held-out check instead of the last ones.
        log_every: steps between log lines; 0 chooses about 200 lines a fit.
        checkpoint_every_s: seconds between checkpoints.
    """

    steps: int
    clip_norm: float | None = None
    ema_decay: float = 0.0
    check_every: int = 0
    patience: int = 0
    keep_best: bool = False
    log_every: int = 0
    checkpoint_every_s: float = 20.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"the number of steps cannot be negative, got {self.steps}")


@dataclass
class FitLog:
    """What happened in one stage: `history` holds {step, seconds, loss: {term: mean}, held_out} per log line."""

    stage: str
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: Stopped | Literal["running"] = "running"
    best_step: int | None = None
    best_held_out: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def minimise(
    stage: str,
    groups: Sequence[ParameterGroup],
    loss: LossFn[Batch],
    batches: Callable[[int], Batch],
    config: FitConfig,
    run: Run,
    *,
    weights: Mapping[str, Weight] | None = None,
    held_out: Callable[[], float] | None = None,
) -> FitLog:
    """Minimises sum_k weight_k(step) * loss_k over the groups' parameters, in place.

    Args:
        stage: name of this stage, unique within the run (checkpoint, log).
        groups: what is optimised, and how.
        loss: (step, batch) -> unweighted named scalar terms.
        batches: step -> batch; must draw from `run.generator(...)` so that a resumed fit sees the same batches.
        weights: factor of a term, or a function of the step; 1 where not given.
        held_out: error on data the loss never sees (smaller is better).

    Returns:
        The log; with `run.resume` and a finished checkpoint of this stage, immediately.

    Raises:
        ScanfieldError: the loss became NaN or infinite.
    """
    if held_out is None and (config.patience or config.keep_best):
        raise ValueError("patience and keep_best need held-out data to judge by")
    weights = dict(weights or {})
    step_fn = make_step(groups, config.clip_norm)
    parameters = step_fn.parameters
    log = FitLog(stage)
    average = [p.detach().clone() for p in parameters] if config.ema_decay else []
    best: list[Tensor] = []
    path = None if run.folder is None else run.folder / "state" / f"{stage}.safetensors"
    sums: dict[str, float] = {}  # of every term since the last log line
    summed = 0
    if path is not None and run.resume:
        if path.is_file():
            log, sums, summed = _restore(path, step_fn, average, best, run)
        run.rewrite_log(stage, log.history)
        if log.stopped != "running":
            return log
    every = config.log_every or max(1, config.steps // 200)
    bad_checks = 0 if log.best_step is None else (log.steps - log.best_step) // max(1, config.check_every)
    clock = time.perf_counter()
    before = log.seconds
    saved = clock

    def check() -> float | None:
        if held_out is None:
            return None
        with _swapped(parameters, average), torch.no_grad():
            value = held_out()
        if math.isfinite(value) and (log.best_held_out is None or value < log.best_held_out):
            log.best_held_out, log.best_step = value, log.steps
            if config.keep_best:
                best[:] = [p.detach().clone() for p in (average or parameters)]
        return value

    while log.steps < config.steps:
        if run.stop.is_set():
            break
        step = log.steps
        terms = loss(step, batches(step))
        unknown = set(weights) - set(terms)
        if unknown:
            raise ValueError(f"weights for terms the loss does not have: {sorted(unknown)}")
        total = sum((_at(weights.get(name, 1.0), step) * term for name, term in terms.items()), start=torch.zeros(()))
        value = float(total.detach())
        if not math.isfinite(value):
            raise ScanfieldError(
                f"the fit diverged in stage '{stage}' at step {step}: the loss is {value}; lower the learning rate"
            )
        step_fn(total, step, config.steps)
        for mean, parameter in zip(average, parameters, strict=bool(average)):
            mean.lerp_(parameter.detach(), 1 - config.ema_decay)
        log.steps = step + 1
        summed += 1
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach())
        now = time.perf_counter()
        log.seconds = before + now - clock
        due = config.check_every and log.steps % config.check_every == 0
        last = log.steps == config.steps
        held = check() if due or last else None
        if held is not None and due:
            bad_checks = 0 if log.best_step == log.steps else bad_checks + 1
        if log.steps % every == 0 or held is not None or last:
            line = {
                "stage": stage,
                "step": log.steps,
                "of": config.steps,
                "seconds": round(log.seconds, 3),
                "loss": {name: s / summed for name, s in sums.items()},
                "held_out": held,
            }
            log.history.append(line)
            run.event(line)
            sums, summed = {}, 0
        if config.patience and bad_checks >= config.patience:
            log.stopped = "held-out"
            break
        if path is not None and now - saved > config.checkpoint_every_s:
            _save(path, log, sums, summed, step_fn, average, best, run)
            saved = time.perf_counter()
    interrupted = log.stopped == "running" and log.steps < config.steps
    if interrupted and path is not None and log.steps > 0:
        # A stage that never began leaves no checkpoint: an earlier one will still move the shared generators.
        _save(path, log, sums, summed, step_fn, average, best, run)
    if log.stopped == "running":
        log.stopped = "interrupted" if interrupted else "steps"
    chosen = best if config.keep_best and best else average
    if chosen:
        _copy(parameters, chosen)
    if path is not None and not interrupted:
        _save(path, log, {}, 0, step_fn, average, best, run)
    return log


def _at(weight: Weight, step: int) -> float:
    return weight(step) if callable(weight) else weight


def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class _swapped:
    """Puts the averaged parameters in place for a moment."""

    def __init__(self, parameters: Sequence[Tensor], average: Sequence[Tensor]) -> None:
        self.parameters, self.average = parameters, average

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p in self.parameters] if self.average else []
        if self.average:
            _copy(self.parameters, self.average)

    def __exit__(self, *_: object) -> None:
        if self.average:
            _copy(self.parameters, self.kept)


def _save(
    path: Path,
    log: FitLog,
    sums: dict[str, float],
    summed: int,
    step_fn: Step,
    average: list[Tensor],
    best: list[Tensor],
    run: Run,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"parameter/{k}": p for k, p in enumerate(step_fn.parameters)}
    tensors |= {f"average/{k}": t for k, t in enumerate(average)} | {f"best/{k}": t for k, t in enumerate(best)}
    tensors |= {f"generator/{name}": state for name, state in run.generator_states().items()}
    scalars: dict[str, Any] = {}
    for k, optimiser in enumerate(step_fn.optimisers):
        for index, entries in optimiser.state_dict()["state"].items():
            for key, value in entries.items():
                name = f"optimiser/{k}/{index}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = value
    facts = {"kind": "fit state", "schema": 1, "log": log.to_json(), "sums": sums, "summed": summed, "scalars": scalars}
    save_state(path, tensors, facts)


def _restore(
    path: Path, step_fn: Step, average: list[Tensor], best: list[Tensor], run: Run
) -> tuple[FitLog, dict[str, float], int]:
    tensors, facts = load_state(path, kind="fit state", schema=1)
    try:
        return _adopt(tensors, facts, str(path), step_fn, average, best, run)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the fit state does not belong to this fit, or was altered: {error}",
            where=str(path),
            fix="resume with the configuration the run was started with",
        ) from None


def _adopt(
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    where: str,
    step_fn: Step,
    average: list[Tensor],
    best: list[Tensor],
    run: Run,
) -> tuple[FitLog, dict[str, float], int]:
    parameters = step_fn.parameters

    def family(name: str) -> list[Tensor]:
        return [tensors[f"{name}/{k}"] for k in range(len(parameters)) if f"{name}/{k}" in tensors]

    adopt_parameters(parameters, family("parameter"), where)
    if average:
        _copy(average, family("average"))
    best[:] = family("best")
    for k, optimiser in enumerate(step_fn.optimisers):
        state: dict[int, dict[str, Any]] = {}
        prefix = f"optimiser/{k}/"
        for name, value in [*tensors.items(), *facts["scalars"].items()]:
            if name.startswith(prefix):
                index, key = name[len(prefix) :].split("/")
                state.setdefault(int(index), {})[key] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    run.restore_generators(
        {name.removeprefix("generator/"): t for name, t in tensors.items() if name.startswith("generator/")}
    )
    return FitLog(**facts["log"]), facts["sums"], facts["summed"]
