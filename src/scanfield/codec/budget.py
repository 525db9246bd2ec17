"""From a number of weights to the widths of a sine network: budgets run backwards.

A network of d inputs, L linear layers, a first width r h and hidden widths h (L - 2 of them) has

    P(h) = d r h + r h  +  (r h + 1) h  +  (L - 3)(h + 1) h  +  (h + 1) c

weights. The largest whole h with P(h) <= P is taken, and the first layer takes what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def count(widths: Sequence[int]) -> int:
    """Weights and biases of a fully connected network with these sizes of input, layers and output."""
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def solve_widths(numbers: int, *, inputs: int, layers: int, ratio: float = 1.0, outputs: int = 1) -> list[int] | None:
    """Sizes of input, hidden layers and output with at most `numbers` weights, as many as possible.

    Args:
        layers: linear layers, at least 3.
        ratio: first width / other hidden widths; above 1 the network is a funnel.

    Returns:
        None if not even hidden layers of two fit.
    """
    if layers < 3 or ratio < 1:
        raise ValueError(f"a funnel has at least 3 layers and a ratio of at least 1, got {layers} and {ratio}")

    def widths(h: int, first: int) -> list[int]:
        return [inputs, first, *[h] * (layers - 2), outputs]

    h = 1
    while count(widths(h + 1, round(ratio * (h + 1)))) <= numbers:
        h += 1
    if h < 2:
        return None
    first = round(ratio * h)
    first += (numbers - count(widths(h, first))) // (inputs + 1 + h)
    return widths(h, first)
