"""The sine of the C++ kernels, measured through a network that is nothing but a sine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.kernels import library, mlp_cpu
from scanfield.kernels.mlp import Activation

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")
IDENTITY, ZERO = [torch.ones(1, 1), torch.ones(1, 1)], [torch.zeros(1), torch.zeros(1)]


def sine(x: torch.Tensor) -> torch.Tensor:
    return mlp_cpu.mlp(x[:, None], IDENTITY, ZERO, Activation("sine", (1.0,)))[:, 0]


def sine_and_cosine(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the code of the backward pass; the gradient of sin(x) is cos(x)."""
    u = x[:, None].clone().requires_grad_()
    weights = [w.clone().requires_grad_() for w in IDENTITY]
    y = mlp_cpu.mlp(u, weights, ZERO, Activation("sine", (1.0,)))
    (cosine,) = torch.autograd.grad(y.sum(), u)
    return y.detach()[:, 0], cosine[:, 0]


@pytest.mark.parametrize("reach", [1.0, 100.0, 1e4])
def test_absolute_error_is_below_2e_7(reach):
    x = torch.empty(1_000_001).uniform_(-reach, reach, generator=torch.Generator().manual_seed(0))
    exact = x.double().numpy()
    assert np.abs(sine(x).numpy() - np.sin(exact)).max() < 2e-7
    _, cosine = sine_and_cosine(x)
    assert np.abs(cosine.numpy() - np.cos(exact)).max() < 2e-7


def test_exact_places():
    x = torch.tensor([0.0, -0.0, 1e-20, math.pi, math.pi / 2, -math.pi / 2, 3 * math.pi / 2])
    torch.testing.assert_close(sine(x), x.double().sin().float(), atol=1e-7, rtol=0)
    assert sine(x)[2] == x[2]


def test_not_a_number_stays_visible():
    bad = torch.tensor([math.nan, math.inf, -math.inf, 0.5])
    assert sine(bad).isnan().tolist() == [True, True, True, False]
    assert sine_and_cosine(bad)[1].isnan().tolist() == [True, True, True, False]
