"""Losses of a field's own values at given points."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.layers import FullyConnected
from scanfield.kernels.mlp import Activation, Loss, loss_of, regression_loss


def value_loss(
    field: nn.Module, x: Float[Tensor, "n w"], target: Float[Tensor, "n c"], loss: Loss = "l2"
) -> Float[Tensor, ""]:
    """mean (f(x) - target)^2 ('l2') or mean |f(x) - target| ('l1').

    A field that ends in a sine or rectifier network with a linear head computes it and its gradients in one pass
    (`kernels.mlp.regression_loss`); it can then be differentiated once.
    """
    if isinstance(field, Field) and isinstance(field.head, LinearHead) and field.head.scale != 0:
        network, head = field.network, field.head
        if isinstance(network, FullyConnected) and isinstance(network.activation, Activation):
            inner = (target - head.offset) / head.scale
            value = regression_loss(field.features(x), inner, network.weights, network.biases, network.activation, loss)
            return value * (head.scale**2 if loss == "l2" else abs(head.scale))
    return loss_of(loss, field(x), target)
