"""Polychromatic projections: a reduction over energies after the ray integral, not a linear one.

    p = -log sum_k s_k exp(-a_k),   a_k = integral of mu(E_k) along the ray

with s the shares of a `Spectrum`. As a log-sum-exp it neither under- nor overflows: a ray through metal with a_k of
several hundred has a finite value and a finite gradient dp / da_k = s_k exp(p - a_k), the share of energy k in what
arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.data.spectra import Spectrum
from scanfield.operators.base import SampledOperator
from scanfield.space.samples import Samples


def log_shares(spectrum: Spectrum, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, " e"]:
    """log s; minus infinity for energies without photons."""
    return torch.from_numpy(spectrum.shares.copy()).log().to(dtype)


def polychromatic(integrals: Float[Tensor, "*m e"], log_share: Float[Tensor, " e"]) -> Float[Tensor, "*m"]:
    """p of the module's notation, dimensionless.

    Args:
        integrals: a, line integrals at every energy.
        log_share: log s, see `log_shares`.
    """
    return -torch.logsumexp(log_share.to(integrals) - integrals, dim=-1)


@dataclass(frozen=True, eq=False)
class SpectralLineIntegral:
    """What a detector measures of a field with one channel per energy.

    Args:
        rays: the line integrals of one channel.
        log_share: log s of the spectrum, on the device of the field.
    """

    rays: SampledOperator
    log_share: Float[Tensor, " e"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rays.shape

    def samples(self, index: Int[Tensor, " m"], generator: torch.Generator | None = None) -> Samples:
        """Those of `rays`."""
        return self.rays.samples(index, generator)

    def reduce(self, values: Float[Tensor, "m s e"], samples: Samples) -> Float[Tensor, " m"]:
        """p of the module's notation; the field's values at every energy in 1/mm."""
        assert samples.weight is not None
        return polychromatic((values * samples.weight[..., None]).sum(dim=-2), self.log_share)


def water_equivalent(
    values: Float[Tensor, "*m"],
    spectrum: Spectrum,
    water_per_mm: Float[np.ndarray, " e"],
    reference_per_mm: float,
) -> Float[Tensor, "*m"]:
    """Beam-hardening correction for water: the monochromatic line integral of as much water as gives the same p.

    Scanners do this before filtered backprojection; it is exact where there is nothing but water. Negative values,
    which are noise, are scaled like the thinnest layer.

    Args:
        values: p, dimensionless.
        spectrum: of the source.
        water_per_mm: attenuation of water at the spectrum's energies.
        reference_per_mm: attenuation of water at the energy that the result refers to.
    """
    longest = 1.0
    shares = log_shares(spectrum, dtype=torch.float64)
    mu = torch.from_numpy(np.asarray(water_per_mm, dtype=np.float64))
    largest = float(values.max())
    while float(polychromatic(longest * mu, shares)) < largest:
        longest *= 2
    # Spacing the depths by squares resolves thin layers, where the slope changes most.
    depth = longest * torch.linspace(0, 1, 4096, dtype=torch.float64) ** 2
    p = polychromatic(depth[:, None] * mu, shares)
    slope = float(depth[1] / p[1])
    found = np.interp(values.double().cpu().numpy(), p.numpy(), depth.numpy())
    depths = torch.from_numpy(np.asarray(found)).to(values.device)
    depths = torch.where(values < 0, slope * values.double(), depths)
    return (reference_per_mm * depths).to(values)
