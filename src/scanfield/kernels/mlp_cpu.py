"""The `cpu` backend of `kernels.mlp` and `kernels.jvp`: the C++ kernels of native/mlp.cpp as operators of torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from scanfield.errors import ScanfieldError
from scanfield.kernels import jvp, library
from scanfield.kernels.jvp import Streams
from scanfield.kernels.mlp import Activation, Loss

_LOSSES = {"l2": 2, "l1": 1}
_NETWORK, _STREAMS = "Tensor[] weights, Tensor[] biases, float[] omegas", "int first, int[] pairs"
_pointer, _int = ctypes.c_void_p, ctypes.c_int64


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", _int),
        ("widths", _pointer),
        ("weights", _pointer),
        ("biases", _pointer),
        ("omegas", _pointer),
    )


class _Streams(ctypes.Structure):
    _fields_ = (("first", _int), ("second", _int), ("pairs", _pointer))


class _Call(ctypes.Structure):
    _fields_ = (
        ("n", _int),
        ("x", _pointer),
        ("y", _pointer),
        ("y_grad", _pointer),
        ("target", _pointer),
        ("loss_kind", _int),
        ("loss", _pointer),
        ("x_grad", _pointer),
        ("weight_grads", _pointer),
        ("bias_grads", _pointer),
        ("threads", _int),
    )


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> Tensor:
    """`kernels.mlp.mlp`."""
    y: Tensor = _forward(x[None], list(weights), list(biases), list(activation.omegas), 0, [])
    return y[0]


def jets(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation, streams: Streams
) -> Tensor:
    """`kernels.jvp.mlp_jets`."""
    pairs = list(chain(*streams.pairs))
    y: Tensor = _forward(x, list(weights), list(biases), list(activation.omegas), streams.first, pairs)
    return y


@torch.library.custom_op("scanfield::mlp_cpu", mutates_args=(), schema=f"(Tensor x, {_NETWORK}, {_STREAMS}) -> Tensor")
def _forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    first: int,
    pairs: Sequence[int],
) -> Tensor:
    y = x.new_empty(*x.shape[:2], len(biases[-1]))
    _call(x, weights, biases, omegas, first, pairs, y=y)
    return y


@_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], len(biases[-1]))


@torch.library.custom_op(
    "scanfield::mlp_cpu_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, {_NETWORK}, {_STREAMS}, bool need_x) -> Tensor[]",
)
def _backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    first: int,
    pairs: Sequence[int],
    need_x: bool,
) -> list[Tensor]:
    """Gradients to x (empty if not needed), all weights, all biases."""
    grads = _empty_gradients(x, weights, biases, need_x)
    _call(x, weights, biases, omegas, first, pairs, y_grad=grad, grads=grads)
    return grads


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return _empty_gradients(x, weights, biases, need_x=rest[-1])


@torch.library.custom_op(
    "scanfield::mlp_cpu_loss",
    mutates_args=(),
    schema=f"(Tensor x, Tensor target, {_NETWORK}, str kind, bool need_x) -> Tensor[]",
)
def _loss(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    kind: str,
    need_x: bool,
) -> list[Tensor]:
    """The loss (float64, no dimensions), then the gradients as in `mlp_cpu_backward`."""
    loss = torch.zeros((), dtype=torch.float64)
    grads = _empty_gradients(x[None], weights, biases, need_x)
    _call(x[None], weights, biases, omegas, 0, (), target=target, loss=loss, kind=_LOSSES[kind], grads=grads)
    return [loss, *grads]


@_loss.register_fake
def _(x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [x.new_empty((), dtype=torch.float64), *_empty_gradients(x[None], weights, biases, need_x=rest[-1])]


def loss_and_gradients(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    loss: Loss,
    *,
    need_x: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss of `kernels.mlp.regression_loss`, and its gradients to x (empty if not needed), weights and biases."""
    value, *grads = _loss(x, target, list(weights), list(biases), list(activation.omegas), loss, need_x)
    return value.to(x.dtype), grads


# Derivatives --------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases, ctx.omegas, ctx.first, ctx.pairs = inputs
    ctx.save_for_backward(x, *weights, *biases)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    depth = len(parameters) // 2
    grads = _backward(
        grad, x, parameters[:depth], parameters[depth:], ctx.omegas, ctx.first, ctx.pairs, ctx.needs_input_grad[0]
    )
    x_grad = grads[0] if ctx.needs_input_grad[0] else None
    return x_grad, grads[1 : 1 + depth], grads[1 + depth :], *_no_gradients(ctx)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, x, weights, biases, ctx.omegas, ctx.first, ctx.pairs, ctx.need_x = inputs
    ctx.save_for_backward(grad, x, *weights, *biases)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Any, ...]:
    """The backward pass, differentiated once more.

    With v the cotangent of x_grad = J^T grad, <v, J^T grad> = grad . (J v): a derivative along v, which a jet with one
    direction gives. Cotangents of the parameters' gradients (learning to learn) and third derivatives take the
    reference.
    """
    grad, x, *parameters = ctx.saved_tensors
    depth = len(parameters) // 2
    v = cotangents[0] if ctx.need_x else None
    if v is None or ctx.first > 0 or torch.is_grad_enabled() or any(c is not None for c in cotangents[1:]):
        grads = _reference_of_backward(ctx, grad, x, parameters, cotangents)
    else:
        jet = torch.cat([x, v])
        weights, biases = parameters[:depth], parameters[depth:]
        jet_grad = torch.cat([torch.zeros_like(grad), grad])
        x_grad, *rest = _backward(jet_grad, jet, weights, biases, ctx.omegas, 1, [], True)
        grads = [_forward(jet, weights, biases, ctx.omegas, 1, [])[1:], x_grad[:1], *rest]
    return grads[0], grads[1], grads[2 : 2 + depth], grads[2 + depth :], *_no_gradients(ctx), None


