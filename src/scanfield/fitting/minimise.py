"""The one optimisation loop: it receives its parts and returns what happened.

Per step: draw a batch, evaluate the named loss terms, add them with their weights, update the parameter groups. Between
steps: log, check held-out data, let a preview look, average weights, write a checkpoint from which the fit continues
bit for bit (CPU, same number of threads), stop when asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from scanfield.errors import InputError, ScanfieldError
from scanfield.fitting.checkpoint import Stage, copy_into
from scanfield.fitting.groups import ParameterGroup, make_step
from scanfield.fitting.log import FitLog
from scanfield.run import Run, on_the_run_s_backend

Batch = TypeVar("Batch")
LossFn = Callable[[int, Batch], Mapping[str, Tensor]]
Weight = float | Callable[[int], float]


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
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"the largest norm of the gradient must be positive, got {self.clip_norm:g}")
        if min(self.check_every, self.patience) < 0:
            raise InputError(f"checks are {self.check_every} steps apart, patience is {self.patience}: not below 0")


@on_the_run_s_backend
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
        stage: name of this stage, unique within the run (checkpoint, log); `run.part` goes before it.
        groups: what is optimised, and how.
        loss: (step, batch) -> unweighted named scalar terms.
        batches: step -> batch; must draw from `run.generator(...)` so that a resumed fit sees the same batches.
        weights: factor of a term, or a function of the step; 1 where not given.
        held_out: error on data the loss never sees (smaller is better).

    Several processes average their gradients before every step, and the loss and the held-out error that are logged.

    Returns:
        The log; with `run.resume` and a finished checkpoint of this stage, immediately.

    Raises:
        ScanfieldError: the loss became NaN or infinite; of several processes (`run.workers`), some cannot read what is
            to be continued.
    """
    if held_out is None and (config.patience or config.keep_best):
        raise ValueError("patience and keep_best need held-out data to judge by")
    stage, weights = run.part + stage, dict(weights or {})
    workers, step = run.workers, make_step(groups, config.clip_norm, run.workers)
    now = Stage(step, FitLog(stage))
    if config.ema_decay:
        now.average = [p.detach().clone() for p in step.parameters]
    path = None if run.folder is None else run.folder / "state" / f"{stage}.safetensors"
    kept = path if run.writes else None
    if path is not None and run.resume:
        if path.is_file():
            now.restore(path, run)
        if workers.any(workers.means([now.log.steps]) != [now.log.steps]):
            raise ScanfieldError(f"the processes do not see the same checkpoint of stage '{stage}': share the folder")
        run.rewrite_log(stage, now.log.history)
        if now.log.stopped != "running":
            return now.log
    log = now.log
    every = config.log_every or max(1, config.steps // 200)
    bad_checks = 0 if log.best_step is None else (log.steps - log.best_step) // max(1, config.check_every)
    before, start = log.seconds, time.perf_counter()
    saved = start

    while log.steps < config.steps and not run.stopped():
        terms = loss(log.steps, batches(log.steps))
        total = _weighted(terms, weights, log.steps)
        value, *values = workers.means([float(part.detach()) for part in (total, *terms.values())])
        if not math.isfinite(value):
            raise ScanfieldError(
                f"the fit diverged in stage '{stage}' at step {log.steps}: the loss is {value}; lower the learning rate"
            )
        step(total, log.steps, config.steps)
        for mean, parameter in zip(now.average, step.parameters, strict=bool(now.average)):
            mean.lerp_(parameter.detach(), 1 - config.ema_decay)
        log.steps += 1
        now.summed += 1
        for name, term in zip(terms, values, strict=True):
            now.sums[name] = now.sums.get(name, 0.0) + term
        log.seconds = before + time.perf_counter() - start

        due = config.check_every > 0 and log.steps % config.check_every == 0
        last = log.steps == config.steps
        held = _check(now, held_out, config.keep_best, run) if held_out is not None and (due or last) else None
        if held is not None and due:
            bad_checks = 0 if log.best_step == log.steps else bad_checks + 1
        if log.steps % every == 0 or held is not None or last:
            _log_line(now, config.steps, held, run)
        if run.preview is not None:
            run.preview.look(stage, log.steps, now.in_place)
        if config.patience and bad_checks >= config.patience:
            log.stopped = "held-out"
            break
        if kept is not None and time.perf_counter() - saved > config.checkpoint_every_s:
            now.save(kept, run)
            saved = time.perf_counter()

    interrupted = log.stopped == "running" and log.steps < config.steps
    if interrupted and kept is not None and log.steps > 0:
        # A stage that never began leaves no checkpoint: an earlier one will still move the shared generators.
        now.save(kept, run)
    if log.stopped == "running":
        log.stopped = "interrupted" if interrupted else "steps"
    copy_into(step.parameters, now.best if config.keep_best and now.best else now.average)
    if kept is not None and not interrupted:
        now.save(kept, run)
    return log


def _weighted(terms: Mapping[str, Tensor], weights: Mapping[str, Weight], step: int) -> Tensor:
    unknown = set(weights) - set(terms)
    if unknown:
        raise ValueError(f"weights for terms the loss does not have: {sorted(unknown)}")
    total = torch.zeros(())
    for name, term in terms.items():
        weight = weights.get(name, 1.0)
        total = total + (weight(step) if callable(weight) else weight) * term
    return total


def _check(now: Stage, held_out: Callable[[], float], keep_best: bool, run: Run) -> float:
    """The held-out error; remembers the best one, and its parameters where they are to be kept."""
    with now.in_place(), torch.no_grad():
        (value,) = run.workers.means([held_out()])
    log = now.log
    if math.isfinite(value) and (log.best_held_out is None or value < log.best_held_out):
        log.best_held_out, log.best_step = value, log.steps
        if keep_best:
            now.best = [p.detach().clone() for p in now.current()]
    return value


def _log_line(now: Stage, steps: int, held: float | None, run: Run) -> None:
    line = {
        "stage": now.log.stage,
        "step": now.log.steps,
        "of": steps,
        "seconds": round(now.log.seconds, 3),
        "loss": {name: value / now.summed for name, value in now.sums.items()},
        "held_out": held,
    }
    now.log.history.append(line)
    run.event(line)
    now.sums, now.summed = {}, 0
