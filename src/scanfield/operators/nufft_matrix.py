"""Non-uniform transforms as products with thin matrices, on any device: exact, and free of packages.

exp(-i w_j . r) is a product over the axes, E_a[j, r_a] = exp(-i w_ja r_a), so that

    type 2:  s_j = sum_{r0} E_0[j, r0] sum_{r1} E_1[j, r1] ... m[r0, r1, ...]
    type 1:  m[r0, r1, ...] = sum_j conj(E_0[j, r0]) conj(E_1[j, r1]) ... s_j

The first axis is a matrix product over all samples, which holds nearly all of the work: 8 samples times voxels
operations an image. Phases are computed in double precision and products in that of the values, never in TF32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Complex, Float
from torch import Tensor

LARGEST_PART = 2**25
"""Complex numbers that an intermediate result may have."""


def type2(
    image: Complex[Tensor, "frames batch *voxels"], frequency: Float[Tensor, "frames samples d"]
) -> Complex[Tensor, "frames batch samples"]:
    """sum_i m_i exp(-i w_j . r_i) for every frame with its own trajectory; `voxels` are the d axes of `frequency`."""
    frames, batch, *voxels = image.shape
    out = image.new_empty(frames, batch, frequency.shape[1])
    with _whole_precision():
        for f, j in _parts(frequency, batch, voxels):
            first, *others = _factors(frequency[f, j], voxels, image.dtype)
            part = first @ image[f].movedim(2, 1).flatten(2)  # (frames, samples, batch * other voxels)
            for n, factor in zip(voxels[1:], others, strict=True):
                part = part.reshape(*part.shape[:2], batch, n, -1)
                part = torch.einsum("fsbnr,fsn->fsbr", part, factor)
            out[f, :, j] = part.reshape(*part.shape[:2], batch).transpose(1, 2)
    return out


def type1(
    values: Complex[Tensor, "frames batch samples"],
    frequency: Float[Tensor, "frames samples d"],
    voxels: tuple[int, ...],
) -> Complex[Tensor, "frames batch *voxels"]:
    """sum_j s_j exp(+i w_j . r_i), the adjoint of `type2`."""
    frames, batch, _ = values.shape
    out = values.new_zeros(frames, batch, *voxels)
    with _whole_precision():
        for f, j in _parts(frequency, batch, voxels):
            first, *others = _factors(frequency[f, j], voxels, values.dtype)
            part = values[f, :, j].transpose(1, 2)[..., None]  # (frames, samples, batch, 1)
            for factor in others:
                part = (part[..., None] * factor.conj()[:, :, None, None]).flatten(3)
            image = first.mH @ part.flatten(2)
            out[f] += image.reshape(len(image), voxels[0], batch, *voxels[1:]).movedim(1, 2)
    return out


def operations(frames: int, batch: int, samples: int, voxels: tuple[int, ...]) -> float:
    """Real operations of one transform."""
    return 8.0 * frames * batch * samples * math.prod(voxels)


def _parts(frequency: Tensor, batch: int, voxels: tuple[int, ...] | list[int]) -> Iterator[tuple[slice, slice]]:
    """Slices of frames and samples whose intermediate results stay below `LARGEST_PART`."""
    frames, samples, _ = frequency.shape
    each = batch * math.prod(voxels[1:]) + 2 * sum(voxels)  # per sample; factors pass through double precision
    length = max(1, min(samples, LARGEST_PART // each))
    group = max(1, LARGEST_PART // (each * length))
    for f in range(0, frames, group):
        for j in range(0, samples, length):
            yield slice(f, f + group), slice(j, j + length)


def _factors(frequency: Tensor, voxels: tuple[int, ...] | list[int], dtype: torch.dtype) -> list[Tensor]:
    """E_a for every axis, (frames, samples, n_a)."""
    factors = []
    for axis, n in enumerate(voxels):
        r = torch.arange(n, dtype=torch.float64, device=frequency.device) - n // 2
        phase = frequency[..., axis, None].double() * r
        factors.append(torch.polar(torch.ones_like(phase), -phase).to(dtype))
    return factors


@contextmanager
def _whole_precision() -> Iterator[None]:
    """TF32 has ten bits: a thousand times the error of the transform."""
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
