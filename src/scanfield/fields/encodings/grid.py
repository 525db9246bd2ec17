"""Multiresolution grid encoding (Mueller et al. 2022, "Instant NGP", section 3); the notation is that of
`kernels.hashgrid`."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.kernels.hashgrid import Levels, encode, encode_along
from scanfield.kernels.jvp import Streams


class MultiresolutionGrid(nn.Module):
    """Features of a pyramid of grids, concatenated: (*n, d) -> (*n, levels * features).

    Coordinates outside [-1, 1] are clamped to the border.

    Args:
        dims: 2, 3 or 4 coordinates.
        levels, features: number of grids, numbers per vertex.
        base, growth: level l has floor(base * growth^l) cells per axis.
        log2_table: levels with more than 2^log2_table vertices are hashed into a table of this size.
        interpolation: 'linear', or 'smoothstep' (continuous first derivative).
        generator: draws the initial features, U(-init, init).
    """

    level_weight: Tensor

    def __init__(
        self,
        dims: int,
        *,
        levels: int,
        features: int,
        base: int,
        growth: float,
        log2_table: int,
        generator: torch.Generator,
        interpolation: Literal["linear", "smoothstep"] = "linear",
        init: float = 1e-4,
    ) -> None:
        super().__init__()
        if dims not in (2, 3, 4):
            raise InputError(f"a grid encoding has 2, 3 or 4 coordinates, got {dims}")
        if min(levels, features, base) < 1 or growth < 1 or not 1 <= log2_table <= 30:
            raise InputError(
                "a grid encoding needs levels, features, base >= 1, growth >= 1 and 1 <= log2_table <= 30, got "
                f"{levels}, {features}, {base}, {growth}, {log2_table}"
            )
        self.levels = Levels.make(
            dims,
            levels=levels,
            features=features,
            base=base,
            growth=growth,
            log2_table=log2_table,
            smoothstep=interpolation == "smoothstep",
        )
        table = torch.empty(self.levels.starts[-1], features).uniform_(-init, init, generator=generator)
        self.table = nn.Parameter(table)
        self.register_buffer("level_weight", torch.ones(levels))
        self.out_dims = levels * features

    def show_levels(self, visible: float) -> None:
        """Coarse-to-fine annealing: weight 1 for the first levels, a fraction for the next, 0 beyond (0..levels)."""
        steps = visible - torch.arange(len(self.levels.cells), dtype=torch.float32)
        self.level_weight.copy_(steps.clamp(0, 1))

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        flat = u.reshape(-1, self.levels.dims)
        return encode(flat, self.table, self.level_weight, self.levels).reshape(*u.shape[:-1], self.out_dims)

    jet_order = 1

    def jets(self, u: Float[Tensor, "s n d"], streams: Streams) -> Float[Tensor, "s n e"]:
        grid = (self.table, self.level_weight, self.levels)
        along = [encode_along(u[0], u[1 + k], *grid) for k in range(streams.first)]
        return torch.stack([encode(u[0], *grid), *along])
