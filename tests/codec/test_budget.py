"""Widths from a number of weights."""

from __future__ import annotations

import pytest
import torch

from scanfield.codec.budget import count, solve_widths
from scanfield.fields.networks.siren import Siren


@pytest.mark.parametrize("numbers", [60, 200, 1361, 20_000])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("layers", [3, 5, 7])
def test_the_largest_network_that_fits(numbers, ratio, layers):
    widths = solve_widths(numbers, inputs=3, layers=layers, ratio=ratio)
    if widths is None:
        assert count([3, round(2 * ratio), *[2] * (layers - 2), 1]) > numbers
        return
    assert len(widths) == layers + 1 and widths[0] == 3 and widths[-1] == 1
    first, hidden = widths[1:3]
    assert count(widths) <= numbers < count([3, first + 1, *widths[2:]])
    assert first >= round(ratio * hidden) and set(widths[2:-1]) == {hidden}
    assert count([3, round(ratio * (hidden + 1)), *[hidden + 1] * (layers - 2), 1]) > numbers


def test_count_is_the_network_s():
    network = Siren([3, 9, 5, 5, 2], omegas=[20.0, 30.0, 30.0], generator=torch.Generator())
    assert count([3, 9, 5, 5, 2]) == sum(p.numel() for p in network.parameters())


def test_no_funnel_without_three_layers():
    with pytest.raises(ValueError, match="3 layers"):
        solve_widths(100, inputs=3, layers=2)
