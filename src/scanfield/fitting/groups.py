"""Named parameter groups: each its own optimiser, rate, schedule and time of life."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scanfield.errors import InputError
from scanfield.fitting.schedules import Schedule, constant
from scanfield.kernels.adam import VisitedAdam
from scanfield.run import ALONE, Workers

OptimiserFactory = Callable[[Sequence[nn.Parameter], float], Optimizer]


def adam(
    *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8, weight_decay: float = 0.0
) -> OptimiserFactory:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019).

    Raises:
        InputError: the weight decay is negative.
    """
    if not weight_decay >= 0:
        raise InputError(f"the weight decay cannot be negative, got {weight_decay:g}")

    def make(parameters: Sequence[nn.Parameter], rate: float) -> Optimizer:
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=True)

    return make


def visited_adam(*, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> OptimiserFactory:
    """Adam that leaves rows of a table alone in steps that do not visit them (`kernels.adam`): for large grids."""

    def make(parameters: Sequence[nn.Parameter], rate: float) -> Optimizer:
        return VisitedAdam(parameters, lr=rate, betas=betas, eps=epsilon)

    return make


def sgd(*, momentum: float = 0.0) -> OptimiserFactory:
    """Stochastic gradient descent."""

    def make(parameters: Sequence[nn.Parameter], rate: float) -> Optimizer:
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum)

    return make


@dataclass(eq=False)
class ParameterGroup:
    """Parameters that share an optimiser.

    Args:
        name: 'field', 'poses', 'spectrum', ...: for the log and the checkpoint.
        parameters: what is optimised.
        learning_rate: base rate, multiplied by `schedule(step, total)`.
        optimiser: a factory such as `adam()`.
        start_step, stop_step: outside [start, stop) the group is frozen and its optimiser's state rests.

    Raises:
        InputError: the rate is negative or no number.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    schedule: Schedule = constant
    optimiser: OptimiserFactory = field(default_factory=adam)
    start_step: int = 0
    stop_step: int | None = None

    def __post_init__(self) -> None:
        self.parameters = list(self.parameters)  # an iterator would be empty at its second reading
        if not self.parameters:
            raise ValueError(f"parameter group '{self.name}' is empty")
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"the learning rate of '{self.name}' cannot be negative, got {self.learning_rate:g}")

    def active(self, step: int) -> bool:
        return self.start_step <= step and (self.stop_step is None or step < self.stop_step)


class Step:
    """One optimisation step over several groups; methods that alternate or nest loops call it directly."""

    def __init__(self, groups: Sequence[ParameterGroup], clip_norm: float | None, workers: Workers) -> None:
        names = [group.name for group in groups]
        if len(set(names)) != len(names):
            raise ValueError(f"parameter groups need distinct names, got {names}")
        owned = [id(p) for group in groups for p in group.parameters]
        if len(set(owned)) != len(owned):
            raise ValueError("a parameter belongs to two groups (or twice to one): it would be stepped twice")
        self.groups = list(groups)
        self.clip_norm, self.workers = clip_norm, workers
        self.optimisers = [group.optimiser(group.parameters, group.learning_rate) for group in groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups for p in group.parameters]

    def __call__(self, loss: Tensor, step: int, total: int) -> None:
        """Backpropagates `loss` and updates every group that is active at `step`."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.workers.average(self.parameters)
        active = [k for k, group in enumerate(self.groups) if group.active(step)]
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for k in active for p in self.groups[k].parameters], self.clip_norm)
        for k in active:
            rate = self.groups[k].learning_rate * self.groups[k].schedule(step, total)
            for options in self.optimisers[k].param_groups:
                options["lr"] = rate
            self.optimisers[k].step()


def make_step(groups: Sequence[ParameterGroup], clip_norm: float | None = None, workers: Workers = ALONE) -> Step:
    """A step function over `groups`, for methods whose procedure is not one loop.

    Args:
        workers: whose gradients are averaged before the step; those of a run are `run.workers`.
    """
    return Step(groups, clip_norm, workers)
