"""Detector noise and its likelihoods.

Notation: p line integral (dimensionless), I0 photons per detector pixel in air, N = I0 exp(-p) photons behind the
object. Likelihoods are given as the mean over measurements of -log L minus its value at a perfect prediction, in nats:
zero at best, and with the gradient of -log L.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError


def gaussian_noise(
    values: Float[Tensor, "*shape"], sigma: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """`values` plus independent normal noise of standard deviation `sigma`, in the values' unit."""
    if not 0 <= sigma < float("inf"):
        raise InputError(f"the noise's standard deviation must be finite and not negative, got {sigma}")
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype, device=generator.device)
    return values + sigma * noise.to(values.device)


def sigma_of_percent(values: Tensor, percent: float) -> float:
    """Standard deviation that is `percent` of the largest absolute value."""
    if not 0 <= percent < float("inf"):
        raise InputError(f"noise in percent must be finite and not negative, got {percent}")
    return float(values.abs().max()) * percent / 100


def deviation_of(measurement: Measurement[Any]) -> Float[Tensor, "views rows columns"]:
    """Standard deviation of the noise in every line integral, in their unit.

    'gaussian': its level. 'poisson': sqrt(exp(p) / I0), to first order. Otherwise it is estimated as one number from
    the second differences d of neighbouring columns, 6 sigma^2 in variance: median |d| / (0.6745 sqrt(6)), which
    structures as fine as a column make larger; but at least 1 % of the root mean square of the integrals (40 dB), as
    much as a model on voxels may leave over.

    Raises:
        InputError: the noise has to be estimated, and there are fewer than three columns.
    """
    values, noise = measurement.values, measurement.noise
    if noise.kind == "gaussian" and noise.level > 0:
        return torch.full_like(values, noise.level)
    if noise.kind == "poisson":
        return (values.double().exp() / noise.level).sqrt().to(values)
    if values.shape[-1] < 3:
        raise InputError("the noise of fewer than three detector columns cannot be estimated", where=measurement.source)
    sigma = float(values.diff(n=2, dim=-1).abs().median()) / (0.6745 * math.sqrt(6))
    return torch.full_like(values, max(sigma, 0.01 * float(values.square().mean().sqrt())))


def gaussian_nll(
    predicted: Float[Tensor, "*shape"], measured: Float[Tensor, "*shape"], sigma: float | Tensor
) -> Float[Tensor, ""]:
    """Mean of (predicted - measured)^2 / (2 sigma^2)."""
    return (((predicted - measured) / sigma) ** 2).mean() / 2


def poisson_noise(
    integrals: Float[Tensor, "*shape"], photons: float, generator: torch.Generator, *, readout: float = 0.0
) -> tuple[Float[Tensor, "*shape"], int]:
    """Line integrals as a photon-counting transmission measurement gives them.

    N ~ Poisson(I0 exp(-p)) + Normal(0, readout^2);  p' = -log(max(N, 1) / I0)

    Args:
        integrals: noise-free line integrals p.
        photons: I0, photons per detector pixel without an object.
        generator: source of randomness, on the device where the numbers are drawn.
        readout: standard deviation of the electronic noise, in photons.

    Returns:
        (noisy line integrals, number of starved pixels whose count was below 1 and set to 1).
    """
    if not 1 <= photons < float("inf"):
        raise InputError(f"photons per pixel must be finite and at least 1, got {photons}")
    if not 0 <= readout < float("inf"):
        raise InputError(f"readout noise must be finite and not negative, got {readout}")
    rate = photons * torch.exp(-integrals.double()).to(generator.device)
    counts = torch.poisson(rate, generator=generator)
    if readout > 0:
        counts = counts + readout * torch.randn(
            counts.shape, generator=generator, dtype=counts.dtype, device=generator.device
        )
    starved = int((counts < 1).sum())
    return -torch.log(counts.clamp(min=1.0) / photons).to(integrals), starved


def poisson_nll(
    predicted: Float[Tensor, "*shape"], measured: Float[Tensor, "*shape"], photons: float
) -> Float[Tensor, ""]:
    """Poisson likelihood of transmission data in terms of line integrals.

    With counts N = I0 exp(-measured) and rate r = I0 exp(-predicted): mean of r - N - N log(r / N).
    """
    excess = measured - predicted
    counts = photons * torch.exp(-measured)
    return (counts * (torch.expm1(excess) - excess)).mean()
