"""Parts of fields that are fitted to slices: grids by the size of their cells, and a deformation for every slice."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.networks.init import set_output_bias, shrink_output
from scanfield.fields.networks.mlp import MLP
from scanfield.operators.slices import POSE_UNIT_MM, SlicePoses
from scanfield.space.domain import Domain

_NEAR_ZERO = 1e-4  # bound of the first weights: deformations begin below a hundredth of a millimetre


def grid_by_cells(
    domain: Domain,
    *,
    coarsest_mm: float,
    finest_mm: float,
    growth: float,
    features: int,
    log2_table: int,
    generator: torch.Generator,
    interpolation: Literal["linear", "smoothstep"] = "linear",
) -> MultiresolutionGrid:
    """A grid encoding whose cells shrink by `growth` from `coarsest_mm` to `finest_mm` or below, along the longest
    side of the box.

    Raises:
        InputError: sizes that are not positive, a finest that exceeds the coarsest, or a growth that is not above 1.
    """
    if not 0 < finest_mm <= coarsest_mm < math.inf or not 1 < growth < math.inf:
        raise InputError(
            f"cells of a grid shrink by a factor above 1 from the coarsest to the finest, got {coarsest_mm:g} to "
            f"{finest_mm:g} mm by {growth:g}"
        )
    extent = max(domain.spatial_extent_mm)
    base = max(1, math.ceil(extent / coarsest_mm))
    levels = max(1, math.ceil(math.log(extent / finest_mm / base) / math.log(growth) + 1))
    return MultiresolutionGrid(
        domain.dims,
        levels=levels,
        features=features,
        base=base,
        growth=growth,
        log2_table=log2_table,
        generator=generator,
        interpolation=interpolation,
    )


class SliceDeformation(nn.Module):
    """A displacement D(u, d_i) for every slice i, in units of `scale_mm`: smooth grid features and the slice's code d_i
    through a network of two tanh layers. It begins near zero.

    Args:
        encoding: of unit coordinates; with smoothstep its Jacobian is continuous.
        slices: how many.
        width: of the hidden layers.
        scale_mm: mm per unit of the network's output.
        generator: draws codes and weights.
        code: numbers per slice.
    """

    def __init__(
        self,
        encoding: MultiresolutionGrid,
        slices: int,
        width: int,
        scale_mm: float,
        generator: torch.Generator,
        code: int = 8,
    ) -> None:
        super().__init__()
        self.encoding, self.scale_mm = encoding, scale_mm
        self.codes = nn.Parameter(torch.randn(slices, code, generator=generator))
        widths = [encoding.out_dims + code, width, width, 3]
        self.network = MLP(widths, generator=generator, activation=torch.tanh)
        for layer in self.network.linears:
            nn.init.uniform_(layer.weight, -_NEAR_ZERO, _NEAR_ZERO, generator=generator)
        shrink_output(self.network, _NEAR_ZERO, generator)

    def forward(self, u: Float[Tensor, "*n 3"], of: Int[Tensor, "*n"]) -> Float[Tensor, "*n 3"]:
        shift: Tensor = self.network(torch.cat([self.encoding(u), self.codes[of]], dim=-1))
        return self.scale_mm * shift


class SliceModel(nn.Module):
    """A volume, and what every slice adds to it: pose, intensity scale, variance, bias field, deformation. As a module
    it is the volume itself, x (mm) -> (*n, 1).

    Args:
        domain: the box.
        slices: how many.
        encoding: of the box's unit coordinates.
        scale: factor of the volume outside this class; within it, typical intensities are 1.
        width: of the networks' hidden layer.
        z_features: numbers that the density network hands to the variance network.
        code: numbers that stand for a slice in the networks of variance and bias.
        pixel_variance: whether there is a variance of place and slice.
        slice_variance: a variance for every slice, or one for all.
        deviation: standard deviation that pixels and slices start with.
        bias_levels: coarsest levels of the encoding that a slice's bias depends on; 0 for no bias.
        deformation: encoding of the slices' deformations, or None.
        generator: draws weights and codes.
    """

    world_to_unit: Tensor

    def __init__(
        self,
        domain: Domain,
        slices: int,
        encoding: MultiresolutionGrid,
        *,
        scale: float,
        width: int,
        z_features: int,
        code: int,
        pixel_variance: bool,
        slice_variance: bool,
        deviation: float,
        bias_levels: int,
        deformation: MultiresolutionGrid | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.register_buffer("world_to_unit", torch.tensor(domain.matrix(), dtype=torch.float32), persistent=False)
        self.scale, self.encoding = scale, encoding
        self.density = MLP([encoding.out_dims, width, 1 + z_features], generator=generator)
        self.poses = SlicePoses(torch.eye(4).expand(slices, 4, 4))
        self.codes = nn.Parameter(torch.randn(slices, code, generator=generator))
        self.log_scale = nn.Parameter(torch.zeros(slices))
        self.log_variance = nn.Parameter(torch.full((slices if slice_variance else 1,), 2 * math.log(deviation)))
        self.bias_features = min(bias_levels, len(encoding.levels.cells)) * encoding.levels.features
        self.variance = MLP([code + z_features, width, 1], generator=generator) if pixel_variance else None
        if self.variance is not None:
            set_output_bias(self.variance, math.log(deviation))
        self.bias = MLP([code + self.bias_features, width, 1], generator=generator) if bias_levels else None
        self.deformation = None
        if deformation is not None:
            self.deformation = SliceDeformation(deformation, slices, width, POSE_UNIT_MM, generator)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        return self.scale * self.volume(self.encoding(self.unit(x)))[0][..., None]

    def unit(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """World mm -> the grids' coordinates."""
        return x @ self.world_to_unit[:, :3].T + self.world_to_unit[:, 3]

    def volume(self, h: Float[Tensor, "*n e"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n z"]]:
        """V (the stacks' 99th percentiles are 1) and z from the grid's features."""
        out: Tensor = self.density(h)
        return functional.softplus(out[..., 0]), out[..., 1:]

    def deformed(self, x: Float[Tensor, "m k 3"], of: Int[Tensor, " m"]) -> Float[Tensor, "m k 3"]:
        """x + D_i(x) for pixels of the slices `of`."""
        if self.deformation is None:
            return x
        return x + self.deformation(self.unit(x), of[:, None].expand(x.shape[:-1]))

    def bias_of(self, h: Float[Tensor, "m k e"], of: Int[Tensor, " m"]) -> Float[Tensor, "m k"]:
        """log b_i at points of pixels of the slices `of`."""
        if self.bias is None:
            return torch.zeros_like(h[..., 0])
        logarithm: Tensor = self.bias(torch.cat([self._codes(h, of), h[..., : self.bias_features]], dim=-1))
        return logarithm[..., 0]

    def sigma_of(self, z: Float[Tensor, "m k z"], of: Int[Tensor, " m"]) -> Float[Tensor, "m k"]:
        """sigma_i at points of pixels of the slices `of`."""
        if self.variance is None:
            return torch.zeros_like(z[..., 0])
        logarithm: Tensor = self.variance(torch.cat([self._codes(z, of), z], dim=-1))
        return logarithm[..., 0].exp()

    def scales(self) -> Float[Tensor, " slices"]:
        """c: positive, with mean 1."""
        return len(self.log_scale) * self.log_scale.softmax(dim=0)

    def variance_of(self, of: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """exp s_i."""
        return self.log_variance.exp()[of] if len(self.log_variance) > 1 else self.log_variance.exp().expand(len(of))

    def _codes(self, like: Float[Tensor, "m k f"], of: Int[Tensor, " m"]) -> Float[Tensor, "m k c"]:
        return self.codes[of][:, None].expand(-1, like.shape[1], -1)
