"""Meta-learning: base parameters from which a few gradient steps on the fast variables already fit a new signal.

Notation: theta base parameters, v fast variables (a signal's latents, or all weights of a network), a their rates.

    v_0     = v_0(theta)
    v_{i+1} = v_i - a * grad_v support(theta, v_i)                    i = 0 .. K - 1
    theta*  = argmin E_batch query(theta, v_K)

MAML (Finn, Abbeel & Levine, ICML 2017): v are the weights, v_0 = theta. CAVIA (Zintgraf et al., ICML 2019): v are
inputs of the network, v_0 = 0. Meta-SGD (Li et al., arXiv 1703.03400, 2017): a is learned too, one rate a number. The
gradient of the query goes through the steps (second order), or takes their gradients as constants (first order).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from scanfield.fitting.minimise import LossFn

Batch = TypeVar("Batch")
Fast = Mapping[str, Tensor]
Rates = Mapping[str, Tensor] | float


class LearnedRates(nn.Module):
    """Positive rates that are learned with the base parameters: exp(l), one l for every number that `like` holds.

    Args:
        like: tensors with the shape of the rates, by the name of the fast variable; a rate is broadcast against it.
        rate: where all of them start.
    """

    def __init__(self, like: Fast, rate: float) -> None:
        super().__init__()
        if not rate > 0:
            raise ValueError(f"an inner rate must be positive, got {rate}")
        self.names = tuple(like)
        start = torch.tensor(rate).log()
        self.logarithms = nn.ParameterList(start.to(like[name]).expand(like[name].shape).clone() for name in self.names)

    def forward(self) -> dict[str, Tensor]:
        """The rates by name."""
        return {name: value.exp() for name, value in zip(self.names, self.logarithms, strict=True)}


def adapt(
    loss: Callable[[dict[str, Tensor]], Tensor],
    start: Fast,
    *,
    rates: Rates,
    steps: int,
    second_order: bool = False,
) -> dict[str, Tensor]:
    """The fast variables after `steps` steps of gradient descent.

    Where the fast variables are weights of a network, `torch.func.functional_call(network, fast, ...)` in `loss`
    evaluates the network with them; parameters that are not among them stay the base's.

    Args:
        loss: support(theta, v), a scalar. For a batch of signals with variables of their own: the sum of their losses,
            so that no step depends on how many there are.
        start: v_0 by name. Where it depends on base parameters, so does the result.
        rates: a, one for all, or a tensor a variable that is broadcast against it.
        second_order: whether the gradients of the steps can be differentiated again.
    """
    if steps < 0:
        raise ValueError(f"the number of steps cannot be negative, got {steps}")
    missing = set() if isinstance(rates, float) else set(start) ^ set(rates)
    if missing:
        raise ValueError(f"fast variables and rates differ: {sorted(missing)}")
    with torch.enable_grad():
        now = {name: value if value.requires_grad else value.detach().requires_grad_() for name, value in start.items()}
        for _ in range(steps):
            grads = torch.autograd.grad(loss(now), list(now.values()), create_graph=second_order)
            now = {
                name: value - (rates if isinstance(rates, float) else rates[name]) * grad
                for (name, value), grad in zip(now.items(), grads, strict=True)
            }
    return now


def meta_loss(
    start: Callable[[Batch], Fast],
    support: Callable[[dict[str, Tensor], Batch], Tensor],
    query: Callable[[dict[str, Tensor], Batch], Tensor],
    *,
    rates: Callable[[], Rates],
    steps: int,
    second_order: bool = True,
) -> LossFn[Batch]:
    """The outer loss, `after`, for `fitting.minimise`: its groups are the base parameters and, where they are learned,
    the rates; progress, checkpoints and resuming are those of every other fit.

    Args:
        start: batch -> v_0.
        support: what the inner steps descend, see `adapt`.
        query: what is minimised over the base parameters, a scalar: a mean over the batch.
        rates: the rates as they are now, such as `LearnedRates`.
        second_order: False takes the inner gradients as constants; saves time and memory.
    """

    def loss(step: int, batch: Batch) -> dict[str, Tensor]:
        fast = adapt(
            lambda now: support(now, batch), start(batch), rates=rates(), steps=steps, second_order=second_order
        )
        return {"after": query(fast, batch)}

    return loss
