"""Fields that carry derivatives along with their value (`kernels.jvp` explains jets and streams).

A part of a field (encoding, network, head) takes part by having `jet_order`, the highest order of derivatives it can
carry (0 to 2), and `jets(x, streams)`. A field can do what all its parts can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.kernels.jvp import Streams


@runtime_checkable
class HasJets(Protocol):
    """A function of points that maps jets to jets."""

    @property
    def jet_order(self) -> int: ...

    def jets(self, x: Float[Tensor, "s n a"], streams: Streams) -> Float[Tensor, "s n b"]: ...


def order_of(*parts: object) -> int:
    """The highest order of derivatives that all parts carry."""
    return min(part.jet_order if isinstance(part, HasJets) else 0 for part in parts)


def carries(part: object, order: int) -> TypeGuard[HasJets]:
    """Whether a function of points carries derivatives of this order."""
    return order_of(part) >= order


def along_axes(x: Float[Tensor, "n w"], axes: Sequence[int], streams: Streams) -> Float[Tensor, "s n w"]:
    """The jet of the points themselves: direction k is the unit vector of column axes[k]."""
    first = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)[list(axes)]
    rest = torch.cat([first, first.new_zeros(len(streams.pairs), x.shape[-1])])
    return torch.cat([x[None], rest[:, None].expand(-1, len(x), -1)])
