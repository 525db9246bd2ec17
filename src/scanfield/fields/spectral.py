"""A field with one value per photon energy, seen at a reference energy.

Notation: mu_k(x) = c_k q_k(x) attenuation at E_k in 1/mm; c_k a fixed curve over energies, such as that of water
relative to its value at the reference energy (all ones: none); q_k what the network gives. Where the curve fits the
material, q is the same at all energies.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.fields.field import Field


class SpectralField(nn.Module):
    """Attenuation at every energy; called as a field, it is the attenuation at the reference energy.

    Args:
        field: q of the module's notation, world coordinates -> (*n, e).
        energies_kev: (e,) rising.
        curve: c, (e,).
        reference_kev: the energy of `forward`: linear between neighbouring energies.

    Raises:
        InputError: the reference lies outside the energies (of more than one).
    """

    curve: Tensor
    reading: Tensor

    def __init__(
        self,
        field: Field,
        energies_kev: Float[np.ndarray, " e"],
        curve: Float[np.ndarray, " e"],
        reference_kev: float,
    ) -> None:
        super().__init__()
        self.field = field
        self.energies_kev = np.asarray(energies_kev, dtype=np.float64)
        self.register_buffer("curve", torch.tensor(curve, dtype=torch.float32), persistent=False)
        self.register_buffer("reading", self._reading(reference_kev), persistent=False)

    def normalised(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n e"]:
        """q of the module's notation, in 1/mm."""
        values: Tensor = self.field(x)
        return values

    def every(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n e"]:
        """The attenuation at every energy, 1/mm."""
        return self.normalised(x) * self.curve

    def forward(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n 1"]:
        """The attenuation at the reference energy, 1/mm."""
        return (self.every(x) @ self.reading)[..., None]

    def at(self, energy_kev: float) -> SpectralField:
        """The same field seen at another energy.

        Raises:
            InputError: see the class.
        """
        seen = SpectralField(self.field, self.energies_kev, self.curve.cpu().numpy(), energy_kev)
        return seen.to(self.curve.device)

    def _reading(self, wanted_kev: float) -> Float[Tensor, " e"]:
        """Weights of the channels in a linear interpolation at one energy."""
        low, high = self.energies_kev[[0, -1]]
        if len(self.energies_kev) > 1 and not low <= wanted_kev <= high:
            raise InputError(
                f"the field's energies go from {low:.4g} to {high:.4g} keV, {wanted_kev:g} keV is not among them",
                where="reference_kev",
                fix="choose an energy within the spectrum, or give the spectrum of the scan",
            )
        weights = [np.interp(wanted_kev, self.energies_kev, row) for row in np.eye(len(self.energies_kev))]
        return torch.tensor(weights, dtype=torch.float32)
