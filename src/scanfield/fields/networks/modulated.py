"""A sine network that many signals share; a signal moves the phases of its layers (Dupont et al., TMLR 2022, 3.1).

    h_{l+1} = sin(omega (W_l h_l + b_l + s_l)),     s = A z + c

W, b, A, c are shared, the latent z belongs to a signal; s_l are the shifts of layer l. The last layer is linear.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from scanfield.fields.networks.siren import Siren


class ModulatedSiren(nn.Module):
    """Coordinates and shifts -> values; latents -> shifts.

    Args:
        dims: number of coordinates.
        width: of every hidden layer.
        layers: linear layers, the output's included; all but the last are shifted.
        latent: size of z.
        omega: frequency of every sine layer, in radians per unit coordinate.
        generator: draws the initial weights: sine layers as `Siren`; A and c from U(-1/sqrt(k), 1/sqrt(k)) / omega,
            so that a latent of size one moves the phases by about one radian.
    """

    def __init__(
        self, *, dims: int, width: int, layers: int, latent: int, omega: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = Siren([dims, *[width] * (layers - 1), 1], omegas=[omega] * (layers - 1), generator=generator)
        self.modulation = skip_init(nn.Linear, latent, (layers - 1) * width)
        bound = latent**-0.5 / omega
        with torch.no_grad():
            self.modulation.weight.uniform_(-bound, bound, generator=generator)
            self.modulation.bias.uniform_(-bound, bound, generator=generator)

    def shifts(self, z: Float[Tensor, "*n k"]) -> Float[Tensor, "*n l w"]:
        """The shifts of every hidden layer, for latents."""
        width = self.base.linears[0].out_features
        out: Tensor = self.modulation(z)
        return out.reshape(*z.shape[:-1], -1, width)

    def forward(self, u: Float[Tensor, "*#n d"], shifts: Float[Tensor, "*#n l w"]) -> Float[Tensor, "*n 1"]:
        """Values at coordinates; the leading axes of `u` and `shifts` are broadcast against each other."""
        *hidden, last = self.base.linears
        h = u
        for level, layer in enumerate(hidden):
            h = torch.sin(self.base.omegas[level] * (layer(h) + shifts[..., level, :]))
        out: Tensor = last(h)
        return out
