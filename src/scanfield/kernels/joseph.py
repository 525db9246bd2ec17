"""Joseph's line integrals through a voxel lattice, and their exact transpose.

P. M. Joseph, IEEE Trans. Med. Imaging 1:192-196, 1982. Notation: a ray in voxel indices is i(t) = o + t d with t in mm,
so d is in voxels per mm; x values at the voxels, zero outside the lattice. Along the axis a in which the ray advances
fastest, x is interpolated linearly in every plane i_a = p and weighted with the path between planes:

    y = 1/|d_a| sum_p x(i(t_p)),    t_p = (p - o_a) / d_a

An axis with a single voxel is not interpolated: the slice fills its thickness.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from scanfield.errors import InputError
from scanfield.kernels import library
from scanfield.kernels.backend import Abilities, backend_for

TAPS_PER_CHUNK = 2**22
ABILITIES = {"cpu": Abilities(dtypes=(torch.float32, torch.float64))}


def project(
    x: Float[Tensor, "n k"],
    origin: Float[Tensor, "m d"],
    direction: Float[Tensor, "m d"],
    shape: tuple[int, ...],
    *,
    forward_only: bool,
) -> Float[Tensor, "m k"]:
    """Line integrals of k lattices at once; differentiable in x, as often as anyone likes.

    Args:
        x: values of the voxels, C order of `shape`.
        origin, direction: the rays, float64.
        shape: voxels per axis, two or three.
        forward_only: leave out what lies behind the ray's origin (a point source).

    Raises:
        ValueError: the rays or the values do not belong to this lattice.
    """
    check_rays(x, math.prod(shape), origin, direction, shape)
    if by_kernel(x, shape):
        y: Tensor = joseph_cpu(x[:, 0], origin, direction, list(shape), forward_only)
        return y[:, None]
    parts = [
        embedding_bag(index, x, per_sample_weights=weight.to(x.dtype), mode="sum")
        for _, index, weight in _chunks(origin, direction, shape, forward_only)
    ]
    return torch.cat(parts)


def backproject(
    y: Float[Tensor, "m k"],
    origin: Float[Tensor, "m d"],
    direction: Float[Tensor, "m d"],
    shape: tuple[int, ...],
    *,
    forward_only: bool,
) -> Float[Tensor, "n k"]:
    """The transpose of `project`: what the values y of the rays add to every voxel.

    Raises:
        ValueError: as `project`.
    """
    check_rays(y, len(origin), origin, direction, shape)
    if by_kernel(y, shape):
        x: Tensor = joseph_cpu_transposed(y[:, 0], origin, direction, list(shape), forward_only)
        return x[:, None]
    x = y.new_zeros(math.prod(shape), y.shape[1])
    for start, index, weight in _chunks(origin, direction, shape, forward_only):
        shares = weight.to(y.dtype)[..., None] * y[start : start + len(index), None]
        x = x.index_add(0, index.reshape(-1), shares.flatten(0, 1))
    return x


def by_kernel(values: Float[Tensor, "n k"], shape: tuple[int, ...]) -> bool:
    """Whether the C++ kernel does it: one volume, on a CPU. All else is the reference's, whatever backend was named."""
    one = len(shape) == 3 and values.shape[1] == 1 and ABILITIES["cpu"].take(values)
    return one and kernel_runs(values.device)


def kernel_runs(device: torch.device) -> bool:
    """Whether the C++ kernel runs on a device; not where a backend was named that has no kernel there."""
    try:
        return backend_for(device).name == "cpu"
    except InputError:  # such as 'triton', for the networks of a run whose rivals work on the CPU
        return False


def taps(
    origin: Float[Tensor, "m d"],
    direction: Float[Tensor, "m d"],
    shape: tuple[int, ...],
    *,
    forward_only: bool,
) -> tuple[Int[Tensor, "m taps"], Float[Tensor, "m taps"]]:
    """Flat voxel indices and weights (mm, float32) of every ray; unused taps weigh zero."""
    device = origin.device
    sizes = torch.tensor(shape, device=device)
    strides = torch.tensor([math.prod(shape[a + 1 :]) for a in range(len(shape))], device=device)
    order = torch.argsort(direction.abs(), dim=1, descending=True, stable=True)
    o, d = origin.gather(1, order), direction.gather(1, order)
    size, stride = sizes[order], strides[order]

    plane = torch.arange(max(shape), device=device)
    t = (plane - o[:, :1]) / d[:, :1]
    valid = plane < size[:, :1]
    if forward_only:
        valid = valid & (t > 0)
    index = [plane * stride[:, :1]]
    weight = [valid / d[:, :1].abs()]
    for a in range(1, len(shape)):
        place = o[:, a : a + 1] + t * d[:, a : a + 1]
        n, step, single = size[:, a : a + 1], stride[:, a : a + 1], size[:, a : a + 1] == 1
        low = torch.where(single, 0, place.floor())
        upper = torch.where(single, 0, place - low)
        lower = torch.where(single, (place.abs() <= 0.5).double(), 1 - upper)
        low = low.clamp(-2, max(shape)).long()
        found = []
        for base, path in zip(index, weight, strict=True):
            for voxel, share in ((low, lower), (low + 1, upper)):
                inside = (voxel >= 0) & (voxel < n)
                found.append((torch.where(inside, base + voxel * step, 0), torch.where(inside, path * share, 0)))
        index, weight = [i for i, _ in found], [w for _, w in found]
    weights = torch.stack(weight, dim=-1).flatten(1)
    return torch.where(weights > 0, torch.stack(index, dim=-1).flatten(1), 0), weights.float()


