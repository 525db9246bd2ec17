"""The multiresolution grid on CUDA devices, in Triton; notation and contract are those of `kernels.hashgrid`.

Beside the notation there: s_k = s(t_k), a_k = ds_k / du_k and b_k = d^2 s_k / du_k^2 (both 0 where u was clamped),
W_c = prod_k q_k with q_k = s_k or 1 - s_k, g the cotangent of the features, v that of the points' gradient:

    encode            e      = weight sum_c W_c T_c
    scatter           gT_c  += weight W_c g
    slope             gu_k   = sum_l weight a_k sum_c <T_c, g> dW_c/ds_k
    slope's backward  with dW_c = sum_k v_k a_k dW_c/ds_k, to g: weight sum_c dW_c T_c, to T: gT_c += weight dW_c g, and
                      to u_j: weight sum_c <T_c, g> (v_j b_j dW_c/ds_j + a_j sum_{k != j} v_k a_k d^2W_c/ds_j ds_k)

`scatter` is linear in g, so its backward is `encode` and `slope` with the cotangent as table: four kernels give all
first and second derivatives. Numbers are kept and added in the points' dtype; the table may be narrower.

One program serves BLOCK points of one level. The level is the slow axis of the launch, so programs that run together
share one level's rows: 4 MiB of 2^19 x 2 float32, which stay in the cache (L2) where a whole table would not. A thread
serves one point, and a row is one vector load or one vector addition (up to 16 bytes).

Additions to one address happen one after the other, and a level of r rows gets n 2^d / r of them on each. With 2^18
points that is 4 on 2^19 rows, but 427 on the 17^3 of a coarse level and 116 508 on the 3^2 of a 2-D pyramid that starts
with 2 cells; and where neighbouring points are neighbours on a ray, all lanes of a warp meet in one row. Coarse levels
therefore have up to 32 private copies of their gradient, 1 MiB a level, one for each lane, which `_fold` adds up. The
order of additions is not fixed: gradients vary in their last bits from run to run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.library import CustomOpDef, custom_op
from triton.language import constexpr

from scanfield.kernels.hashgrid import PRIMES, Levels

_GRID = "Tensor weight, int[] cells, bool[] dense, int[] starts, bool smoothstep"
_PRIMES: constexpr = constexpr(PRIMES)
_COPIES: constexpr = constexpr(32)  # of a level's gradient at most: the lanes of a warp


# Kernels. `no_type_check` keeps run-time type checkers away from functions that are not Python. Atomic additions are
# relaxed: nothing is read back, so they need no order.


@triton.jit
@no_type_check
def _level(levels_ptr):
    """First row, cells, rows, dense?, first private row and number of copies of this program's level."""
    at = levels_ptr + tl.program_id(1) * 6
    start, private = tl.load(at), tl.load(at + 4)
    cells, rows = tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)
    return start, cells, rows, tl.load(at + 3) != 0, private, tl.load(at + 5).to(tl.int32)


@triton.jit
@no_type_check
def _axes(u_ptr, point, mask, cells, D: constexpr, SMOOTH: constexpr):
    """For every axis: lower vertex i, then s, a, b."""
    dtype: constexpr = u_ptr.dtype.element_ty
    half = cells.to(dtype) * 0.5
    low, value, first, second = (), (), (), ()
    for k in tl.static_range(D):
        u = tl.load(u_ptr + point * D + k, mask=mask, other=0)
        inside = (u >= -1) & (u <= 1)
        place = (tl.where(u > 1, 1, tl.where(u < -1, -1, u)).to(dtype) + 1) * half
        i = tl.minimum(tl.maximum(tl.floor(place).to(tl.int32), 0), cells - 1)  # also of NaN: never leave the table
        t = place - i.to(dtype)
        low += (i,)
        value += (t * t * (3 - 2 * t) if SMOOTH else t,)
        first += (tl.where(inside, half * 6 * t * (1 - t) if SMOOTH else half, 0),)
        second += (tl.where(inside, half * half * (6 - 12 * t), 0) if SMOOTH else tl.zeros_like(t),)
    return low, value, first, second


