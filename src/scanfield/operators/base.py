"""From a field to data: the two kinds of operator.

A sampled operator asks the field at points and reduces the values to measurements; a grid operator acts on a whole
rendered volume and knows its exact adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.space.samples import Samples


@runtime_checkable
class SampledOperator(Protocol):
    """Measurements as reductions of field values at points; `reduce` may be non-linear (spectra, PSF)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def samples(self, index: Int[Tensor, " m"], generator: torch.Generator | None = None) -> Samples: ...
    def reduce(self, values: Float[Tensor, "m s c"], samples: Samples) -> Float[Tensor, "m *out"]: ...


@runtime_checkable
class GridOperator(Protocol):
    """A linear map on volumes (n0, n1, n2) with its exact adjoint."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def apply(self, volume: Float[Tensor, "n0 n1 n2"]) -> Float[Tensor, "*out"]: ...
    def adjoint(self, values: Float[Tensor, "*out"]) -> Float[Tensor, "n0 n1 n2"]: ...


def predict(
    field: Callable[[Tensor], Tensor],
    operator: SampledOperator,
    index: Int[Tensor, " m"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "m *out"]:
    """What the field predicts for the measurements `index` (flat indices into `operator.shape`)."""
    samples = operator.samples(index, generator)
    return operator.reduce(field(samples.x), samples)


def predict_all(
    field: Callable[[Tensor], Tensor],
    operator: SampledOperator,
    *,
    device: torch.device | str = "cpu",
    points: int = 2**17,
) -> Tensor:
    """All measurements an operator describes, in `operator.shape`, without gradients.

    Args:
        points: about how many field values are held at a time; what fits into the cache is also fastest on a CPU.
    """
    total = math.prod(operator.shape)
    each = operator.samples(torch.zeros(1, dtype=torch.long, device=device)).x[..., 0].numel()
    chunk = max(1, points // each)
    with torch.no_grad():
        parts = [
            predict(field, operator, torch.arange(i, min(i + chunk, total), device=device)).cpu()
            for i in range(0, total, chunk)
        ]
    out = torch.cat(parts)
    return out.reshape(*operator.shape, *out.shape[1:])
