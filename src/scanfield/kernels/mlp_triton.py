"""The `triton` backend of `kernels.mlp`: operators of torch around the kernels of `mlp_triton_kernels`.

Networks of one hidden width up to 128, 1 to 8 hidden layers, and up to 128 inputs and outputs. Sums are float32; how
the factors of matrix products are rounded follows torch's own switch, `torch.set_float32_matmul_precision`:

    float32, 'highest'  tf32x3: each factor is split into two TF32 numbers and three of the four products are summed;
                        the product left out and what the split loses are below 2^-18 of |a| |b|. The exact product
                        ('ieee') exists only outside the matrix units, at a small fraction of their rate.
    float32, 'high'     TF32: 11 significant bits
    float32, 'medium'   bfloat16: 8 significant bits
    bfloat16            bfloat16
    float16             float16 forward, TF32 back: as many bits, but the range of float32, since the gradient of a mean
                        over a million points is below float16's smallest number

A first layer with at most 4 inputs, a last one with at most 4 outputs, and all sines are float32 in every case.

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
_DTYPES = contract.ABILITIES["triton"].dtypes

_PRODUCTS = {
    "highest": ("tf32x3", "tf32x3"),
    "high": ("tf32", "tf32"),
    "medium": ("bf16", "bf16"),
    torch.bfloat16: ("bf16", "bf16"),
    torch.float16: ("fp16", "tf32"),
}
_NETWORK = "Tensor[] weights, Tensor[] biases, float[] omegas"


def fits(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take a network of these shapes; others are for the reference."""
    widths = {len(w) for w in weights[:-1]}
    wide = max(x.shape[-1], *(len(w) for w in weights)) > WIDEST
    return 1 <= len(weights) - 1 <= DEEPEST and len(widths) == 1 and not wide


