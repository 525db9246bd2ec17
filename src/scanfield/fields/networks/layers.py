"""The linear layers of a fully connected network, not yet initialised."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn
from torch.nn.utils import skip_init

from scanfield.errors import InputError


def linear_layers(widths: Sequence[int]) -> nn.ModuleList:
    """One linear layer between each pair of neighbouring widths; draws nothing from the global generator.

    Raises:
        InputError: fewer than two widths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise InputError(f"a network needs at least two widths of at least 1, got {list(widths)}")
    return nn.ModuleList(skip_init(nn.Linear, a, b) for a, b in itertools.pairwise(widths))
