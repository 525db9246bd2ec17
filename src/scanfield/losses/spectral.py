"""Terms of a field with one channel per energy."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def energy_smoothness(values: Float[Tensor, "*n e"], where: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """mean over the points of `where` of sum_k |mu_{k+1} - mu_k|, in the unit of mu (Wu et al., NeurIPS 2023, EAS).

    Tissue hardly changes with energy compared with metal: `where` leaves metal out. The sum is the total variation
    over energies, so it does not depend on how many energies a smooth curve is sampled at. Zero where no point counts,
    and for a single energy.
    """
    steps = values.diff(dim=-1).abs().sum(dim=-1)
    return (steps * where).sum() / where.sum().clamp(min=1)
