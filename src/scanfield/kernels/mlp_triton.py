"""The `triton` backend of `kernels.mlp`: operators of torch around the kernels of `mlp_triton_kernels`.

Networks of one hidden width up to 128, 1 to 8 hidden layers, and up to 128 inputs and outputs. Sums are float32; how
the factors of matrix products are rounded follows torch's own switch, `torch.set_float32_matmul_precision`:

    'highest'                  22 significant bits: each factor is two float16, and three of their four products are
                               summed; product and what the split loses are within 2^-20 of |a| |b|.
    'high', 'medium'           11 significant bits: one float16, as precise as TF32 at twice its rate. Sines are
                               the hardware's, within 1e-6, and their derivatives float16.
    float16, bfloat16 tensors  likewise, with results rounded to their own type

Factors are scaled, so float16's range does not matter (see the kernels). Up to 4 inputs, multiplied by the first layer,
have 22 bits in every case.

Milliseconds on an H100 (80 GB HBM3) for the loss and all gradients of a sine network 3 -> W x 4 -> 1 at 2 097 152
points, beside plain torch and torch.compile at the same precision:

     W  precision    here   torch  compiled
    64  'high'        1.4    13.6       8.9
    64  'highest'     4.6    15.8
   128  'high'        7.1    26.9      17.4
   128  'highest'    34.8    34.5

so `fits` leaves the last case, hidden layers wider than 64 with gradients at 'highest', to plain torch.

The gradient is computed once by kernel; when its own graph is asked for (`create_graph`), by `mlp.reference`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from scanfield.errors import InputError
from scanfield.kernels import mlp as contract
from scanfield.kernels import mlp_triton_kernels as kernels
from scanfield.kernels.mlp import Activation, Loss

_Result = TypeVar("_Result")

WIDEST, DEEPEST = 128, 8
WIDEST_PRECISE = 64
"""Hidden layers up to which gradients with three products pay."""
_DTYPES = contract.ABILITIES["triton"].dtypes

_PRODUCTS = {"highest": 3, "high": 1, "medium": 1}
_NETWORK = "Tensor[] weights, Tensor[] biases, float[] omegas"


def fits(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take a network of these shapes and are faster than plain torch; else the reference runs."""
    followed = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    slow = followed and _products(x.dtype) == 3 and len(weights[0]) > WIDEST_PRECISE
    return _take(x.shape[-1], weights) and not slow


def _take(inputs: int, weights: Sequence[Tensor]) -> bool:
    widths = {len(w) for w in weights[:-1]}
    wide = max(inputs, *(len(w) for w in weights)) > WIDEST
    return 1 <= len(weights) - 1 <= DEEPEST and len(widths) == 1 and not wide


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> Tensor:
    """`kernels.mlp.mlp`.

    Raises:
        ValueError: layers that do not follow each other, more than one dtype, or a network that does not fit.
    """
    _check(x, weights, biases, activation)
    arguments = x, list(weights), list(biases), list(activation.omegas)
    followed = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    y: Tensor = _forward(*arguments) if followed or torch.compiler.is_compiling() else _compute(*arguments)
    return y


