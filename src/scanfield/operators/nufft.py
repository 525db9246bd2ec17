"""Fourier transforms at arbitrary frequencies, differentiable to any order in values and in frequencies.

Notation: m image on voxels i with r_a = i_a - n_a // 2, w_j frequency of sample j (radians per voxel),

    type 2:  s_j = sum_i m_i exp(-i w_j . r_i)          `nufft`
    type 1:  m_i = sum_j s_j exp(+i w_j . r_i)          `nufft_adjoint`

Each is the other's adjoint, and both derivatives are transforms again: with g the gradient of a real loss,

    d s_j / d w_ja = nufft(-i r_a m)_j,    dL/dm = nufft_adjoint(g),    dL/dw_ja = Re(conj(g_j) nufft(-i r_a m)_j)

so autograd differentiates the backward passes as well, which motion methods with second-order terms rely on.
Computed by finufft (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41:C479-C504, 2019) on the CPU; tensors on
another device are copied there and back.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from scanfield.errors import MissingExtra

EPSILON = {torch.complex64: 1e-6, torch.complex128: 1e-13}
"""Relative accuracy asked of finufft."""


def nufft(
    image: Complex[Tensor, "*batch n0 n1 n2"], frequency: Float[Tensor, "samples 3"]
) -> Complex[Tensor, "*batch samples"]:
    """Type 2: the image's Fourier transform at the given frequencies.

    Args:
        image: complex64 or complex128, any number of images (coils, frames).
        frequency: radians per voxel along the three axes, periodic with 2 pi; of the image's precision.

    Raises:
        ValueError: the precisions differ.
        MissingExtra: finufft is not installed.
    """
    _check(image, frequency)
    flat = image.reshape(math.prod(image.shape[:-3]), *image.shape[-3:])
    return _Type2.apply(flat, frequency).reshape(*image.shape[:-3], len(frequency))


def nufft_adjoint(
    values: Complex[Tensor, "*batch samples"], frequency: Float[Tensor, "samples 3"], shape: tuple[int, int, int]
) -> Complex[Tensor, "*batch n0 n1 n2"]:
    """Type 1: the exact adjoint of `nufft` onto an image of `shape`; not its inverse.

    Raises:
        ValueError: the precisions differ.
        MissingExtra: finufft is not installed.
    """
    _check(values, frequency)
    flat = values.reshape(math.prod(values.shape[:-1]), len(frequency))
    return _Type1.apply(flat, frequency, tuple(shape)).reshape(*values.shape[:-1], *shape)


class _Type2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, frequency: Tensor) -> Tensor:
        ctx.save_for_backward(image, frequency)
        return _transform(image, frequency, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        image, frequency = ctx.saved_tensors
        to_image = to_frequency = None
        if ctx.needs_input_grad[0]:
            to_image = _Type1.apply(gradient, frequency, tuple(image.shape[1:]))
        if ctx.needs_input_grad[1]:
            to_frequency = _frequency_gradient(gradient, image, frequency)
        return to_image, to_frequency


class _Type1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, frequency: Tensor, shape: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(values, frequency)
        return _transform(values, frequency, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, frequency = ctx.saved_tensors
        to_values = to_frequency = None
        if ctx.needs_input_grad[0]:
            to_values = _Type2.apply(gradient, frequency)
        if ctx.needs_input_grad[1]:
            to_frequency = _frequency_gradient(values, gradient, frequency)
        return to_values, to_frequency, None


def _frequency_gradient(values: Tensor, image: Tensor, frequency: Tensor) -> Float[Tensor, "samples 3"]:
    """Re sum_batch conj(s_j) nufft(-i r_a m)_j for every sample and axis; both directions need the same one."""
    columns = []
    for axis, n in enumerate(image.shape[1:]):
        r = torch.arange(n, dtype=frequency.dtype, device=image.device) - n // 2
        r = r.reshape([-1 if a == axis else 1 for a in range(3)])
        columns.append((values.conj() * _Type2.apply(-1j * r * image, frequency)).real.sum(dim=0))
    return torch.stack(columns, dim=-1)


def _transform(values: Tensor, frequency: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Type 1 onto `shape`, or type 2 without one, of (batch, ...) values; axes of one voxel have r = 0 and drop out."""
    sizes = tuple(values.shape[1:]) if shape is None else shape
    axes = [a for a in range(3) if sizes[a] > 1] or [0]
    inner = [sizes[a] for a in axes]
    if 0 in (len(values), len(frequency)):
        return values.new_zeros(len(values), *((len(frequency),) if shape is None else shape))
    points = [frequency.detach()[:, a].cpu().contiguous().numpy() for a in axes]
    source = values.detach().resolve_conj().cpu().contiguous()
    finufft = _finufft()
    options = {"eps": EPSILON[values.dtype], "nthreads": torch.get_num_threads()}
    if shape is None:
        image = source.reshape(len(values), *inner).numpy()
        found = getattr(finufft, f"nufft{len(axes)}d2")(*points, image, isign=-1, **options)
        return torch.from_numpy(found).reshape(len(values), len(frequency)).to(values.device)
    found = getattr(finufft, f"nufft{len(axes)}d1")(*points, source.numpy(), tuple(inner), isign=1, **options)
    return torch.from_numpy(found).reshape(len(values), *shape).to(values.device)


def _finufft() -> ModuleType:
    try:
        import finufft
    except ImportError:
        raise MissingExtra("finufft", "mri", "a non-Cartesian Fourier transform") from None
    return finufft


def _check(values: Tensor, frequency: Tensor) -> None:
    if values.dtype not in EPSILON or frequency.dtype != values.real.dtype:
        raise ValueError(f"complex values and frequencies need one precision, got {values.dtype} and {frequency.dtype}")
