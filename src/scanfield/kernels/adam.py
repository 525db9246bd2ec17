"""Adam for tables of which a step reads a few rows only, such as the features of a hash grid.

The rule is that of `torch.optim.SparseAdam`: parameters and moments of a row change only in the steps that visit it,
while the bias correction counts all steps. (Instant NGP likewise leaves entries without a gradient alone.) With the
gradient g of a visited row in step t:

    m <- m + (1 - beta1)(g - m)         v <- v + (1 - beta2)(g^2 - v)
    p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

A dense Adam, and a dense gradient made anew, would read and write the whole table several times a step.
"""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from scanfield.kernels import library
from scanfield.kernels.backend import backend_for


class TableGradient:
    """The gradient of a table, and which of its rows have one; lives as long as the optimiser that made it.

    Gradients arrive in two ways, which may mix in one step: kernels that know of it add to `grad` in place and mark
    the rows in `visited`; whatever autograd accumulates by itself is looked through for rows that are not zero.

    Args:
        table: a leaf (rows, f), whose `.grad` this takes over.
    """

    grad: Tensor
    visited: Tensor
    touched: bool

    def __init__(self, table: nn.Parameter) -> None:
        self.grad = torch.zeros_like(table, requires_grad=False)
        self.visited = torch.zeros(table.shape[0], dtype=torch.uint8, device=table.device)
        self.touched = False
        self._version = self.grad._version
        _OWNED[table] = weakref.ref(self)
        self.collect(table)
        reference = weakref.ref(self)

        def arrived(table: Tensor) -> None:
            rows = reference()
            if rows is not None and owned_rows(table) is rows:
                rows.collect(table)

        handle = table.register_post_accumulate_grad_hook(arrived)
        weakref.finalize(self, handle.remove)

    def ready(self, table: Tensor) -> bool:
        """Whether a kernel may add to `grad` what is meant for table.grad: not if hooks look at it on its way."""
        self.collect(table)
        return not table._backward_hooks

    def wrote(self) -> None:
        """Says that `grad` was changed and the rows are marked."""
        self.touched = True
        self._version = self.grad._version

    def collect(self, table: Tensor) -> None:
        """Makes `grad` what table.grad is, and marks the rows that others gave a gradient.

        That is: autograd, whoever assigned table.grad or set it to None, and whoever changed it in place.
        """
        if table.grad is not self.grad:
            self.clear()
            if table.grad is not None:
                self.grad.copy_(table.grad.detach().to_dense())
            table.grad = self.grad
        if self.grad._version != self._version:
            for column in self.grad.unbind(dim=1):
                self.visited |= column != 0
            self.wrote()

    def clear(self) -> None:
        """Sets the gradient to zero and visits no row."""
        if self.touched or self.grad._version != self._version:
            self.grad.zero_()
            self.visited.zero_()
        self.cleared()

    def cleared(self) -> None:
        """Says that gradient and marks were set to zero."""
        self.touched = False
        self._version = self.grad._version


# Weak on both sides: neither table nor optimiser is kept alive.
_OWNED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def owned_rows(table: Tensor) -> TableGradient | None:
    """The gradient to add to, if the table belongs to a `VisitedAdam`."""
    reference: Callable[[], TableGradient | None] | None = _OWNED.get(table)
    return None if reference is None else reference()


class VisitedAdam(Optimizer):
    """`torch.optim.SparseAdam`'s rule for tables with dense gradients; a row without gradient is not visited.

    A table's `.grad` belongs to the optimiser: backward passes of `kernels.hashgrid` add to it in place, without a
    gradient of the size of the table, and `step` leaves it zero. Anything else works as with every optimiser: sums of
    several backward passes, clipping, `torch.autograd.grad`, gradients from other operations on the table (which cost
    a pass over it), checkpoints (the state is `step`, `exp_avg` and `exp_avg_sq`).

    Args:
        params: tables (rows, f), contiguous float32 or float64; or groups of them.
        lr, betas, eps: see the module.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or eps <= 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Adam needs lr >= 0, eps > 0 and 0 <= betas < 1, got {lr}, {eps}, {betas}")
        self._tables: dict[Tensor, TableGradient] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: a parameter is not a table.
        """
        super().add_param_group(param_group)
        for table in self.param_groups[-1]["params"]:
            if table.dim() != 2 or table.dtype not in (torch.float32, torch.float64) or not table.is_contiguous():
                raise ValueError(f"not a contiguous float table (rows, f): {table.dtype}, {tuple(table.shape)}")
            self._tables[table] = TableGradient(table)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the visited rows; the gradients stay where they are, whatever `set_to_none`."""
        for table, rows in self._tables.items():
            rows.clear()
            table.grad = rows.grad

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the gradients are zero afterwards.

        Raises:
            RuntimeError: a table was given to another optimiser of this kind, or moved to another device or type.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                self._step_table(table, self._tables[table], group)
        return loss

    def _step_table(self, table: Tensor, rows: TableGradient, group: dict[str, Any]) -> None:
        if owned_rows(table) is not rows:
            raise RuntimeError("this table was given to another VisitedAdam since")
        if table.device != rows.visited.device or table.dtype != rows.grad.dtype:
            raise RuntimeError("this table was moved or converted after its optimiser was made")
        rows.collect(table)
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(rows.grad), torch.zeros_like(rows.grad)
        state["step"] += 1
        if not rows.touched:
            return
        beta1, beta2 = group["betas"]
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        tensors = (table, rows.grad, state["exp_avg"], state["exp_avg_sq"], rows.visited)
        update = _update_cpu if backend_for(table.device).name == "cpu" else _update
        update(*tensors, rate, beta1, beta2, group["eps"])
        rows.cleared()


def _update(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    visited: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The rule in plain torch; clears gradient and marks of the visited rows."""
    rows = visited.nonzero().squeeze(1)
    given = grad[rows]
    mean[rows] = m = mean[rows].lerp(given, 1 - beta1)
    square[rows] = v = square[rows].lerp(given * given, 1 - beta2)
    table.index_add_(0, rows, m / (v.sqrt() + eps), alpha=-rate)
    grad.index_fill_(0, rows, 0)
    visited.zero_()


@torch.library.custom_op(
    "scanfield::visited_adam",
    mutates_args=("table", "grad", "mean", "square", "visited"),
    schema="(Tensor(a!) table, Tensor(b!) grad, Tensor(c!) mean, Tensor(d!) square, Tensor(e!) visited, "
    "float rate, float beta1, float beta2, float eps) -> ()",
    device_types="cpu",
)
def _update_cpu(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    visited: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """`_update` by native/adam.cpp."""
    _library().scanfield_visited_adam(
        table.dtype == torch.float64, *table.shape, table.data_ptr(), grad.data_ptr(), mean.data_ptr(),
        square.data_ptr(), visited.data_ptr(), rate, beta1, beta2, eps, torch.get_num_threads(),
    )  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL:
    lib = library.load()
    lib.scanfield_visited_adam.argtypes = [
        ctypes.c_int32, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 5, *[ctypes.c_double] * 4, ctypes.c_int32,
    ]  # fmt: skip
    lib.scanfield_visited_adam.restype = None
    return lib
