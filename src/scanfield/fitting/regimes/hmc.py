"""Hamiltonian Monte Carlo over all parameters of a small field (Neal, Handbook of MCMC, 2011, chapter 5).

Notation: theta parameters in units of their scales, U(theta) = -log posterior + constant, p momentum ~ N(0, I), e step.

    p <- p - e/2 grad U,   theta <- theta + e p,   p <- p - e/2 grad U           l times (leapfrog)
    accept with probability min(1, exp(U + |p|^2/2 before - after))

During the burn-in e is steered to an acceptance of `target` by dual averaging (Hoffman & Gelman, JMLR 15:1593-1623,
2014, section 3.2); l is drawn anew for every proposal, so that no period is met again and again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from scanfield.errors import InputError
from scanfield.fitting.log import FitLog
from scanfield.fitting.regimes.sampling import Thinning, set_parameters
from scanfield.fitting.state import load_state, save_state
from scanfield.run import Run, on_the_run_s_backend

KIND, SCHEMA = "chain state", 1
GAMMA, DELAY, KAPPA = 0.05, 10, 0.75  # of dual averaging, as published


@dataclass(frozen=True)
class HmcConfig:
    """How to sample.

    Args:
        thinning: which states are kept, counted in proposals.
        leapfrog: most steps of a proposal; each draws a number between half of it and all.
        first_step: e where the burn-in starts.
        target: acceptance that the burn-in steers to.
        checkpoint_every_s: seconds between checkpoints.

    Raises:
        InputError: a number is outside of its range.
    """

    thinning: Thinning
    leapfrog: int = 20
    first_step: float = 0.01
    target: float = 0.8
    checkpoint_every_s: float = 20.0

    def __post_init__(self) -> None:
        if self.leapfrog < 1 or self.first_step <= 0 or not 0 < self.target < 1:
            raise InputError(f"HMC needs leapfrog >= 1, a positive first step and 0 < target < 1, got {self}")


@dataclass
class _Counters:
    """What a chain knows between two proposals besides its position and its draws."""

    log_step: float
    log_average: float
    shortfall: float = 0.0  # running mean of target - acceptance
    taken: int = 0
    since_line: int = 0
    accepted: int = 0
    energy: float = 0.0


@on_the_run_s_backend
def hmc(
    stage: str,
    parameters: Sequence[nn.Parameter],
    energy: Callable[[], Tensor],
    config: HmcConfig,
    run: Run,
    *,
    scales: Sequence[Tensor] | None = None,
    held_out: Callable[[], float] | None = None,
) -> tuple[Float[Tensor, "s p"], FitLog]:
    """Draws from exp(-U); leaves the last state in the parameters. Resumes like `minimise`, proposal by proposal.

    Args:
        stage: name of this stage, unique within the run.
        energy: U at the parameters' present values, differentiable.
        scales: the unit of every parameter, in the parameters' shapes; 1 where not given.
        held_out: error on data that U does not know, logged ten times in the chain.

    Returns:
        The draws, parameters flat and in their order, on the CPU; and the log, whose lines hold the mean energy and the
        share of accepted proposals.

    Raises:
        InputError: the energy is not finite where the chain starts.
    """
    stage = run.part + stage
    start = parameters_to_vector(parameters).detach().clone()
    unit = torch.ones_like(start) if scales is None else torch.cat([s.reshape(-1) for s in scales]).to(start)

    def evaluate(theta: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(theta * unit, parameters)
        value = energy()
        found = torch.autograd.grad(value, list(parameters), allow_unused=True, materialize_grads=True)
        return float(value.detach()), parameters_to_vector(found) * unit

    chain = _Chain(evaluate, start / unit, config, FitLog(stage), run)
    if run.folder is not None and run.resume:
        chain.resume()
    if chain.log.stopped == "running":
        chain.sample(held_out)
    for p in parameters:
        p.data = p.data.clone()  # they are parts of one vector
    set_parameters(parameters, chain.theta * unit)
    return chain.draws[: config.thinning.kept(chain.counters.taken)] * unit.cpu(), chain.log


class _Chain:
    def __init__(
        self,
        evaluate: Callable[[Tensor], tuple[float, Tensor]],
        theta: Tensor,
        config: HmcConfig,
        log: FitLog,
        run: Run,
    ) -> None:
        self.evaluate, self.theta, self.config, self.log, self.run = evaluate, theta, config, log, run
        self.draws = torch.zeros(config.thinning.count, len(theta))
        self.counters = _Counters(math.log(config.first_step), math.log(config.first_step))
        self.generator = run.generator(f"{log.stage} proposals")

    def sample(self, held_out: Callable[[], float] | None) -> None:
        """Proposes and accepts until the chain is complete or the run is stopped."""
        steps, now = self.config.thinning.steps, self.counters
        before, began = self.log.seconds, time.perf_counter()
        saved = began
        value, gradient = self.evaluate(self.theta)
        if not math.isfinite(value):
            raise InputError(f"the energy is {value} where the chain starts", fix="fit the field before sampling")
        while now.taken < steps and not self.run.stop.is_set():
            value, gradient, probability = self._propose(value, gradient)
            now.taken += 1
            if now.taken <= self.config.thinning.burn_in:
                self._adapt(probability)
            place = self.config.thinning.place(now.taken)
            if place is not None:
                self.draws[place] = self.theta.cpu()
            now.energy += value
            now.since_line += 1
            self.log.steps, self.log.seconds = now.taken, before + time.perf_counter() - began
            if now.taken % max(1, steps // 10) == 0 or now.taken == steps:
                self.evaluate(self.theta)  # the last proposal, which may have been refused, is in the parameters
                self._line(steps, None if held_out is None else held_out())
            if time.perf_counter() - saved > self.config.checkpoint_every_s:
                self.save()
                saved = time.perf_counter()
        self.log.stopped = "steps" if now.taken == steps else "interrupted"
        if now.taken > 0:
            self.save()

    def _propose(self, value: float, gradient: Tensor) -> tuple[float, Tensor, float]:
        """One proposal: the energy and its gradient at the new state, and the probability of having accepted."""
        config, now = self.config, self.counters
        burning = now.taken < config.thinning.burn_in
        size = math.exp(now.log_step if burning or config.thinning.burn_in == 0 else now.log_average)
        momentum = torch.randn(len(self.theta), generator=self.generator).to(self.theta)
        length = int(torch.randint((config.leapfrog + 1) // 2, config.leapfrog + 1, (), generator=self.generator))
        uniform = float(torch.rand((), generator=self.generator))
        theta, p, there, slope = self.theta, momentum, value, gradient
        for _ in range(length):
            p = p - size / 2 * slope
            theta = theta + size * p
            there, slope = self.evaluate(theta)
            p = p - size / 2 * slope
            if not math.isfinite(there):
                return value, gradient, 0.0
        change = value - there + float(momentum.square().sum() - p.square().sum()) / 2
        probability = math.exp(min(0.0, change)) if math.isfinite(change) else 0.0
        if uniform >= probability:
            return value, gradient, probability
        self.theta = theta
        now.accepted += 1
        return there, slope, probability

    def _adapt(self, probability: float) -> None:
        """Dual averaging: Hoffman & Gelman's algorithm 5, shrunk towards ten times the first step."""
        now, m = self.counters, self.counters.taken
        now.shortfall += (self.config.target - probability - now.shortfall) / (m + DELAY)
        now.log_step = math.log(10 * self.config.first_step) - math.sqrt(m) / GAMMA * now.shortfall
        weight = m**-KAPPA
        now.log_average = weight * now.log_step + (1 - weight) * now.log_average

    def _line(self, steps: int, held: float | None) -> None:
        now = self.counters
        line: dict[str, Any] = {
            "stage": self.log.stage,
            "step": now.taken,
            "of": steps,
            "seconds": round(self.log.seconds, 3),
            "loss": {"energy": now.energy / now.since_line, "acceptance": now.accepted / now.since_line},
            "held_out": held,
        }
        self.log.history.append(line)
        self.run.event(line)
        now.energy, now.accepted, now.since_line = 0.0, 0, 0

    def save(self) -> None:
        """Writes the checkpoint, if the run has a folder."""
        if self.run.folder is None:
            return
        path = self._path(self.run.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"generator/{name}": state for name, state in self.run.generator_states().items()}
        facts = {"kind": KIND, "schema": SCHEMA, "log": self.log.to_json(), "counters": asdict(self.counters)}
        save_state(path, tensors | {"theta": self.theta, "draws": self.draws}, facts)

    def resume(self) -> None:
        """Continues from the checkpoint, if there is one.

        Raises:
            InputError: the file is damaged, or belongs to another chain.
        """
        assert self.run.folder is not None
        path = self._path(self.run.folder)
        if path.is_file():
            tensors, facts = load_state(path, kind=KIND, schema=SCHEMA)
            shapes = [tuple(tensors[name].shape) for name in ("theta", "draws") if name in tensors]
            if shapes != [tuple(self.theta.shape), tuple(self.draws.shape)]:
                raise InputError(
                    "the chain's state belongs to another model",
                    where=str(path),
                    fix="resume with the configuration the run was started with",
                )
            self.theta, self.draws = tensors["theta"].to(self.theta), tensors["draws"]
            prefix = "generator/"
            states = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.run.restore_generators(states)
            self.log, self.counters = FitLog(**facts["log"]), _Counters(**facts["counters"])
            self.log.stopped = "steps" if self.log.stopped == "steps" else "running"
        self.run.rewrite_log(self.log.stage, self.log.history)

    def _path(self, folder: Path) -> Path:
        return folder / "state" / f"{self.log.stage}.safetensors"