@triton.jit
@no_type_check
def _row(low, corner: constexpr, cells, rows, dense, D: constexpr, WIDE: constexpr):
    """Row of a corner within its level. Hashed levels have a power of two of rows: the low bits decide, 32 suffice."""
    index = low[0] + (corner & 1)
    hashed = index.to(tl.uint32) * _PRIMES[0]
    for k in tl.static_range(1, D):
        vertex = low[k] + ((corner >> k) & 1)
        index = index * (cells + 1) + vertex
        hashed = hashed ^ (vertex.to(tl.uint32) * _PRIMES[k])
    row = tl.where(dense, index, (hashed & (rows - 1).to(tl.uint32)).to(tl.int32))
    return row.to(tl.int64) if WIDE else row


@triton.jit
@no_type_check
def _weight(s, corner: constexpr, D: constexpr, skip: constexpr = -1, also: constexpr = -1):
    """W_c; with `skip` dW_c / ds_skip, and with `also` the second derivative by both."""
    product = tl.full(s[0].shape, 1, s[0].dtype)
    for k in tl.static_range(D):
        if k == skip or k == also:  # noqa: SIM109 (Triton has no `in`)
            product = product if (corner >> k) & 1 else -product
        else:
            product = product * (s[k] if (corner >> k) & 1 else 1 - s[k])
    return product


@triton.jit
@no_type_check
def _block(u_ptr, weight_ptr, n, F: constexpr, PADDED: constexpr, BLOCK: constexpr):
    """This program's first point, points, features; which points and numbers (points, features) exist; its weight."""
    origin = tl.program_id(0).to(tl.int64) * BLOCK
    point, f = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    mask = point < n - origin
    # Where F is a power of two, a mask over points alone keeps the accesses vectors.
    lanes = mask[:, None] if F == PADDED else mask[:, None] & (f < F)[None, :]
    weight = tl.load(weight_ptr + tl.program_id(1)).to(u_ptr.dtype.element_ty)
    return origin, point, f, mask, lanes, weight


@triton.jit
@no_type_check
def _places(origin, point, f, per_point, per_number, F: constexpr):
    """Offsets of a block's part of a (points, levels * features) array with any strides."""
    number = tl.program_id(1).to(tl.int64) * F + f.to(tl.int64)
    return (origin + point)[:, None] * per_point + number[None, :] * per_number


@triton.jit
@no_type_check
def _values(level_ptr, row, f, F: constexpr, PADDED: constexpr, DTYPE: constexpr):
    """Rows of a level, (points, features). Every row exists, also for points that do not."""
    at = row[:, None] * F + f[None, :]
    if F == PADDED:
        return tl.load(level_ptr + at).to(DTYPE)
    return tl.load(level_ptr + at, mask=(f < F)[None, :], other=0).to(DTYPE)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _encode(
    u_ptr, table_ptr, weight_ptr, levels_ptr, out_ptr, n, out_point, out_number,
    D: constexpr, F: constexpr, PADDED: constexpr, SMOOTH: constexpr, WIDE: constexpr, BLOCK: constexpr,
):  # fmt: skip
    origin, point, f, mask, lanes, weight = _block(u_ptr, weight_ptr, n, F, PADDED, BLOCK)
    total = tl.zeros([BLOCK, PADDED], weight.dtype)
    if weight != 0:
        start, cells, rows, dense, _private, _copies = _level(levels_ptr)
        low, s, _a, _b = _axes(u_ptr + origin * D, point, mask, cells, D, SMOOTH)
        for corner in tl.static_range(2**D):
            row = _row(low, corner, cells, rows, dense, D, WIDE)
            total += _weight(s, corner, D)[:, None] * _values(table_ptr + start * F, row, f, F, PADDED, weight.dtype)
    tl.store(out_ptr + _places(origin, point, f, out_point, out_number, F), weight * total, mask=lanes)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _scatter(
    g_ptr, u_ptr, weight_ptr, levels_ptr, sums_ptr, n, g_point, g_number,
    D: constexpr, F: constexpr, PADDED: constexpr, SMOOTH: constexpr, WIDE: constexpr, BLOCK: constexpr,
):  # fmt: skip
    origin, point, f, mask, lanes, weight = _block(u_ptr, weight_ptr, n, F, PADDED, BLOCK)
    if weight != 0:
        _start, cells, rows, dense, private, copies = _level(levels_ptr)
        low, s, _a, _b = _axes(u_ptr + origin * D, point, mask, cells, D, SMOOTH)
        g = weight * tl.load(g_ptr + _places(origin, point, f, g_point, g_number, F), mask=lanes, other=0)
        copy = (point & (copies - 1)) * rows
        for corner in tl.static_range(2**D):
            row = copy + _row(low, corner, cells, rows, dense, D, WIDE)
            numbers = _weight(s, corner, D)[:, None] * g
            tl.atomic_add(sums_ptr + private * F + row[:, None] * F + f[None, :], numbers, mask=lanes, sem="relaxed")


