"""Fully connected networks of sine or rectifier layers: one contract, several backends.

Notation: layer l maps h_l to z_l = W_l h_l + b_l; h_{l+1} = sin(omega_l z_l) (Sitzmann et al. 2020) or max(z_l, 0);
the last layer is linear. The n rows of the input are independent of each other.

The backends `cpu` and `triton` keep no activations: a backward pass computes them again, tile by tile, so memory does
not grow with n. `regression_loss` computes a loss and its gradients in one pass instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scanfield.kernels.backend import Abilities, choose

Kind = Literal["sine", "relu"]
Loss = Literal["l2", "l1"]


@dataclass(frozen=True)
class Activation:
    """What happens between the layers.

    Args:
        kind: 'sine' or 'relu'.
        omegas: one frequency per hidden layer of a sine network; empty otherwise.
    """

    kind: Kind
    omegas: tuple[float, ...] = ()

    def __call__(self, z: Tensor, layer: int) -> Tensor:
        return torch.sin(self.omegas[layer] * z) if self.kind == "sine" else functional.relu(z)


ABILITIES = {
    "cpu": Abilities(dtypes=(torch.float32,)),
    "triton": Abilities(dtypes=(torch.float32, torch.float16, torch.bfloat16)),
}


def mlp(
    x: Float[Tensor, "n a"], weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation
) -> Float[Tensor, "n b"]:
    """The network's output for n inputs, differentiable as often as anyone likes.

    Args:
        weights: W_l, (outputs, inputs) of every layer.
        biases: b_l, (outputs,).
    """
    name = _chosen(x, weights)
    if name == "reference":
        return reference(x, weights, biases, activation)
    return _kernels(name).mlp(x, weights, biases, activation)


def regression_loss(
    x: Float[Tensor, "n a"],
    target: Float[Tensor, "n b"],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    loss: Loss = "l2",
) -> Float[Tensor, ""]:
    """mean (mlp(x) - target)^2 ('l2') or mean |mlp(x) - target| ('l1') over all n b entries.

    The kernels compute the gradients together with the loss, a quarter less work than a forward and a backward pass;
    they can be differentiated once, with respect to x and the parameters.
    """
    name = _chosen(x, weights)
    if name == "reference":
        return loss_of(loss, reference(x, weights, biases, activation), target)
    out: Tensor = _Regression.apply(name, x, target, activation, loss, len(weights), *weights, *biases)
    return out


def _kernels(name: str) -> Any:
    """The module of a backend, imported where it is used."""
    if name == "cpu":
        from scanfield.kernels import mlp_cpu

        return mlp_cpu
    from scanfield.kernels import mlp_triton

    return mlp_triton


def _chosen(x: Tensor, weights: Sequence[Tensor]) -> str:
    """The backend for a network of this shape."""
    return choose(ABILITIES, x, lambda name: name == "cpu" or bool(_kernels(name).fits(x, weights)))


def loss_of(loss: Loss, y: Tensor, target: Tensor) -> Tensor:
    """The mean loss of values y."""
    return (y - target).square().mean() if loss == "l2" else (y - target).abs().mean()


class _Regression(torch.autograd.Function):
    """A loss whose gradients are known before anyone asks."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        name: str,
        x: Tensor,
        target: Tensor,
        activation: Activation,
        loss: Loss,
        depth: int,
        *parameters: Tensor,
    ) -> Tensor:
        weights, biases, kernels = parameters[:depth], parameters[depth:], _kernels(name)
        if not any(ctx.needs_input_grad):
            return loss_of(loss, kernels.mlp(x, weights, biases, activation), target)
        need_x = ctx.needs_input_grad[1]
        value, grads = kernels.loss_and_gradients(x, target, weights, biases, activation, loss, need_x=need_x)
        ctx.save_for_backward(*grads)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        if ctx.needs_input_grad[2]:
            raise NotImplementedError("regression_loss has no gradient to its target; use mlp and loss_of")
        if torch.is_grad_enabled():
            raise NotImplementedError("regression_loss can be differentiated once; use mlp and loss_of")
        x_grad, *rest = (grad * g for g in ctx.saved_tensors)
        return None, x_grad if ctx.needs_input_grad[1] else None, None, None, None, None, *rest


def reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> Tensor:
    """`mlp` in plain torch, differentiable as often as anyone likes."""
    for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        x = activation(functional.linear(x, weight, bias), layer)
    return functional.linear(x, weights[-1], biases[-1])
