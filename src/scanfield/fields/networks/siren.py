"""Sine networks (Sitzmann et al. 2020, section 3).

h_{l+1} = sin(omega_l (W_l h_l + b_l)), last layer linear. First layer W ~ U(-1/n, 1/n); the others
W ~ U(-sqrt(6/n)/omega, sqrt(6/n)/omega), n = fan-in: pre-activations are then about N(0, 1) at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scanfield.fields.networks.layers import FullyConnected
from scanfield.kernels.mlp import Activation


class Siren(FullyConnected):
    """A sine network.

    Args:
        widths: sizes of input, hidden layers and output.
        omegas: one frequency per hidden layer. The first is the bandwidth knob (radians per unit coordinate).
        generator: draws the initial weights and biases (biases U(-1/sqrt(n), 1/sqrt(n))).
    """

    def __init__(self, widths: Sequence[int], *, omegas: Sequence[float], generator: torch.Generator) -> None:
        if len(omegas) != len(widths) - 2:
            raise ValueError(f"{len(widths) - 2} hidden layers need as many omegas, got {len(omegas)}")
        rates = tuple(float(w) for w in omegas)
        super().__init__(widths, Activation("sine", rates))
        self.omegas = rates
        with torch.no_grad():
            for k, layer in enumerate(self.linears):
                n = layer.in_features
                bound = 1 / n if k == 0 else (6 / n) ** 0.5 / self.omegas[min(k, len(self.omegas) - 1)]
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-(n**-0.5), n**-0.5, generator=generator)
