"""Langevin dynamics: a chain of all parameters of a field that samples their posterior (`hmc` is the other sampler).

Notation: theta parameters, U(theta) = -log posterior + constant (a sum over the measurements, no mean), xi ~ N(0, I).

Langevin dynamics (Welling & Teh, ICML 2011), with an RMSprop preconditioner (Li, Chen, Carlson & Carin, AAAI 2016):

    theta <- theta - r G grad U + sqrt(2 r G) xi,      G = 1 / (sqrt(V) + floor),   V <- a V + (1 - a) (grad U)^2

with rate r (half of the papers' step size), in full batches: an unadjusted chain, biased by its step. Ours: V rests
after the burn-in, so that the term with G's derivatives, which Li et al. leave out, vanishes from the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from scanfield.errors import InputError
from scanfield.fitting.schedules import Schedule


@dataclass(frozen=True)
class Thinning:
    """Which states of a chain are kept: from `burn_in` on every `every`-th, `count` of them."""

    burn_in: int
    every: int
    count: int

    def __post_init__(self) -> None:
        if self.burn_in < 0 or min(self.every, self.count) < 1:
            raise InputError(f"a chain needs burn-in >= 0, every >= 1 and count >= 1, got {self}")

    @property
    def steps(self) -> int:
        """Length of the chain."""
        return self.burn_in + self.every * self.count

    def kept(self, step: int) -> int:
        """How many draws there are after `step` steps."""
        return min(self.count, max(0, step - self.burn_in) // self.every)

    def place(self, step: int) -> int | None:
        """Which draw the state after `step` steps is, if any."""
        past = step - self.burn_in
        return past // self.every - 1 if past > 0 and past % self.every == 0 and step <= self.steps else None


def set_parameters(parameters: Sequence[nn.Parameter], values: Float[Tensor, " p"]) -> None:
    """Copies one draw into parameters, which keep their own memory: a product's last bits depend on its alignment."""
    with torch.no_grad():
        for p, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))


def polynomial_decay(offset: float, power: float) -> Schedule:
    """(1 + step / offset)^-power: Welling & Teh's a (b + t)^-gamma."""
    return lambda step, total: float((1 + step / offset) ** -power)


class Langevin:
    """An optimiser factory for `minimise` whose optimiser samples; the loss must be U, its gradient unclipped.

    Its state (position, preconditioner, draws) travels in the fit's checkpoints.

    Args:
        thinning: which states are kept in `draws`.
        generator: draws xi on its own device.
        precondition: whether G is used; otherwise G = 1.
        decay, floor: a and the floor of sqrt(V) of the preconditioner.
    """

    def __init__(
        self,
        thinning: Thinning,
        generator: torch.Generator,
        *,
        precondition: bool = True,
        decay: float = 0.99,
        floor: float = 1e-5,
    ) -> None:
        self.thinning, self.generator = thinning, generator
        self.precondition, self.decay, self.floor = precondition, decay, floor
        self._optimiser: _LangevinSteps | None = None

    def __call__(self, parameters: Sequence[nn.Parameter], rate: float) -> Optimizer:
        self._optimiser = _LangevinSteps(parameters, rate, self)
        return self._optimiser

    def draws(self) -> Float[Tensor, "s p"]:
        """The kept states so far, parameters flat and in their order, on the CPU."""
        if self._optimiser is None:
            return torch.empty(0, 0)
        parameters = self._optimiser.param_groups[0]["params"]
        states = [self._optimiser.state[p] for p in parameters]
        if not states[0]:
            return torch.empty(0, sum(p.numel() for p in parameters))
        kept = self.thinning.kept(states[0]["taken"])
        return torch.cat([state["draws"][:kept].flatten(1) for state in states], dim=1).cpu()


class _LangevinSteps(Optimizer):
    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, sampler: Langevin) -> None:
        super().__init__(parameters, {"lr": rate})
        self.sampler = sampler

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the chain for every parameter, and the draw where one is due."""
        sampler = self.sampler
        for group in self.param_groups:
            rate = group["lr"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["taken"] = 0
                    state["mean_square"] = torch.zeros_like(p)
                    state["draws"] = p.new_zeros(sampler.thinning.count, *p.shape)
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                noise = torch.randn(p.shape, generator=sampler.generator, device=sampler.generator.device).to(p)
                if sampler.precondition:
                    if state["taken"] == 0:
                        state["mean_square"].copy_(gradient.square())
                    elif state["taken"] < sampler.thinning.burn_in:
                        state["mean_square"].lerp_(gradient.square(), 1 - sampler.decay)
                    g = 1 / (state["mean_square"].sqrt() + sampler.floor)
                    p.addcmul_(g, gradient, value=-rate).addcmul_((2 * rate * g).sqrt(), noise)
                else:
                    p.add_(gradient, alpha=-rate).add_(noise, alpha=math.sqrt(2 * rate))
                state["taken"] += 1
                place = sampler.thinning.place(state["taken"])
                if place is not None:
                    state["draws"][place] = p
