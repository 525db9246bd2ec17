"""Multiresolution grid encoding (Mueller et al. 2022, "Instant NGP", section 3): one contract, several backends.

Notation: level l has n_l cells per axis over [-1, 1]; its (n_l + 1)^d vertices carry F features each. The levels lie
one after another in one table; level l has the rows starts[l] .. starts[l + 1]. A dense level stores every vertex
(row = C order of the vertex); the others are hashed: row = xor_k(i_k * prime_k) mod rows of the level.

    u in [-1, 1]^d (clamped)    p = (u + 1) n_l / 2      i = min(floor(p), n_l - 1)      t = p - i
    s = t, or t^2 (3 - 2 t) with smoothstep              w_c = prod_k (s_k if c_k else 1 - s_k), c in {0, 1}^d
    feature_l(u) = weight_l sum_c w_c table[row_l(i + c)]
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scanfield.kernels.backend import Abilities, choose

PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class Levels:
    """The shape of a pyramid of grids.

    Args:
        dims: number of coordinates, 2 to 4.
        features: F.
        cells: n_l of every level.
        dense: whether a level stores every vertex.
        starts: first row of every level in the table, and the number of rows at the end.
        smoothstep: s(t), see the module's notation.
    """

    dims: int
    features: int
    cells: tuple[int, ...]
    dense: tuple[bool, ...]
    starts: tuple[int, ...]
    smoothstep: bool = False

    @staticmethod
    def make(
        dims: int, *, levels: int, features: int, base: int, growth: float, log2_table: int, smoothstep: bool = False
    ) -> Levels:
        """n_l = floor(base * growth^l); a level is dense where its vertices fit into 2^log2_table rows."""
        cells = [int(base * growth**level + 1e-9) for level in range(levels)]
        vertices = [(n + 1) ** dims for n in cells]
        starts = itertools.accumulate((min(count, 2**log2_table) for count in vertices), initial=0)
        dense = [count <= 2**log2_table for count in vertices]
        return Levels(dims, features, tuple(cells), tuple(dense), tuple(starts), smoothstep)


ABILITIES = {
    "cpu": Abilities((torch.float32, torch.float64), dims=(2, 3, 4)),
    "triton": Abilities((torch.float32, torch.float64), dims=(2, 3, 4)),
}


ALONG_ABILITIES = {"cpu": Abilities((torch.float32, torch.float64), dims=(2, 3, 4))}


def encode(
    u: Float[Tensor, "n d"], table: Float[Tensor, "rows f"], level_weight: Float[Tensor, " l"], levels: Levels
) -> Float[Tensor, "n e"]:
    """The features of n points, e = l * f; see the module's notation.

    Differentiable in u and table, not in level_weight (a mask: a level of weight 0 costs nothing).
    """
    name = choose(ABILITIES, u)
    if name == "cpu":
        from scanfield.kernels import hashgrid_cpu

        return hashgrid_cpu.encode(u, table, level_weight, levels)
    if name == "triton":
        from scanfield.kernels import hashgrid_triton

        return hashgrid_triton.encode(u, table, level_weight, levels)
    return reference(u, table, level_weight, levels)


def encode_along(
    u: Float[Tensor, "n d"],
    h: Float[Tensor, "n d"],
    table: Float[Tensor, "rows f"],
    level_weight: Float[Tensor, " l"],
    levels: Levels,
) -> Float[Tensor, "n e"]:
    """The derivative of `encode` at every point along a direction of its own, d/dt encode(u + t h) at t = 0.

    Differentiable in u, h and table.
    """
    if choose(ALONG_ABILITIES, u) == "cpu":
        from scanfield.kernels import hashgrid_cpu

        return hashgrid_cpu.encode_along(u, h, table, level_weight, levels)
    return reference_along(u, h, table, level_weight, levels)


def reference_along(u: Tensor, h: Tensor, table: Tensor, level_weight: Tensor, levels: Levels) -> Tensor:
    """`encode_along` in plain torch: J h as the derivative of g -> J^T g along h, which is linear in g."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        place = u if u.requires_grad else u.detach().requires_grad_()
        features = reference(place, table, level_weight, levels)
        cotangent = torch.zeros_like(features, requires_grad=True)
        (slope,) = torch.autograd.grad(features, place, cotangent, create_graph=True)
        (along,) = torch.autograd.grad(slope, cotangent, h, create_graph=record)
    return along


def reference(u: Tensor, table: Tensor, level_weight: Tensor, levels: Levels) -> Tensor:
    """`encode` in plain torch, differentiable as often as anyone likes."""
    rows, weights = corners(u, level_weight, levels)
    values = _Gather.apply(table, rows)
    return torch.einsum("nlc,nlcf->nlf", weights, values).flatten(1)


def corners(
    u: Float[Tensor, "n d"], level_weight: Float[Tensor, " l"], levels: Levels
) -> tuple[Int[Tensor, "n l c"], Float[Tensor, "n l c"]]:
    """Rows of the table that hold the 2^d corners around every point on every level, and their weights."""
    u = u.clamp(-1, 1)
    offsets = list(itertools.product((0, 1), repeat=levels.dims))
    rows, weights = [], []
    for level, cells in enumerate(levels.cells):
        place = (u + 1) * (cells / 2)
        low = place.detach().floor().clamp(0, cells - 1)
        part = place - low
        if levels.smoothstep:
            part = part * part * (3 - 2 * part)
        start, end = levels.starts[level : level + 2]
        for offset in offsets:
            shift = torch.tensor(offset, device=u.device)
            rows.append(start + _row(low.long() + shift, cells, levels.dense[level], end - start))
            weights.append(torch.where(shift.bool(), part, 1 - part).prod(dim=-1) * level_weight[level].to(u.dtype))
    shape = (len(u), len(levels.cells), len(offsets))
    return torch.stack(rows, dim=1).reshape(shape), torch.stack(weights, dim=1).reshape(shape)


def _row(vertex: Int[Tensor, "n d"], cells: int, dense: bool, count: int) -> Int[Tensor, " n"]:
    if dense:
        row = vertex[:, 0]
        for k in range(1, vertex.shape[1]):
            row = row * (cells + 1) + vertex[:, k]
        return row
    row = vertex[:, 0] * PRIMES[0]
    for k in range(1, vertex.shape[1]):
        row = row ^ (vertex[:, k] * PRIMES[k])
    return row % count


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