def _reference_of_backward(
    ctx: Any, grad: Tensor, x: Tensor, parameters: list[Tensor], cotangents: list[Tensor | None]
) -> list[Tensor]:
    depth = len(parameters) // 2
    activation = Activation("sine", tuple(ctx.omegas)) if ctx.omegas else Activation("relu")
    streams = Streams(ctx.first, tuple(zip(ctx.pairs[::2], ctx.pairs[1::2], strict=True)))
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [t if record and t.requires_grad else t.detach().requires_grad_() for t in (grad, x, *parameters)]
        y = jvp.reference(inputs[1], inputs[2 : 2 + depth], inputs[2 + depth :], activation, streams)
        first = torch.autograd.grad(y, inputs[1:], inputs[0], create_graph=True, materialize_grads=True)
        asked = [(g, c) for g, c in zip(first, cotangents, strict=True) if c is not None and c.numel() > 0]
        outputs, weights = zip(*asked, strict=True)
        return list(torch.autograd.grad(outputs, inputs, weights, create_graph=record, materialize_grads=True))


def _no_gradients(ctx: Any) -> tuple[Any, ...]:
    """For omegas, first and pairs; torch takes an empty list of numbers for one of tensors."""
    return None if ctx.omegas else [], None, None if ctx.pairs else []


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)


def _empty_gradients(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], need_x: bool) -> list[Tensor]:
    x_grad = x.new_empty(x.shape if need_x else (0,))
    return [x_grad, *(torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (*weights, *biases))]


def _call(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    first: int,
    pairs: Sequence[int],
    *,
    y: Tensor | None = None,
    y_grad: Tensor | None = None,
    target: Tensor | None = None,
    loss: Tensor | None = None,
    kind: int = 0,
    grads: Sequence[Tensor] = (),
) -> None:
    depth, _, n, inputs = len(weights), *x.shape
    shapes = [tuple(w.shape) for w in weights]
    widths = [inputs, *(len(b) for b in biases)]
    if shapes != list(zip(widths[1:], widths[:-1], strict=True)) or len(omegas) not in (0, depth - 1):
        raise ValueError(f"weights {shapes} do not follow each other from {inputs} inputs, or omegas do not fit")
    if n == 0:  # the mean over nothing is NaN in torch, too
        for grad in grads:
            grad.zero_()
        if loss is not None:
            loss.fill_(math.nan)
        return
    keep = [t.contiguous() for t in (x, *weights, *biases)]
    extra = [t.contiguous() if t is not None else None for t in (y_grad, target)]
    if any(t.dtype != torch.float32 for t in (*keep, *(t for t in extra if t is not None))):
        raise TypeError("the CPU kernels of networks take float32 tensors")
    c_widths = (_int * (depth + 1))(*widths)
    c_weights = (_pointer * depth)(*(t.data_ptr() for t in keep[1 : 1 + depth]))
    c_biases = (_pointer * depth)(*(t.data_ptr() for t in keep[1 + depth :]))
    c_omegas = (ctypes.c_float * len(omegas))(*omegas)
    c_pairs = (_int * len(pairs))(*pairs)
    c_grads = (_pointer * (2 * depth))(*(t.data_ptr() for t in grads[1:]))
    address = ctypes.addressof
    omegas_at = address(c_omegas) if omegas else None
    network = _Network(depth, address(c_widths), address(c_weights), address(c_biases), omegas_at)
    streams = _Streams(first, len(pairs) // 2, address(c_pairs))
    call = _Call(
        n=n,
        x=keep[0].data_ptr(),
        y=_address(y),
        y_grad=_address(extra[0]),
        target=_address(extra[1]),
        loss_kind=kind,
        loss=_address(loss),
        x_grad=grads[0].data_ptr() if grads and grads[0].numel() else None,
        weight_grads=address(c_grads),
        bias_grads=address(c_grads) + depth * ctypes.sizeof(_pointer),
        threads=torch.get_num_threads(),
    )
    if library.load().scanfield_mlp(ctypes.byref(network), ctypes.byref(streams), ctypes.byref(call)) != 0:
        raise ScanfieldError("there is not enough memory for a network's kernel")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
