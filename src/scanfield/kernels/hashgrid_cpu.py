"""The hash grid on CPUs: native/hashgrid.cpp as operators of torch, differentiable twice.

The gradient of the table is made level by level, each by one thread, so it has the same bits whatever the number of
threads. For a table that belongs to a `VisitedAdam` it is added to that optimiser's own gradient, in place: a fresh one
would cost as much as the arithmetic.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.kernels import adam, library
from scanfield.kernels.hashgrid import Levels


def encode(
    u: Float[Tensor, "n d"], table: Float[Tensor, "rows f"], level_weight: Float[Tensor, " l"], levels: Levels
) -> Float[Tensor, "n e"]:
    """See `hashgrid.encode`; float32 or float64.

    Raises:
        ValueError: the tensors do not belong to these levels, or differ in type.
    """
    _check(u, table, level_weight, levels)
    return hashgrid(u, table, level_weight.to(u.dtype), _pack(levels), levels.smoothstep)


def encode_along(
    u: Float[Tensor, "n d"],
    h: Float[Tensor, "n d"],
    table: Float[Tensor, "rows f"],
    level_weight: Float[Tensor, " l"],
    levels: Levels,
) -> Float[Tensor, "n e"]:
    """See `hashgrid.encode_along`; float32 or float64.

    Raises:
        ValueError: as `encode`; h has another shape or type than u.
    """
    _check(u, table, level_weight, levels)
    if h.shape != u.shape or h.dtype != u.dtype:
        raise ValueError(f"directions {h.dtype} {tuple(h.shape)} for points {u.dtype} {tuple(u.shape)}")
    return hashgrid_along(u, h, table, level_weight.to(u.dtype), _pack(levels), levels.smoothstep)


def _check(u: Tensor, table: Tensor, level_weight: Tensor, levels: Levels) -> None:
    if u.shape[1] != levels.dims or table.shape != (levels.starts[-1], levels.features):
        raise ValueError(f"points {tuple(u.shape)} and table {tuple(table.shape)} do not fit {levels}")
    if len(level_weight) != len(levels.cells):
        raise ValueError(f"{len(level_weight)} weights for {len(levels.cells)} levels")
    if table.dtype != u.dtype:
        raise ValueError(f"the points are {u.dtype} and the table is {table.dtype}")


@functools.lru_cache(maxsize=256)
def _pack(levels: Levels) -> Tensor:
    """int64 (l, 4): cells, whether dense, first row and number of rows of every level, as hashgrid_block.h reads it."""
    rows = []
    for cells, dense, start, end in zip(levels.cells, levels.dense, levels.starts, levels.starts[1:], strict=False):
        count = end - start
        if count > 2**30 or count != (cells + 1) ** levels.dims if dense else count.bit_count() != 1:
            raise ValueError(f"a {'dense' if dense else 'hashed'} level of {cells} cells cannot have {count} rows")
        rows.append((cells, dense, start, count))
    return torch.tensor(rows, dtype=torch.int64)


# The operators. `levels` is what `_pack` returns; `smooth` is smoothstep. Tensors not asked for come back empty.

_GRID = "Tensor level_weight, Tensor levels, bool smooth"


@torch.library.custom_op(
    "scanfield::hashgrid", mutates_args=(), schema=f"(Tensor u, Tensor table, {_GRID}) -> Tensor", device_types="cpu"
)
def hashgrid(u: Tensor, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool) -> Tensor:
    """Features (n, e) of the points; see `encode`."""
    return _gather(u, None, table, level_weight, levels, smooth)


@torch.library.custom_op(
    "scanfield::hashgrid_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor u, Tensor table, {_GRID}, bool to_u, bool to_table) -> (Tensor, Tensor)",
    device_types="cpu",
)
def hashgrid_backward(
    grad: Tensor,
    u: Tensor,
    table: Tensor,
    level_weight: Tensor,
    levels: Tensor,
    smooth: bool,
    to_u: bool,
    to_table: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of points and table from the gradient of the features."""
    grad_u = _slope(u, None, grad, table, level_weight, levels, smooth) if to_u else u.new_empty(0)
    grad_table = table.new_empty(0)
    if to_table:
        grad_table = torch.empty_like(table, memory_format=torch.contiguous_format)
        _scatter(u, None, grad, level_weight, levels, smooth, grad_table)
    return grad_u, grad_table


