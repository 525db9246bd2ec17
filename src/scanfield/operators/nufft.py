"""Fourier transforms at arbitrary frequencies, differentiable to any order in values and in frequencies.

Notation: m image on voxels i with r_a = i_a - n_a // 2, w_j frequency of sample j (radians per voxel),

    type 2:  s_j = sum_i m_i exp(-i w_j . r_i)          `nufft`
    type 1:  m_i = sum_j s_j exp(+i w_j . r_i)          `nufft_adjoint`

Each is the other's adjoint, and both derivatives are transforms again: with g the gradient of a real loss,

    d s_j / d w_ja = nufft(-i r_a m)_j,    dL/dm = nufft_adjoint(g),    dL/dw_ja = Re(conj(g_j) nufft(-i r_a m)_j)

so autograd differentiates the backward passes as well, which motion methods with second-order terms rely on.

On the CPU finufft computes them (`nufft_plans`); on other devices, and for small transforms where finufft is not
installed, products with thin matrices do (`nufft_matrix`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from scanfield.operators import nufft_matrix, nufft_plans

AFFORDABLE = 1e11
"""Operations up to which a transform on the CPU goes without finufft: a few seconds."""


def nufft(
    image: Complex[Tensor, "*frames_batch n0 n1 n2"], frequency: Float[Tensor, "*frames samples 3"]
) -> Complex[Tensor, "*frames_batch samples"]:
    """Type 2: the image's Fourier transform at the given frequencies.

    Args:
        image: complex64 or complex128, any number of images (coils, frames).
        frequency: radians per voxel along the three axes, periodic with 2 pi; of the image's precision. With a leading
            axis every image of the first axis has a trajectory of its own.

    Raises:
        ValueError: the precisions differ, or there is not one trajectory for every image of the first axis.
        MissingExtra: finufft is not installed and the transform is too large to do without.
    """
    _check(image, frequency, image.shape[:-3])
    frames, samples = _frames(frequency), frequency.shape[-2]
    batch = math.prod(image.shape[:-3]) // max(frames, 1)
    flat = image.reshape(frames, batch, *image.shape[-3:])
    found = _Type2.apply(flat, frequency.reshape(frames, samples, 3))
    return found.reshape(*image.shape[:-3], samples)


def nufft_adjoint(
    values: Complex[Tensor, "*frames_batch samples"],
    frequency: Float[Tensor, "*frames samples 3"],
    shape: tuple[int, int, int],
) -> Complex[Tensor, "*frames_batch n0 n1 n2"]:
    """Type 1: the exact adjoint of `nufft` onto images of `shape`; not its inverse.

    Raises:
        ValueError: the precisions differ, or there is not one trajectory for every entry of the first axis.
        MissingExtra: finufft is not installed and the transform is too large to do without.
    """
    _check(values, frequency, values.shape[:-1])
    frames, samples = _frames(frequency), frequency.shape[-2]
    batch = math.prod(values.shape[:-1]) // max(frames, 1)
    flat = values.reshape(frames, batch, samples)
    found = _Type1.apply(flat, frequency.reshape(frames, samples, 3), tuple(shape))
    return found.reshape(*values.shape[:-1], *shape)


class _Type2(torch.autograd.Function):
    """(frames, batch, n0, n1, n2) -> (frames, batch, samples)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, frequency: Tensor) -> Tensor:
        ctx.shape = tuple(image.shape[2:])
        ctx.save_for_backward(frequency, image if ctx.needs_input_grad[1] else None)
        return _transform(image, frequency, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        frequency, image = ctx.saved_tensors
        to_image = to_frequency = None
        if ctx.needs_input_grad[0]:
            to_image = _Type1.apply(gradient, frequency, ctx.shape)
        if ctx.needs_input_grad[1]:
            to_frequency = _frequency_gradient(gradient, image, frequency)
        return to_image, to_frequency


class _Type1(torch.autograd.Function):
    """(frames, batch, samples) -> (frames, batch, n0, n1, n2)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, frequency: Tensor, shape: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(frequency, values if ctx.needs_input_grad[1] else None)
        return _transform(values, frequency, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        frequency, values = ctx.saved_tensors
        to_values = to_frequency = None
        if ctx.needs_input_grad[0]:
            to_values = _Type2.apply(gradient, frequency)
        if ctx.needs_input_grad[1]:
            to_frequency = _frequency_gradient(values, gradient, frequency)
        return to_values, to_frequency, None


def _frequency_gradient(values: Tensor, image: Tensor, frequency: Tensor) -> Float[Tensor, "frames samples 3"]:
    """Re sum_batch conj(s_j) nufft(-i r_a m)_j for every sample and axis; both directions need the same one."""
    columns = []
    for axis, n in enumerate(image.shape[2:]):
        r = torch.arange(n, dtype=frequency.dtype, device=image.device) - n // 2
        r = r.reshape([-1 if a == axis else 1 for a in range(3)])
        columns.append((values.conj() * _Type2.apply(-1j * r * image, frequency)).real.sum(dim=1))
    return torch.stack(columns, dim=-1)


def _transform(source: Tensor, frequency: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Type 1 onto `shape`, or type 2 without one; axes of one voxel have r = 0 and drop out."""
    frames, batch = source.shape[:2]
    samples = frequency.shape[1]
    sizes = tuple(source.shape[2:]) if shape is None else shape
    rest = (samples,) if shape is None else shape
    if 0 in (frames, batch, samples):
        return source.new_zeros(frames, batch, *rest)
    axes = [a for a in range(3) if sizes[a] > 1] or [0]
    voxels = tuple(sizes[a] for a in axes)
    inner = source.reshape(frames, batch, *voxels) if shape is None else source
    along = frequency[..., axes]
    work = nufft_matrix.operations(frames, batch, samples, voxels)
    if source.device.type != "cpu" or (work <= AFFORDABLE and not nufft_plans.installed()):
        found = nufft_matrix.type2(inner, along) if shape is None else nufft_matrix.type1(inner, along, voxels)
    else:
        found = torch.stack(
            [
                nufft_plans.type2(x, w) if shape is None else nufft_plans.type1(x, w, voxels)
                for x, w in zip(inner, along, strict=True)
            ]
        )
    return found.reshape(frames, batch, *rest)


def _frames(frequency: Tensor) -> int:
    return 1 if frequency.ndim == 2 else len(frequency)


def _check(values: Tensor, frequency: Tensor, batch: torch.Size) -> None:
    if values.dtype not in (torch.complex64, torch.complex128) or frequency.dtype != values.real.dtype:
        raise ValueError(f"complex values and frequencies need one precision, got {values.dtype} and {frequency.dtype}")
    if frequency.ndim not in (2, 3) or (frequency.ndim == 3 and (not batch or batch[0] != len(frequency))):
        raise ValueError(
            f"frequencies of shape {tuple(frequency.shape)} do not give a trajectory to each of {tuple(batch)}"
        )
