"""Equally likely values of one quantity, an image or predicted measurements, and what they say together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError

RESOLVING = 39  # samples whose order statistics resolve the central 95 %: (s - 1) / (s + 1) = 0.95
QUANTILE_VALUES = 2**22  # sorted at a time


@dataclass(frozen=True, eq=False)
class Posterior:
    """Samples of a posterior.

    Args:
        samples: equally likely values, in the quantity's unit; at least two.

    Raises:
        InputError: fewer than two samples.
    """

    samples: Float[Tensor, "s *n"]

    def __post_init__(self) -> None:
        if len(self.samples) < 2:
            raise InputError(
                f"a posterior needs at least two samples, got {len(self.samples)}",
                fix="fit an ensemble (--ensemble 5), or use a method with a posterior of its own",
            )

    @staticmethod
    def of(values: Iterable[Tensor]) -> Posterior:
        """From the samples one by one, each of the same shape."""
        found = list(values)
        return Posterior(torch.stack(found) if found else torch.empty(0))

    @property
    def mean(self) -> Float[Tensor, "*n"]:
        return self.samples.double().mean(dim=0).to(self.samples.dtype)

    @property
    def deviation(self) -> Float[Tensor, "*n"]:
        """Standard deviation, sqrt(sum (x - mean)^2 / (s - 1))."""
        return self.samples.double().std(dim=0).to(self.samples.dtype)

    @property
    def resolved(self) -> bool:
        """Whether there are enough samples for quantiles of their own: `RESOLVING`."""
        return len(self.samples) >= RESOLVING

    def interval(self, level: float) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """The central interval of probability `level`: quantiles 1/2 -+ level/2 of the samples.

        Of fewer than `RESOLVING` samples (an ensemble) it is that of the normal distribution with their mean and
        deviation: the range of five samples holds a sixth one in two of three cases only.

        Raises:
            InputError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"the level of an interval lies between 0 and 1, got {level}", fix="0.9 means 90 %")
        if not self.resolved:
            half = self.deviation * float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))
            return self.mean - half, self.mean + half
        ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=self.samples.dtype)
        flat = self.samples.flatten(1)
        width = max(1, QUANTILE_VALUES // len(flat))
        found = torch.cat([part.quantile(ends, dim=1) for part in flat.T.split(width)], dim=1)
        low, high = found.reshape(2, *self.samples.shape[1:])
        return low, high