@torch.library.custom_op(
    "scanfield::hashgrid_double_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_u, Tensor? grad_table, Tensor grad, Tensor u, Tensor table, {_GRID}, "
    "bool to_grad, bool to_u, bool to_table) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def hashgrid_double_backward(
    grad_u: Tensor | None,
    grad_table: Tensor | None,
    grad: Tensor,
    u: Tensor,
    table: Tensor,
    level_weight: Tensor,
    levels: Tensor,
    smooth: bool,
    to_grad: bool,
    to_u: bool,
    to_table: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, u and table from those of the results of `hashgrid_backward` (None where there is none)."""
    grid = (level_weight, levels, smooth)
    to_features, to_points, to_rows = u.new_empty(0), u.new_empty(0), u.new_empty(0)
    if to_grad:
        to_features = torch.zeros_like(grad, memory_format=torch.contiguous_format)
        if grad_u is not None:
            to_features = _gather(u, grad_u, table, *grid)
        if grad_table is not None:
            to_features += _gather(u, None, grad_table, *grid)
    if to_u:
        to_points = torch.zeros_like(u, memory_format=torch.contiguous_format)
        if grad_u is not None:
            to_points += _slope(u, grad_u, grad, table, *grid)
        if grad_table is not None:
            to_points += _slope(u, None, grad, grad_table, *grid)
    if to_table:
        to_rows = torch.zeros_like(table, memory_format=torch.contiguous_format)
        if grad_u is not None:
            _scatter(u, grad_u, grad, *grid, to_rows)
    return to_features, to_points, to_rows


@torch.library.custom_op(
    "scanfield::hashgrid_along",
    mutates_args=(),
    schema=f"(Tensor u, Tensor h, Tensor table, {_GRID}) -> Tensor",
    device_types="cpu",
)
def hashgrid_along(u: Tensor, h: Tensor, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool) -> Tensor:
    """Derivatives of the features (n, e) along h; see `encode_along`."""
    return _gather(u, h, table, level_weight, levels, smooth)


@torch.library.custom_op(
    "scanfield::hashgrid_along_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor u, Tensor h, Tensor table, {_GRID}, bool to_u, bool to_h, bool to_table) "
    "-> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def hashgrid_along_backward(
    grad: Tensor,
    u: Tensor,
    h: Tensor,
    table: Tensor,
    level_weight: Tensor,
    levels: Tensor,
    smooth: bool,
    to_u: bool,
    to_h: bool,
    to_table: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of points, directions and table from that of the derivatives."""
    grid = (level_weight, levels, smooth)
    grad_u = _slope(u, h, grad, table, *grid) if to_u else u.new_empty(0)
    grad_h = _slope(u, None, grad, table, *grid) if to_h else u.new_empty(0)
    grad_table = table.new_empty(0)
    if to_table:
        grad_table = torch.empty_like(table, memory_format=torch.contiguous_format)
        _scatter(u, h, grad, *grid, grad_table)
    return grad_u, grad_h, grad_table


@torch.library.custom_op(
    "scanfield::accumulate_table_gradient",
    mutates_args=("table_grad", "visited"),
    schema=f"(Tensor grad, Tensor u, {_GRID}, Tensor(a!) table_grad, Tensor(b!) visited) -> ()",
    device_types="cpu",
)
def accumulate_table_gradient(
    grad: Tensor,
    u: Tensor,
    level_weight: Tensor,
    levels: Tensor,
    smooth: bool,
    table_grad: Tensor,
    visited: Tensor,
) -> None:
    """Adds the table's gradient to table_grad (rows, f) and sets visited (rows,), uint8, to 1 for the rows involved."""
    _scatter(u, None, grad, level_weight, levels, smooth, table_grad, visited)


@hashgrid.register_fake
def _(u: Tensor, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool) -> Tensor:
    return u.new_empty(u.shape[0], levels.shape[0] * table.shape[1])


@hashgrid_backward.register_fake
def _(grad, u, table, level_weight, levels, smooth, to_u, to_table):  # type: ignore[no-untyped-def]
    return u.new_empty(u.shape if to_u else 0), table.new_empty(table.shape if to_table else 0)


@hashgrid_double_backward.register_fake
def _(grad_u, grad_table, grad, u, table, level_weight, levels, smooth, to_grad, to_u, to_table):  # type: ignore[no-untyped-def]
    wanted = ((grad, to_grad), (u, to_u), (table, to_table))
    return tuple(tensor.new_empty(tensor.shape if asked else 0) for tensor, asked in wanted)


@hashgrid_along.register_fake
def _(u: Tensor, h: Tensor, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool) -> Tensor:
    return u.new_empty(u.shape[0], levels.shape[0] * table.shape[1])


@hashgrid_along_backward.register_fake
def _(grad, u, h, table, level_weight, levels, smooth, to_u, to_h, to_table):  # type: ignore[no-untyped-def]
    wanted = ((u, to_u), (h, to_h), (table, to_table))
    return tuple(tensor.new_empty(tensor.shape if asked else 0) for tensor, asked in wanted)


@accumulate_table_gradient.register_fake
def _(grad, u, level_weight, levels, smooth, table_grad, visited):  # type: ignore[no-untyped-def]
    return None


# Derivatives.


def _keep_points(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    u, table, level_weight, levels = ctx.saved_tensors
    to_u, to_table = ctx.needs_input_grad[:2]
    if to_table:
        arrives = _arrives(ctx.next_functions[1][0])
        to_table = arrives is not False
        rows = adam.owned_rows(table) if arrives and not torch.is_grad_enabled() else None
        if rows is not None and rows.ready(table):
            accumulate_table_gradient(grad, u, level_weight, levels, ctx.smooth, rows.grad, rows.visited)
            rows.wrote()
            to_table = False
    if not (to_u or to_table):
        return None, None, None, None, None
    grad_u, grad_table = hashgrid_backward(grad, u, table, level_weight, levels, ctx.smooth, to_u, to_table)
    return grad_u if to_u else None, grad_table if to_table else None, None, None, None


def _arrives(node: Any) -> bool | None:
    """Whether this backward pass goes on to the node; None if it is a leaf asked for by `torch.autograd.grad`.

    A function of torch is told which inputs require a gradient, not which the pass at hand is after: a derivative with
    respect to the points alone would cost a gradient of the whole table.
    """
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return None


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.smooth, ctx.to_u, ctx.to_table = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, grad_u: Tensor | None, grad_table: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, u, table, level_weight, levels = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    results = hashgrid_double_backward(
        grad_u if ctx.to_u else None,
        grad_table if ctx.to_table else None,
        grad, u, table, level_weight, levels, ctx.smooth, *wanted,
    )  # fmt: skip
    return *(result if asked else None for result, asked in zip(results, wanted, strict=True)), *[None] * 5


def _no_third(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("the hash grid's kernels have no third derivative: use the backend 'reference'")


def _along_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    results = hashgrid_along_backward(grad, *ctx.saved_tensors, ctx.smooth, *wanted)
    return *(result if asked else None for result, asked in zip(results, wanted, strict=True)), None, None, None


hashgrid_along.register_autograd(_along_backward, setup_context=_keep_points)
hashgrid_along_backward.register_autograd(_no_third)
hashgrid.register_autograd(_backward, setup_context=_keep_points)
hashgrid_backward.register_autograd(_double_backward, setup_context=_keep_gradient)
hashgrid_double_backward.register_autograd(_no_third)


# The library. With a direction h (n, d), weights stand for their derivatives along it; see hashgrid.cpp.


def _gather(
    u: Tensor, h: Tensor | None, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool
) -> Float[Tensor, "n e"]:
    u, h, table, level_weight = _plain(u, h, table, level_weight)
    out = u.new_empty(u.shape[0], levels.shape[0] * table.shape[1])
    grid = _grid(levels.data_ptr(), len(levels), table.shape[1], u.shape[1], smooth, u.dtype, torch.get_num_threads())
    _library().scanfield_hashgrid_gather(grid, len(u), *_addresses(u, h, table, level_weight, out))
    return out


def _slope(
    u: Tensor, h: Tensor | None, grad: Tensor, table: Tensor, level_weight: Tensor, levels: Tensor, smooth: bool
) -> Float[Tensor, "n d"]:
    u, h, grad, table, level_weight = _plain(u, h, grad, table, level_weight)
    out = torch.empty_like(u)
    grid = _grid(levels.data_ptr(), len(levels), table.shape[1], u.shape[1], smooth, u.dtype, torch.get_num_threads())
    _library().scanfield_hashgrid_slope(grid, len(u), *_addresses(u, h, grad, table, level_weight, out))
    return out


def _scatter(
    u: Tensor,
    h: Tensor | None,
    grad: Tensor,
    level_weight: Tensor,
    levels: Tensor,
    smooth: bool,
    table: Tensor,
    visited: Tensor | None = None,
) -> None:
    """Writes into `table`; with `visited`, adds to it and marks the rows."""
    u, h, grad, level_weight = _plain(u, h, grad, level_weight)
    grid = _grid(levels.data_ptr(), len(levels), table.shape[1], u.shape[1], smooth, u.dtype, torch.get_num_threads())
    _library().scanfield_hashgrid_scatter(grid, len(u), *_addresses(u, h, grad, level_weight, table, visited))


def _plain(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Grid(ctypes.Structure):
    """`ScanfieldGrid` of hashgrid.cpp."""

    _fields_ = (
        ("levels", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("dims", ctypes.c_int32),
        ("smooth", ctypes.c_int32),
        ("is_double", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@functools.lru_cache(maxsize=256)
def _grid(
    levels: int, count: int, features: int, dims: int, smooth: bool, dtype: torch.dtype, threads: int
) -> ctypes.c_void_p:
    """A pointer to the structure; equal arguments are equal structures, wherever the levels lie."""
    grid = _Grid(levels, count, features, dims, smooth, dtype == torch.float64, threads)
    pointer = ctypes.cast(ctypes.pointer(grid), ctypes.c_void_p)
    pointer.kept = grid  # type: ignore[attr-defined]
    return pointer


@functools.cache
def _library() -> ctypes.CDLL:
    lib = library.load()
    for name, arrays in (("gather", 5), ("slope", 6), ("scatter", 6)):
        function = getattr(lib, f"scanfield_hashgrid_{name}")
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * arrays]
        function.restype = None
    return lib