@triton.jit
@no_type_check
def _fold(sums_ptr, levels_ptr, F: constexpr, BLOCK: constexpr):
    """The private copies of a level, summed into its rows."""
    start, _cells, rows, _dense, private, copies = _level(levels_ptr)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if copies > 1:
        copy = tl.arange(0, _COPIES)[:, None]
        mask = (copy < copies) & (number < rows * F)[None, :]
        parts = tl.load(sums_ptr + private * F + copy * rows * F + number[None, :], mask=mask, other=0)
        tl.store(sums_ptr + start * F + number, tl.sum(parts, axis=0), mask=number < rows * F)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _slope(
    g_ptr, u_ptr, table_ptr, weight_ptr, levels_ptr, gu_ptr, n, g_point, g_number,
    D: constexpr, F: constexpr, PADDED: constexpr, SMOOTH: constexpr, WIDE: constexpr, BLOCK: constexpr,
):  # fmt: skip
    origin, point, f, mask, lanes, weight = _block(u_ptr, weight_ptr, n, F, PADDED, BLOCK)
    if weight != 0:
        start, cells, rows, dense, _private, _copies = _level(levels_ptr)
        low, s, a, _b = _axes(u_ptr + origin * D, point, mask, cells, D, SMOOTH)
        g = weight * tl.load(g_ptr + _places(origin, point, f, g_point, g_number, F), mask=lanes, other=0)
        dots = ()
        for corner in tl.static_range(2**D):
            row = _row(low, corner, cells, rows, dense, D, WIDE)
            dots += (tl.sum(g * _values(table_ptr + start * F, row, f, F, PADDED, weight.dtype), axis=1),)
        for k in tl.static_range(D):
            total = tl.zeros([BLOCK], weight.dtype)
            for corner in tl.static_range(2**D):
                total += dots[corner] * _weight(s, corner, D, k)
            tl.atomic_add(gu_ptr + k * n.to(tl.int64) + origin + point, a[k] * total, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _slope_backward(
    v_ptr, g_ptr, u_ptr, table_ptr, weight_ptr, levels_ptr, to_g_ptr, sums_ptr, to_u_ptr, n, g_point, g_number,
    D: constexpr, F: constexpr, PADDED: constexpr, SMOOTH: constexpr, WIDE: constexpr,
    TO_G: constexpr, TO_TABLE: constexpr, TO_U: constexpr, BLOCK: constexpr,
):  # fmt: skip
    origin, point, f, mask, lanes, weight = _block(u_ptr, weight_ptr, n, F, PADDED, BLOCK)
    to_g = tl.zeros([BLOCK, PADDED], weight.dtype)
    if weight != 0:
        start, cells, rows, dense, private, copies = _level(levels_ptr)
        low, s, a, b = _axes(u_ptr + origin * D, point, mask, cells, D, SMOOTH)
        v, along = (), ()
        for k in tl.static_range(D):
            v += (tl.load(v_ptr + (origin + point) * D + k, mask=mask, other=0),)
            along += (v[k] * a[k],)
        g = weight * tl.load(g_ptr + _places(origin, point, f, g_point, g_number, F), mask=lanes, other=0)
        copy = (point & (copies - 1)) * rows
        dots = ()
        for corner in tl.static_range(2**D):
            row = _row(low, corner, cells, rows, dense, D, WIDE)
            turn = along[0] * _weight(s, corner, D, 0)
            for k in tl.static_range(1, D):
                turn += along[k] * _weight(s, corner, D, k)
            if TO_G or TO_U:
                values = _values(table_ptr + start * F, row, f, F, PADDED, weight.dtype)
                to_g += turn[:, None] * values
                dots += (tl.sum(g * values, axis=1),)
            if TO_TABLE:
                at = private * F + (copy + row)[:, None] * F + f[None, :]
                tl.atomic_add(sums_ptr + at, turn[:, None] * g, mask=lanes, sem="relaxed")
        if TO_U:
            for j in tl.static_range(D):
                total = tl.zeros([BLOCK], weight.dtype)
                for corner in tl.static_range(2**D):
                    bend = v[j] * b[j] * _weight(s, corner, D, j)
                    for k in tl.static_range(D):
                        if k != j:
                            bend += a[j] * along[k] * _weight(s, corner, D, j, k)
                    total += dots[corner] * bend
                tl.atomic_add(to_u_ptr + j * n.to(tl.int64) + origin + point, total, mask=mask, sem="relaxed")
    if TO_G:
        tl.store(to_g_ptr + _places(origin, point, f, tl.num_programs(1) * F, 1, F), weight * to_g, mask=lanes)


# Launching: results without a graph.


class Tuning(NamedTuple):
    """How kernels are launched; one point for each thread keeps rows out of shared memory."""

    block: int = 128  # points of a program
    warps: int = 4  # of a program
    private: int = 2**18  # numbers in all private copies of a level's gradient


class Plan(NamedTuple):
    """A pyramid as the kernels read it."""

    constants: Tensor  # `_level` of every level, on the device; without private copies the level is its own only copy
    private_rows: int  # of all private copies; they lie behind the rows of the table
    widest: int  # rows of the largest level with private copies


TUNING = Tuning()


@functools.lru_cache(maxsize=64)
def plan(levels: Levels, device: torch.device, private: int = TUNING.private) -> Plan:
    """Made once for each pyramid and device.

    Raises:
        ValueError: a hashed level whose rows are no power of two.
    """
    lines, end, widest = [], levels.starts[-1], 0
    for level, cells in enumerate(levels.cells):
        start = levels.starts[level]
        rows = levels.starts[level + 1] - start
        if not levels.dense[level] and rows & (rows - 1):
            raise ValueError(f"hashed levels need a power of two of rows, level {level} has {rows}")
        copies = 2 ** (min(max(private // (rows * levels.features), 1), _COPIES.value).bit_length() - 1)
        lines.append((start, cells, rows, int(levels.dense[level]), end if copies > 1 else start, copies))
        if copies > 1:
            end += copies * rows
            widest = max(widest, rows)
    return Plan(torch.tensor(lines, dtype=torch.int64, device=device), end - levels.starts[-1], widest)


def run_encode(u: Tensor, table: Tensor, weight: Tensor, levels: Levels, tuning: Tuning = TUNING) -> Tensor:
    """The features, (points, levels * features)."""
    out = u.new_empty(len(u), len(levels.cells) * levels.features)
    arrays = (u.contiguous(), table.contiguous(), weight.contiguous(), plan(levels, u.device).constants, out)
    _launch(_encode, arrays, out, levels, tuning)
    return out


def run_scatter(g: Tensor, u: Tensor, weight: Tensor, levels: Levels, tuning: Tuning = TUNING) -> Tensor:
    """The gradient to the table."""
    layout = plan(levels, u.device, tuning.private)
    sums = u.new_zeros(levels.starts[-1] + layout.private_rows, levels.features)
    _launch(_scatter, (g, u.contiguous(), weight.contiguous(), layout.constants, sums), g, levels, tuning)
    return _folded(sums, layout, levels)


def run_slope(g: Tensor, u: Tensor, table: Tensor, weight: Tensor, levels: Levels, tuning: Tuning = TUNING) -> Tensor:
    """The gradient to the points; axis after axis in memory, so that the additions of a warp lie side by side."""
    out = u.new_zeros(levels.dims, len(u))
    arrays = (g, u.contiguous(), table.contiguous(), weight.contiguous(), plan(levels, u.device).constants, out)
    _launch(_slope, arrays, g, levels, tuning)
    return out.t()


def run_slope_backward(
    v: Tensor, g: Tensor, u: Tensor, table: Tensor, weight: Tensor, levels: Levels, wanted: tuple[bool, bool, bool],
    tuning: Tuning = TUNING,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of <v, slope> to g, table and u; those that are not `wanted` are empty."""
    layout = plan(levels, u.device, tuning.private)
    to_g = u.new_empty(g.shape if wanted[0] else 0)
    sums = u.new_zeros((levels.starts[-1] + layout.private_rows, levels.features) if wanted[1] else 0)
    to_u = u.new_zeros((levels.dims, len(u)) if wanted[2] else 0)
    inputs = (v.contiguous(), g, u.contiguous(), table.contiguous(), weight.contiguous(), layout.constants)
    wants = dict(zip(("TO_G", "TO_TABLE", "TO_U"), wanted, strict=True))
    _launch(_slope_backward, (*inputs, to_g, sums, to_u), g, levels, tuning, **wants)
    return to_g, _folded(sums, layout, levels) if wanted[1] else sums, to_u.t() if wanted[2] else to_u


def _launch(
    kernel: Any, arrays: tuple[Tensor, ...], features: Tensor, levels: Levels, tuning: Tuning, **wants: bool
) -> None:
    """Runs a kernel over all points and levels; `features` is its array of (points, levels * features)."""
    if n := len(features):
        with torch.cuda.device_of(features):
            kernel[triton.cdiv(n, tuning.block), len(levels.cells)](
                *arrays, n, *features.stride(), D=levels.dims, F=levels.features, SMOOTH=levels.smoothstep,
                PADDED=triton.next_power_of_2(levels.features), WIDE=levels.starts[-1] * levels.features >= 2**31,
                BLOCK=tuning.block, num_warps=tuning.warps, **wants,
            )  # fmt: skip


def _folded(sums: Tensor, layout: Plan, levels: Levels) -> Tensor:
    if layout.private_rows:
        grid = (triton.cdiv(layout.widest * levels.features, 256), len(levels.cells))
        with torch.cuda.device_of(sums):
            _fold[grid](sums, layout.constants, F=levels.features, BLOCK=256)
    return sums[: levels.starts[-1]]


# Operators: what autograd, torch.func and torch.compile see. A pyramid travels as its numbers.


def encode(
    u: Float[Tensor, "n d"], table: Float[Tensor, "r f"], level_weight: Float[Tensor, " l"], levels: Levels
) -> Float[Tensor, "n e"]:
    """`kernels.hashgrid.encode` by Triton: twice differentiable.

    Args:
        table: in the dtype of u, or float16 or bfloat16; sums are in the dtype of u, gradients in the table's.

    Raises:
        ValueError: sizes that do not fit the pyramid, or another dtype of the table.
    """
    shapes = (u.shape[1], *table.shape, *level_weight.shape)
    if shapes != (levels.dims, levels.starts[-1], levels.features, len(levels.cells)):
        raise ValueError(f"points, table and weights of {shapes} do not fit the pyramid {levels}")
    if table.dtype not in (u.dtype, torch.float16, torch.bfloat16):
        raise ValueError(f"a {table.dtype} table does not go with {u.dtype} points")
    pyramid = (list(levels.cells), list(levels.dense), list(levels.starts), levels.smoothstep)
    return _encode_op(u, table, level_weight, *pyramid)


def _levels(dims: int, features: int, pyramid: tuple[Any, ...]) -> Levels:
    cells, dense, starts, smoothstep = pyramid
    return Levels(dims, features, tuple(cells), tuple(dense), tuple(starts), smoothstep)


def _operator(name: str, inputs: str, outputs: int = 1) -> Callable[[Callable[..., Any]], CustomOpDef]:
    results = ", ".join(["Tensor"] * outputs)
    return custom_op(f"scanfield::{name}", mutates_args=(), schema=f"({inputs}) -> ({results})")


@_operator("hashgrid_triton", f"Tensor u, Tensor table, {_GRID}")
def _encode_op(u: Tensor, table: Tensor, weight: Tensor, *pyramid: Any) -> Tensor:
    return run_encode(u, table, weight, _levels(u.shape[1], table.shape[1], pyramid))


@_operator("hashgrid_triton_scatter", f"Tensor g, Tensor u, {_GRID}")
def _scatter_op(g: Tensor, u: Tensor, weight: Tensor, *pyramid: Any) -> Tensor:
    return run_scatter(g, u, weight, _levels(u.shape[1], g.shape[1] // len(weight), pyramid))


@_operator("hashgrid_triton_slope", f"Tensor g, Tensor u, Tensor table, {_GRID}")
def _slope_op(g: Tensor, u: Tensor, table: Tensor, weight: Tensor, *pyramid: Any) -> Tensor:
    return run_slope(g, u, table, weight, _levels(u.shape[1], table.shape[1], pyramid))


@_operator("hashgrid_triton_slope_backward", f"bool[] wanted, Tensor v, Tensor g, Tensor u, Tensor table, {_GRID}", 3)
def _slope_backward_op(
    wanted: Any, v: Tensor, g: Tensor, u: Tensor, table: Tensor, weight: Tensor, *pyramid: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return run_slope_backward(v, g, u, table, weight, _levels(u.shape[1], table.shape[1], pyramid), tuple(wanted))


_encode_op.register_fake(lambda u, table, weight, *_: u.new_empty(u.shape[0], weight.shape[0] * table.shape[1]))
_scatter_op.register_fake(lambda g, u, weight, *grid: u.new_empty(grid[2][-1], g.shape[1] // weight.shape[0]))
_slope_op.register_fake(lambda g, u, *_: u.new_empty(u.shape[1], u.shape[0]).t())
_slope_backward_op.register_fake(
    lambda wanted, v, g, u, table, *_: (
        u.new_empty(g.shape if wanted[0] else 0),
        u.new_empty(table.shape if wanted[1] else 0),
        u.new_empty(u.shape[1], u.shape[0]).t() if wanted[2] else u.new_empty(0),
    )
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.pyramid = inputs[len(tensors) :]


def _encode_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, table, weight = ctx.saved_tensors
    to_u = _slope_op(g, u, table, weight, *ctx.pyramid) if ctx.needs_input_grad[0] else None
    to_table = _scatter_op(g, u, weight, *ctx.pyramid).to(table.dtype) if ctx.needs_input_grad[1] else None
    return to_u, to_table, *[None] * 5


def _scatter_gradient(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, u, weight = ctx.saved_tensors
    to_g = _encode_op(u, v, weight, *ctx.pyramid) if ctx.needs_input_grad[0] else None
    to_u = _slope_op(g, u, v, weight, *ctx.pyramid) if ctx.needs_input_grad[1] else None
    return to_g, to_u, *[None] * 5


def _slope_gradient(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, u, table, weight = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[i] for i in (0, 2, 1)]  # to g, table, u
    results = _slope_backward_op(wanted, v, g, u, table, weight, *ctx.pyramid)
    to_g, to_table, to_u = (result if want else None for result, want in zip(results, wanted, strict=True))
    return to_g, to_u, None if to_table is None else to_table.to(table.dtype), *[None] * 5


def _no_third_derivative(ctx: Any, *cotangents: Tensor) -> None:
    raise NotImplementedError("the grid in Triton has two derivatives; for a third use the backend 'reference'")


_encode_op.register_autograd(_encode_gradient, setup_context=_keep)
_scatter_op.register_autograd(_scatter_gradient, setup_context=_keep)
_slope_op.register_autograd(_slope_gradient, setup_context=_keep)
_slope_backward_op.register_autograd(_no_third_derivative)
