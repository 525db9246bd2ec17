"""Multiresolution grid encoding (Mueller et al. 2022, "Instant NGP", section 3), reference implementation in torch.

Notation: level l has n_l = floor(base * growth^l) cells per axis over [-1, 1]; its (n_l + 1)^d vertices carry F
features each. Levels whose vertices fit into a table of T = 2^log2_table rows are stored densely (row = C order of the
vertex), finer ones are hashed: row = xor_k(i_k * prime_k) mod T.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scanfield.errors import InputError

_PRIMES = (1, 2654435761, 805459861, 3674653429)


class _Gather(torch.autograd.Function):
    """Rows of a table; its backward is an index_add, several times faster than torch's own for wide rows."""

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows)
        ctx.count = table.shape[0]
        return functional.embedding(rows, table)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (rows,) = ctx.saved_tensors
        return _Scatter.apply(grad, rows, ctx.count), None


class _Scatter(torch.autograd.Function):
    """The transpose of `_Gather`."""

    @staticmethod
    def forward(ctx, grad: Tensor, rows: Tensor, count: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows)
        table = grad.new_zeros(count, grad.shape[-1])
        return table.index_add_(0, rows.reshape(-1), grad.reshape(-1, grad.shape[-1]))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (rows,) = ctx.saved_tensors
        return _Gather.apply(grad, rows), None, None


class MultiresolutionGrid(nn.Module):
    """Features of a pyramid of grids, concatenated: (*n, d) -> (*n, levels * features).

    Coordinates outside [-1, 1] are clamped to the border.

    Args:
        dims: 2, 3 or 4 coordinates.
        levels, features, base, growth, log2_table: see the module's notation.
        interpolation: 'linear', or 'smoothstep' (continuous first derivative).
        reference: read every level by explicit gathering, the truth that faster paths are tested against. Otherwise
            dense linear levels in 2-D and 3-D go through `grid_sample`, about twice as fast on a CPU.
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
        reference: bool = False,
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
        self.dims, self.features = dims, features
        self.interpolation = interpolation
        self.reference = reference
        self.cells = [int(base * growth**level + 1e-9) for level in range(levels)]
        limit = 2**log2_table
        counts = [min((n + 1) ** dims, limit) for n in self.cells]
        self.dense = [(n + 1) ** dims <= limit for n in self.cells]
        self.starts = [0, *itertools.accumulate(counts)]
        table = torch.empty(self.starts[-1], features).uniform_(-init, init, generator=generator)
        self.table = nn.Parameter(table)
        self.register_buffer("level_weight", torch.ones(levels))
        self.out_dims = levels * features

    def show_levels(self, visible: float) -> None:
        """Coarse-to-fine annealing: weight 1 for the first levels, a fraction for the next, 0 beyond (0..levels)."""
        steps = visible - torch.arange(len(self.cells), dtype=torch.float32)
        self.level_weight.copy_(steps.clamp(0, 1))

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        flat = u.reshape(-1, self.dims).clamp(-1, 1)
        parts = []
        for level, cells in enumerate(self.cells):
            table = self.table[self.starts[level] : self.starts[level + 1]]
            fast = self.dense[level] and self.interpolation == "linear" and self.dims < 4
            if fast and not self.reference:
                values = _read_dense(table, flat, cells)
            else:
                values = self._read(table, flat, cells, self.dense[level])
            parts.append(values * self.level_weight[level].to(values.dtype))
        return torch.cat(parts, dim=-1).reshape(*u.shape[:-1], self.out_dims)

    def _read(self, table: Tensor, u: Float[Tensor, "n d"], cells: int, dense: bool) -> Float[Tensor, "n f"]:
        place = (u + 1) * (cells / 2)
        corner = place.detach().floor().clamp(0, cells - 1)
        part = place - corner
        if self.interpolation == "smoothstep":
            part = part * part * (3 - 2 * part)
        low = corner.long()
        rows, weights = [], []
        for offset in itertools.product((0, 1), repeat=self.dims):
            shift = torch.tensor(offset, device=u.device)
            rows.append(_row(low + shift, cells, dense, table.shape[0]))
            weights.append(torch.where(shift.bool(), part, 1 - part).prod(dim=-1))
        values = _Gather.apply(table, torch.stack(rows, dim=1))
        return torch.einsum("nk,nkf->nf", torch.stack(weights, dim=1), values)


def _row(vertex: Int[Tensor, "n d"], cells: int, dense: bool, count: int) -> Int[Tensor, " n"]:
    if dense:
        row = vertex[:, 0]
        for k in range(1, vertex.shape[1]):
            row = row * (cells + 1) + vertex[:, k]
        return row
    row = vertex[:, 0] * _PRIMES[0]
    for k in range(1, vertex.shape[1]):
        row = row ^ (vertex[:, k] * _PRIMES[k])
    return row % count


def _read_dense(table: Tensor, u: Float[Tensor, "n d"], cells: int) -> Float[Tensor, "n f"]:
    dims = u.shape[1]
    image = table.reshape(*[cells + 1] * dims, -1).movedim(-1, 0)[None]
    place = u.flip(-1).reshape(1, *[1] * (dims - 1), -1, dims)  # grid_sample wants the fastest axis first
    return functional.grid_sample(image, place, padding_mode="border", align_corners=True).reshape(table.shape[1], -1).T