def training_pays(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether a step with gradients is faster than plain torch.

    Measured on an H100 with 262,144 points, four hidden layers, over eager torch at the same precision: width 64 'high'
    5.7, 'medium' 3.3, 'highest' 0.9; width 128 'high' 0.9, 'medium' 1.1, 'highest' 0.7. Without gradients the kernels
    are 3 to 9 times as fast in every case.
    """
    rounded = x.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"
    return rounded and len(weights[0]) <= 64


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> Tensor:
    """`kernels.mlp.mlp`.

    Raises:
        ValueError: layers that do not follow each other, more than one dtype, or a network that does not fit.
    """
    _check(x, weights, biases, activation)
    y: Tensor = _forward(x, list(weights), list(biases), list(activation.omegas))
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
    x_grad, flat = _loss(x, target, list(weights), list(biases), list(activation.omegas), loss, need_x)
    value = flat[sum(p.numel() for p in (*weights, *biases))].to(x.dtype)
    return value, [x_grad, *_parameter_gradients(flat, weights, biases)]


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation) -> None:
    shapes = [tuple(w.shape) for w in weights]
    widths = [x.shape[1], *(len(b) for b in biases)]
    if shapes != list(zip(widths[1:], widths[:-1], strict=True)):
        raise ValueError(f"weights {shapes} do not follow each other from {x.shape[1]} inputs with biases {widths[1:]}")
    if activation.kind == "sine" and len(activation.omegas) != len(weights) - 1:
        raise ValueError(f"{len(weights) - 1} hidden layers need as many omegas, got {len(activation.omegas)}")
    if not fits(x, weights):
        raise ValueError(
            f"these kernels take 1 to {DEEPEST} hidden layers of one width, nothing wider than {WIDEST}, got {widths}"
        )
    if len({t.dtype for t in (x, *weights, *biases)}) > 1 or x.dtype not in _DTYPES:
        raise ValueError(f"inputs and parameters must share one of the dtypes {_DTYPES}, inputs are {x.dtype}")


def _network(weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> Network:
    return Network(tuple(w.contiguous() for w in weights), tuple(b.contiguous() for b in biases), tuple(omegas))


def _products(dtype: torch.dtype) -> tuple[str, str]:
    """How factors are rounded, forward and back."""
    forward, back = _PRODUCTS[torch.get_float32_matmul_precision() if dtype == torch.float32 else dtype]
    if triton.knobs.runtime.interpret:  # it knows no bfloat16 products
        return forward.replace("bf16", "bf16 interpreted"), back.replace("bf16", "bf16 interpreted")
    return forward, back


def _parameter_gradients(flat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    of_weights, of_biases = split(flat, weights, biases)
    return [g.to(weights[0].dtype) for g in (*of_weights, *of_biases)]


# Launching: results without a graph ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """How a kernel is spread over a device.

    Args:
        points: rows of a tile, a power of two, at least 16.
        warps: of a program.
        keep: `train` keeps z in registers, not in memory.
        sums: `train` adds up the gradients of hidden matrices in registers, not in memory.
        programs: of `train`, per multiprocessor.
        stages: of Triton's pipeliner; more than 1 buffers the weights once more for each.
    """

    points: int
    warps: int
    keep: bool = False
    sums: bool = False
    programs: int = 1
    stages: int = 1


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

    def constants(self) -> dict[str, int]:
        """What the kernels are compiled for."""
        width, a = self.weights[0].shape
        b = len(self.biases[-1])
        names = {"WIDTH": width, "PAD": pad(width), "A": a, "A_PAD": pad(a), "B": b, "B_PAD": pad(b)}
        return {**names, "LAYERS": self.layers, "SINE": bool(self.omegas)}

    def arguments(self) -> tuple[Any, ...]:
        return self.weights, self.biases, self.omegas or (0.0,) * self.layers


def pad(width: int) -> int:
    """The next power of two that a matrix unit takes."""
    return max(16, triton.next_power_of_2(width))


def forward_tile(width: int) -> Tile:
    """For padded hidden layers of this width."""
    return Tile(16, 1) if triton.knobs.runtime.interpret else Tile(128, 4 if width <= 64 else 8)


def train_tile(width: int, dot: str) -> Tile:
    """The largest that hardly spills 255 registers a thread; two programs of 4 warps or one of 8 then fill a processor.

    Three products need each factor twice in shared memory; 128 wide, only 32 points at a time leave room for that.
    """
    if triton.knobs.runtime.interpret:
        return Tile(16, 1, keep=width <= 32, sums=width <= 32)
    if width == 128:
        return Tile(32 if dot == "tf32x3" else 64, 8)
    narrow = width <= 32
    return Tile(128 if width == 16 else 64, 4, keep=narrow, sums=narrow, programs=2)


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
            tile = replace(tile, points=tile.points // 2, sums=False)
        else:
            _fitting[key] = tile
            return result


_fitting: dict[tuple[Any, ...], Tile] = {}


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def run_forward(x: Tensor, network: Network, dot: str, tile: Tile | None = None) -> Tensor:
    """y, in the dtype of x."""
    constants = network.constants()
    y = x.new_empty(len(x), len(network.biases[-1]))

    def launch(tile: Tile) -> None:
        kernels.forward[triton.cdiv(len(x), tile.points),](
            x, y, *network.arguments(), len(x), **constants, DOT=dot, POINTS=tile.points, num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip

    if len(x):
        tile = tile or forward_tile(constants["PAD"])
        with torch.cuda.device_of(x):
            _launch(tile, (tile, x.device, dot, *constants.values()), launch)
    return y


def run_train(
    x: Tensor, given: Tensor, network: Network, loss: str, dots: tuple[str, str], *, need_x: bool,
    scale: float = 1.0, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of sum <given, y> (loss 'none') or of a summed loss with `given` as target.

    Args:
        dots: precision of the products of the way forward and of the way back.
        scale: of the gradients and the loss; multiplied in float32, at the end.

    Returns:
        x_grad (empty unless `need_x`), and in float32 `network.own` numbers: the parameters' gradients W_0, b_0, W_1,
        ..., the loss, and a rest without meaning.
    """
    constants = network.constants()
    x_grad = torch.empty_like(x) if need_x else x.new_empty(0)

    def launch(tile: Tile) -> Tensor:
        programs = min(triton.cdiv(len(x), tile.points), tile.programs * _multiprocessors(x.device))
        sums = torch.empty(programs, network.own, dtype=torch.float32, device=x.device)
        kept = sums.new_empty(0 if tile.keep else programs * network.layers * tile.points * constants["PAD"])
        kernels.train[programs,](
            x, given, x_grad, sums, kept, *network.arguments(), len(x), scale, **constants, DOT=dots[0],
            GRAD_DOT=dots[1], POINTS=tile.points, LOSS=loss, X_GRAD=need_x, KEEP=tile.keep, SUMS=tile.sums,
            OWN=network.own, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return sums.sum(dim=0)

    if len(x) == 0:
        return x_grad, torch.zeros(network.own, dtype=torch.float32, device=x.device)
    tile = tile or train_tile(constants["PAD"], dots[1])
    with torch.cuda.device_of(x):
        flat = _launch(tile, (tile, x.device, dots, loss, need_x, *constants.values()), launch)
    return x_grad, flat if scale == 1.0 else flat.mul_(scale)


def split(flat: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of weights and biases, views of what `run_train` gives."""
    sizes = [p.numel() for pair in zip(weights, biases, strict=True) for p in pair]
    parts = flat[: sum(sizes)].split(sizes)
    shaped = [part.reshape(w.shape) for part, w in zip(parts[::2], weights, strict=True)]
    return shaped, list(parts[1::2])


# Operators ----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("scanfield::mlp_triton", mutates_args=(), schema=f"(Tensor x, {_NETWORK}) -> Tensor")
def _forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> Tensor:
    return run_forward(x.contiguous(), _network(weights, biases, omegas), _products(x.dtype)[0])


@_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], omegas: Sequence[float]) -> Tensor:
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
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(x, weights, biases, need_x)


@torch.library.custom_op(
    "scanfield::mlp_triton_loss",
    mutates_args=(),
    schema=f"(Tensor x, Tensor target, {_NETWORK}, str kind, bool need_x) -> (Tensor, Tensor)",
)
def _loss(
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
    dots = _products(x.dtype)
    x_grad, flat = run_train(x.contiguous(), target.contiguous(), network, kind, dots, need_x=need_x, scale=scale)
    if len(x) == 0:
        flat[network.numbers] = torch.nan  # as torch has it: the mean over nothing
    return x_grad, flat


@_loss.register_fake
def _(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    omegas: Sequence[float],
    kind: str,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(x, weights, biases, need_x)


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
