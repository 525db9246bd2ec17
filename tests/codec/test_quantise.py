"""The quantiser: error bounds, exact repetition, gradients that pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.codec.quantise import (
    HIGHEST_RUNG,
    LOWEST_RUNG,
    dequantise,
    quantise,
    rung_for_bits,
    step_of,
    straight_through,
)
from scanfield.errors import InputError

W = torch.randn(40, 7, generator=torch.Generator().manual_seed(3))


def test_steps_are_quarter_octaves():
    for rung in (LOWEST_RUNG, -5, -1, 0, 1, 6, HIGHEST_RUNG):
        assert step_of(rung) == pytest.approx(2 ** (rung / 4), rel=1e-15)
    with pytest.raises(ValueError, match="rungs"):
        step_of(HIGHEST_RUNG + 1)


@pytest.mark.parametrize("rung", [-60, -20, -7, 0, 3])
def test_error_is_at_most_half_a_step_and_repetition_exact(rung):
    once = dequantise(quantise(W, rung), rung, tuple(W.shape))
    assert once.dtype == torch.float32 and once.shape == W.shape
    assert (once - W).abs().max() <= step_of(rung) / 2 * (1 + 1e-5)
    assert torch.equal(dequantise(quantise(once, rung), rung, tuple(W.shape)), once)


@pytest.mark.parametrize("bits", range(2, 17))
def test_bits_hold_the_largest_number_with_the_finest_step(bits):
    largest = float(W.abs().max())
    rung, most = rung_for_bits(largest, bits), 2 ** (bits - 1) - 1
    assert np.abs(quantise(W, rung)).max() <= most < round(largest / step_of(rung - 1))


def test_zero_needs_no_bits():
    assert rung_for_bits(0.0, 2) == LOWEST_RUNG
    assert (quantise(torch.zeros(5), LOWEST_RUNG) == 0).all()


def test_gradient_passes_straight_through():
    w = W.clone().requires_grad_()
    q = straight_through(w, -3)
    assert torch.allclose(q.detach(), dequantise(quantise(W, -3), -3, tuple(W.shape)), atol=1e-6)
    (q * W).sum().backward()
    assert torch.equal(w.grad, W)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    with pytest.raises(InputError, match="NaN or infinite"):
        quantise(torch.tensor([1.0, bad]), 0)


def test_impossible_requests_are_refused():
    for bits in (1, 17):
        with pytest.raises(InputError, match=r"2\.\.16"):
            rung_for_bits(1.0, bits)
    with pytest.raises(InputError, match="too large"):
        rung_for_bits(1e30, 4)
    with pytest.raises(InputError, match="too fine"):
        quantise(torch.tensor([1e6]), LOWEST_RUNG)
