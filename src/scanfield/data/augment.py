"""Images made to look a little different: where things lie, and how bright they are.

Pure functions; everything random comes from the generator that is passed in, which lives on the CPU whatever the device
of the values. Motions are maps of world points: an image is not resampled, it is asked at mapped points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def random_affine(
    centre_mm: Sequence[float] | Float[np.ndarray, "3"] | Float[Tensor, "3"],
    generator: torch.Generator,
    *,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shift_mm: float = 0.0,
    mirror: Sequence[int] = (),
    directions: Float[np.ndarray, "3 3"] | None = None,
    dims: int = 3,
) -> Float[np.ndarray, "4 4"]:
    """A random map of world points around a centre c:  x -> c + D (s R F) D^T (x - c) + t.

    Args:
        centre_mm: c, mm.
        rotation_deg: R turns by an angle from U(-rotation, rotation), about an axis of any direction; of a slice, about
            its normal.
        scale: log s from U(-log scale, log scale), at least 1.
        shift_mm: t from U(-shift, shift) along every axis.
        mirror: axes that F mirrors, each with probability 1/2.
        directions: D, the axes (columns, orthogonal) that `mirror` and `dims` speak of, such as `Grid.directions`;
            those of the world without it.
        dims: 2 for a slice across the last axis: nothing leaves its plane.

    Raises:
        ValueError: a range is negative, the scale below 1, or an axis does not exist.
    """
    if dims not in (2, 3) or not set(mirror) <= set(range(dims)):
        raise ValueError(f"a motion has 2 or 3 axes to turn and to mirror, got {dims} and {tuple(mirror)}")
    if rotation_deg < 0 or shift_mm < 0 or scale < 1:
        raise ValueError(f"ranges are positive and scales at least 1, got {rotation_deg}, {shift_mm}, {scale}")
    axis = torch.randn(3, generator=generator).double().numpy()  # drawn whether needed or not: the rest stays the same
    angle = math.radians(rotation_deg) * _signed(generator)
    size = math.exp(math.log(scale) * _signed(generator))
    flips = [-1.0 if k in mirror and _signed(generator) < 0 else 1.0 for k in range(3)]
    shift = np.array([shift_mm * _signed(generator) for _ in range(3)])
    if dims == 2:
        axis, shift[2] = np.array([0.0, 0.0, 1.0]), 0.0
    linear = (
        _rotation(axis / np.linalg.norm(axis), angle) @ np.diag(flips) @ np.diag([size] * dims + [1.0] * (3 - dims))
    )
    frame = np.eye(3) if directions is None else np.asarray(directions, dtype=np.float64)
    centre = np.asarray(centre_mm, dtype=np.float64)
    affine = np.eye(4)
    affine[:3, :3] = frame @ linear @ frame.T
    affine[:3, 3] = centre - affine[:3, :3] @ centre + frame @ shift
    return affine


def gamma(values: Float[Tensor, "*n"], generator: torch.Generator, *, most: float) -> Float[Tensor, "*n"]:
    """v -> a + (b - a) ((v - a) / (b - a))^g between the least and the largest value a and b; log g from
    U(-log most, log most)."""
    power = math.exp(math.log(most) * _signed(generator))
    low, high = values.min(), values.max()
    width = (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    return low + width * ((values - low) / width).pow(power)


def contrast(
    values: Float[Tensor, "*n"], generator: torch.Generator, *, factor: float, shift: float
) -> Float[Tensor, "*n"]:
    """v -> m + c (v - m) + d s with mean m and standard deviation s; log c from U(-log factor, log factor), d from
    U(-shift, shift)."""
    stretch = math.exp(math.log(factor) * _signed(generator))
    mean, deviation = values.mean(), values.std(correction=0)
    return mean + stretch * (values - mean) + shift * _signed(generator) * deviation


def noise(values: Float[Tensor, "*n"], generator: torch.Generator, *, most: float) -> Float[Tensor, "*n"]:
    """Adds white Gaussian noise with a standard deviation from U(0, most), in the unit of the values."""
    deviation = most * float(torch.rand((), generator=generator))
    return values + deviation * torch.randn(values.shape, generator=generator).to(values)


def blur(
    values: Float[Tensor, "*c n0 n1 n2"], generator: torch.Generator, *, most_voxels: float
) -> Float[Tensor, "*c n0 n1 n2"]:
    """Smooths with a Gaussian whose standard deviation is from U(0, most), along the last three axes that have more
    than one voxel; mirrored at the border."""
    sigma = most_voxels * float(torch.rand((), generator=generator))
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return values
    place = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = (-0.5 * (place / sigma).square()).exp()
    kernel = kernel / kernel.sum()
    for axis in (-3, -2, -1):
        n = values.shape[axis]
        if n > 1:
            lines = values.movedim(axis, -1)
            index = torch.arange(-radius, n + radius, device=values.device) % (2 * n - 2)
            index = torch.where(index > n - 1, 2 * n - 2 - index, index)
            spread = functional.conv1d(lines[..., index].reshape(-1, 1, n + 2 * radius), kernel[None, None])
            values = spread.reshape(lines.shape).movedim(-1, axis)
    return values


def _signed(generator: torch.Generator) -> float:
    """From U(-1, 1)."""
    return 2 * float(torch.rand((), generator=generator)) - 1


def _rotation(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Rodrigues: a turn about a unit vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)