def _chunks(
    origin: Tensor, direction: Tensor, shape: tuple[int, ...], forward_only: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first ray, voxel indices, weights) of chunks of rays, so that memory stays bounded; one at least."""
    size = max(1, TAPS_PER_CHUNK // (max(shape) * 2 ** (len(shape) - 1)))
    for start in range(0, max(1, len(origin)), size):
        part = slice(start, start + size)
        yield start, *taps(origin[part], direction[part], shape, forward_only=forward_only)


def check_rays(values: Tensor, rows: int, origin: Tensor, direction: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless there are so many rows of values, and float64 rays that cross such a lattice."""
    if len(shape) not in (2, 3) or origin.shape != direction.shape or origin.shape[1:] != (len(shape),):
        raise ValueError(f"rays {tuple(origin.shape)}, {tuple(direction.shape)} do not cross a lattice of {shape}")
    if origin.dtype != torch.float64 or direction.dtype != torch.float64:
        raise ValueError(f"rays are float64, got {origin.dtype} and {direction.dtype}")
    if values.ndim != 2 or len(values) != rows:
        raise ValueError(f"{rows} rows of values are needed, got {tuple(values.shape)}")


# The operators of native/joseph.cpp. Each is the other's derivative.

_RAYS = "Tensor origin, Tensor direction, int[] shape, bool forward_only"


@torch.library.custom_op(
    "scanfield::joseph", mutates_args=(), schema=f"(Tensor x, {_RAYS}) -> Tensor", device_types="cpu"
)
def joseph_cpu(x: Tensor, origin: Tensor, direction: Tensor, shape: list[int], forward_only: bool) -> Tensor:
    """Line integrals (m,) of the values x (n,) of a volume."""
    y = x.new_empty(len(origin))
    along_rays("scanfield_joseph_project", x.contiguous(), y, origin, direction, shape, forward_only)
    return y


@torch.library.custom_op(
    "scanfield::joseph_transposed", mutates_args=(), schema=f"(Tensor y, {_RAYS}) -> Tensor", device_types="cpu"
)
def joseph_cpu_transposed(y: Tensor, origin: Tensor, direction: Tensor, shape: list[int], forward_only: bool) -> Tensor:
    """The transpose: values (n,) of a volume from those of the rays (m,)."""
    x = y.new_zeros(math.prod(shape))
    along_rays("scanfield_joseph_backproject", x, y.contiguous(), origin, direction, shape, forward_only)
    return x


@joseph_cpu.register_fake
def _(x: Tensor, origin: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(origin))


@joseph_cpu_transposed.register_fake
def _(y: Tensor, origin: Tensor, direction: Tensor, shape: list[int], forward_only: bool) -> Tensor:
    return y.new_empty(math.prod(shape))


def _keep_rays(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.rest = inputs[3:]


def _joseph_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return joseph_cpu_transposed(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


def _transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return joseph_cpu(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


joseph_cpu.register_autograd(_joseph_backward, setup_context=_keep_rays)
joseph_cpu_transposed.register_autograd(_transposed_backward, setup_context=_keep_rays)


def along_rays(
    name: str,
    x: Tensor,
    y: Tensor,
    origin: Tensor,
    direction: Tensor,
    shape: Sequence[int],
    forward_only: bool,
) -> None:
    """Calls a function of the library on a volume x and one value y a ray, both contiguous; one of them it fills."""
    origin, direction = origin.contiguous(), direction.contiguous()
    _function(name)(
        x.dtype == torch.float64, *shape, x.data_ptr(), len(origin), origin.data_ptr(), direction.data_ptr(),
        forward_only, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


@functools.cache
def _function(name: str) -> Any:
    function = getattr(library.load(), name)
    function.argtypes = [
        ctypes.c_int32, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 2,
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32,
    ]  # fmt: skip
    function.restype = None
    return function