def loss_and_gradients(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    loss: Loss,
    *,
    need_x: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The loss of `kernels.mlp.regression_loss`, and its gradients to x (empty if not needed), weights and biases.

    Raises:
        ValueError: as `mlp`; a target of another shape or dtype than the output.
    """
    _check(x, weights, biases, activation)
    if target.shape != (len(x), len(biases[-1])) or target.dtype != x.dtype:
        raise ValueError(f"the target is {target.dtype} {tuple(target.shape)}, the output {(len(x), len(biases[-1]))}")
    # Only a captured graph needs the operator; outside of one, its detours take longer than a small batch.
    run = _loss if torch.compiler.is_compiling() else _compute_loss
    x_grad, flat = run(x, target, list(weights), list(biases), list(activation.omegas), loss, need_x)
    value = flat[sum(p.numel() for p in (*weights, *biases))].to(x.dtype)
    return value, [x_grad, *_parameter_gradients(flat, weights, biases)]


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> None:
    shapes = [tuple(w.shape) for w in weights]
    widths = [x.shape[1], *(len(b) for b in biases)]
    if shapes != list(zip(widths[1:], widths[:-1], strict=True)):
        raise ValueError(f"weights {shapes} do not follow each other from {x.shape[1]} inputs with biases {widths[1:]}")
    if activation.kind == "sine" and len(activation.omegas) != len(weights) - 1:
        raise ValueError(f"{len(weights) - 1} hidden layers need as many omegas, got {len(activation.omegas)}")
    if not _take(x.shape[1], weights):
        raise ValueError(
            f"these kernels take 1 to {DEEPEST} hidden layers of one width, nothing wider than {WIDEST}, got {widths}"
        )
    if len({t.dtype for t in (x, *weights, *biases)}) > 1 or x.dtype not in _DTYPES:
        raise ValueError(f"inputs and parameters must share one of the dtypes {_DTYPES}, inputs are {x.dtype}")


def _network(weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> Network:
    return Network(tuple(w.contiguous() for w in weights), tuple(b.contiguous() for b in biases), tuple(omegas))


def _products(dtype: torch.dtype) -> int:
    """How many products of float16 stand for one."""
    return _PRODUCTS[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 1


# torch.compile cannot look into the switch; a graph that it captured keeps the choice `fits` made then.
_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _parameter_gradients(flat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    of_weights, of_biases = split(flat, weights, biases)
    return [g.to(weights[0].dtype) for g in (*of_weights, *of_biases)]


# Launching: results without a graph ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """How a kernel is spread over a device.

    Args:
        points: rows of a tile, a power of two, at least 16.
        warps: of a program; one for 16 points, so that the rows of a warp are its own.
        programs: of `train`, per multiprocessor.
        sums: `train` adds up gradients in registers, not in memory.
        hoist: `train` keeps the hidden matrices in shared memory.
    """

    points: int
    warps: int
    programs: int = 1
    sums: bool = False
    hoist: bool = False


@dataclass(frozen=True)
class Network:
    """A network as the kernels take it: contiguous matrices and vectors of one dtype."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    omegas: tuple[float, ...]

    @property
    def layers(self) -> int:
        """Hidden layers."""
        return len(self.weights) - 1

    @property
    def numbers(self) -> int | torch.SymInt:
        """Of all parameters."""
        return sum(p.numel() for p in (*self.weights, *self.biases))

    @property
    def own(self) -> int | torch.SymInt:
        """Numbers that a program of `train` adds up: the gradients and the loss, aligned."""
        return -(-(self.numbers + 1) // 16) * 16

    def constants(self, products: int) -> dict[str, int]:
        """What the kernels are compiled for."""
        width, a = self.weights[0].shape
        b = len(self.biases[-1])
        names = {"WIDTH": width, "PAD": pad(width), "A": a, "A_PAD": pad(a), "B": b, "B_PAD": pad(b)}
        slot = pad(width) * pad(max(width, a, b))
        hardware = products == 1 and not triton.knobs.runtime.interpret
        rest = {"SINE": bool(self.omegas), "PRODUCTS": products, "HARDWARE": hardware}
        return {**names, "LAYERS": self.layers, "SLOT": slot, **rest}

    def vectors(self) -> tuple[Any, ...]:
        """Biases and omegas; a rectifier's are 1."""
        return self.biases, self.omegas or (1.0,) * self.layers


def pad(width: int) -> int:
    """The next power of two that a matrix unit takes."""
    return max(16, triton.next_power_of_2(width))


def forward_tile(width: int, products: int) -> Tile:
    """For padded hidden layers of this width."""
    if triton.knobs.runtime.interpret:
        return Tile(16, 1)
    return Tile(128, 8) if width == 128 and products == 3 else Tile(64, 4)


def train_tile(width: int, layers: int, products: int) -> Tile:
    """The fastest of those tried on an H100: registers hold the sums of up to four layers, not of large matrices."""
    sums = width * width * layers <= 4 * 64 * 64
    if triton.knobs.runtime.interpret:
        return Tile(16, 1, sums=sums, hoist=width <= 64)
    if products == 3:
        return Tile(64, 4, programs=2 if width <= 64 else 1, sums=width <= 32 and sums)
    if width == 16:
        return Tile(64, 4, programs=4, sums=sums, hoist=True)
    return Tile(128, 8, sums=sums, hoist=width <= 64)


def _launch(tile: Tile, key: tuple[Any, ...], launch: Callable[[Tile], _Result]) -> _Result:
    """Launches with the largest tile that the device's shared memory holds; `key` is all that decides about it.

    Raises:
        InputError: none does.
    """
    tile = _fitting.get(key, tile)
    while True:
        try:
            result = launch(tile)
        except OutOfResources as error:
            if tile.points == 16:
                raise InputError(
                    f"a network of this width does not fit this device at this precision: {error}",
                    fix="use torch.set_float32_matmul_precision('high') or the backend 'reference'",
                ) from error
            tile = replace(tile, points=tile.points // 2, warps=max(1, tile.warps // 2))
        else:
            _fitting[key] = tile
            return result


_fitting: dict[tuple[Any, ...], Tile] = {}


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _factors(network: Network, constants: dict[str, int]) -> tuple[Tensor, Tensor]:
    """The matrices as factors of products, and their scales."""
    matrices = network.layers + 1
    numbers = network.weights[0].new_empty(2 * matrices * constants["SLOT"], dtype=torch.float16)
    scales = network.weights[0].new_empty(matrices, dtype=torch.float32)
    shapes = {name: value for name, value in constants.items() if name not in ("SINE", "PRODUCTS", "HARDWARE")}
    kernels.factors[matrices,](network.weights, numbers, scales, **shapes)
    return numbers, scales


def run_forward(x: Tensor, network: Network, products: int, tile: Tile | None = None) -> Tensor:
    """y, in the dtype of x.

    Args:
        products: of float16 that stand for one, 1 or 3.
    """
    constants = network.constants(products)
    y = x.new_empty(len(x), len(network.biases[-1]))
    if len(x) == 0:
        return y
    tile = tile or forward_tile(constants["PAD"], products)
    with torch.cuda.device_of(x):
        factors = _factors(network, constants)

        def launch(tile: Tile) -> None:
            kernels.forward[triton.cdiv(len(x), tile.points),](
                x, y, *factors, *network.vectors(), len(x), **constants, POINTS=tile.points, num_warps=tile.warps,
                num_stages=1,
            )  # fmt: skip

        _launch(tile, ("forward", tile, x.device, x.dtype, *constants.values()), launch)
    return y


def run_train(
    x: Tensor, given: Tensor, network: Network, loss: str, products: int, *, need_x: bool,
    scale: float = 1.0, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of sum <given, y> (loss 'none') or of a summed loss with `given` as target.

    Args:
        products: of float16 that stand for one, 1 or 3.
        scale: of the gradients and the loss; multiplied in float32, at the end.

    Returns:
        x_grad (empty unless `need_x`), and in float32 `network.own` numbers: the parameters' gradients W_0, b_0, W_1,
        ..., the loss, and a rest without meaning.
    """
    constants = network.constants(products)
    x_grad = torch.empty_like(x) if need_x else x.new_empty(0)
    if len(x) == 0:
        return x_grad, torch.zeros(network.own, dtype=torch.float32, device=x.device)
    tile = tile or train_tile(constants["PAD"], network.layers, products)
    with torch.cuda.device_of(x):
        factors = _factors(network, constants)

        def launch(tile: Tile) -> Tensor:
            programs = min(triton.cdiv(len(x), tile.points), tile.programs * _multiprocessors(x.device))
            new = torch.empty if tile.sums else torch.zeros
            sums = new(programs, network.own, dtype=torch.float32, device=x.device)
            kernels.train[programs,](
                x, given, x_grad, sums, *factors, *network.vectors(), len(x), scale, **constants, POINTS=tile.points,
                LOSS=loss, X_GRAD=need_x, SUMS=tile.sums, HOIST=tile.hoist, OWN=network.own, num_warps=tile.warps,
                num_stages=1,
            )  # fmt: skip
            return sums.sum(dim=0)

        flat = _launch(tile, ("train", tile, x.device, x.dtype, loss, need_x, *constants.values()), launch)
    return x_grad, flat if scale == 1.0 else flat.mul_(scale)


def split(flat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of weights and biases, views of what `run_train` gives."""
    sizes = [p.numel() for pair in zip(weights, biases, strict=True) for p in pair]
    parts = flat[: sum(sizes)].split(sizes)
    shaped = [part.reshape(w.shape) for part, w in zip(parts[::2], weights, strict=True)]
    return shaped, list(parts[1::2])


# Operators ----------------------------------------------------------------------------------------------------------


def _compute(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> Tensor:
    return run_forward(x.contiguous(), _network(weights, biases, omegas), _products(x.dtype))


_forward = torch.library.custom_op(
    "scanfield::mlp_triton", _compute, mutates_args=(), schema=f"(Tensor x, {_NETWORK}) -> Tensor"
)


@_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *_: Any) -> Tensor:
    return x.new_empty(len(x), len(biases[-1]))


@torch.library.custom_op(
    "scanfield::mlp_triton_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, {_NETWORK}, bool need_x) -> (Tensor, Tensor)",
)
def _backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient to x (empty if not needed), and those to the parameters as `split` takes them."""
    network = _network(weights, biases, omegas)
    return run_train(x.contiguous(), grad.contiguous(), network, "none", _products(x.dtype), need_x=need_x)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    return _empty(x, weights, biases, need_x=rest[-1])


def _compute_loss(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    kind: str,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    """As `mlp_triton_backward`, with the mean loss behind the parameters' gradients."""
    network = _network(weights, biases, omegas)
    scale = 1 / max(target.numel(), 1)
    products = _products(x.dtype)
    x_grad, flat = run_train(x.contiguous(), target.contiguous(), network, kind, products, need_x=need_x, scale=scale)
    if len(x) == 0:
        flat[network.numbers] = torch.nan  # as torch has it: the mean over nothing
    return x_grad, flat


_loss = torch.library.custom_op(
    "scanfield::mlp_triton_loss",
    _compute_loss,
    mutates_args=(),
    schema=f"(Tensor x, Tensor target, {_NETWORK}, str kind, bool need_x) -> (Tensor, Tensor)",
)


@_loss.register_fake
def _(
    x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor]:
    return _empty(x, weights, biases, need_x=rest[-1])


def _empty(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], need_x: bool) -> tuple[Tensor, Tensor]:
    own = Network(tuple(weights), tuple(biases), ()).own
    return x.new_empty(x.shape if need_x else (0,)), x.new_empty(own, dtype=torch.float32)


# Derivatives --------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases, ctx.omegas = inputs
    ctx.save_for_backward(x, *weights, *biases)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    depth = len(parameters) // 2
    if torch.is_grad_enabled():
        x_grad, *rest = _differentiate_reference(ctx, grad, x, parameters)
    else:
        weights, biases = parameters[:depth], parameters[depth:]
        x_grad, flat = _backward(grad, x, weights, biases, ctx.omegas, ctx.needs_input_grad[0])
        rest = [*_parameter_gradients(flat, weights, biases)]
    # torch takes an empty list of omegas for one of tensors
    return x_grad if ctx.needs_input_grad[0] else None, rest[:depth], rest[depth:], None if ctx.omegas else []


def _differentiate_reference(ctx: Any, grad: Tensor, x: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    """The same gradients with a graph of their own."""
    depth = len(parameters) // 2
    activation = Activation("sine", tuple(ctx.omegas)) if ctx.omegas else Activation("relu")
    y = contract.reference(x, parameters[:depth], parameters[depth:], activation)
    inputs = [x, *parameters]
    asked = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(y, asked, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in inputs]


_forward.register_autograd(_differentiate, setup_context=_save)
