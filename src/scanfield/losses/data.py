"""Data terms: how far predictions are from measurements. All are means: a weight does not depend on the batch size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def l1(predicted: Float[Tensor, "*n"], measured: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """mean |p - y|."""
    return (predicted - measured).abs().mean()


def l2(predicted: Float[Tensor, "*n"], measured: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """mean (p - y)^2."""
    return (predicted - measured).square().mean()


def huber(predicted: Float[Tensor, "*n"], measured: Float[Tensor, "*n"], delta: float) -> Float[Tensor, ""]:
    """mean of r^2 / 2 for |r| <= delta and delta (|r| - delta / 2) beyond."""
    return torch.nn.functional.huber_loss(predicted, measured, delta=delta)
