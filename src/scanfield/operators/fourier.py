"""Centred discrete Fourier transforms, and the Cartesian scan made of one and a sampling mask.

    F m [j] = 1 / sqrt(N)  sum_i  m[i] exp(-2 pi i  sum_a (j_a - n_a // 2) (i_a - n_a // 2) / n_a)

Unitary: the inverse is the adjoint. k-space and image have their zero at index n // 2 along every axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from scanfield.errors import InputError

AXES = (-3, -2, -1)


def centred_fft(image: Complex[Tensor, "*shape"], axes: Sequence[int] = AXES) -> Complex[Tensor, "*shape"]:
    """F m along `axes`: image -> k-space."""
    dim = tuple(axes)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, dim=dim), dim=dim, norm="ortho"), dim=dim)


def centred_ifft(kspace: Complex[Tensor, "*shape"], axes: Sequence[int] = AXES) -> Complex[Tensor, "*shape"]:
    """F^H s along `axes`: k-space -> image."""
    dim = tuple(axes)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, dim=dim), dim=dim, norm="ortho"), dim=dim)


@final
class MaskedFourier:
    """The samples of a Cartesian k-space that a mask keeps; the others are zero.

    Args:
        mask: which samples were taken, on the lattice of the volume's frequencies.

    Raises:
        InputError: the mask keeps nothing.
    """

    def __init__(self, mask: Bool[Tensor, "n0 n1 n2"]) -> None:
        if not bool(mask.any()):
            raise InputError("the sampling mask keeps no sample of k-space")
        self.mask = mask

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the k-space: that of the image."""
        return tuple(self.mask.shape)

    def apply(self, volume: Complex[Tensor, "*batch n0 n1 n2"]) -> Complex[Tensor, "*batch n0 n1 n2"]:
        """Image (or one for each coil, or frame) -> masked k-space."""
        self._check(volume)
        return centred_fft(volume) * self.mask

    def adjoint(self, values: Complex[Tensor, "*batch n0 n1 n2"]) -> Complex[Tensor, "*batch n0 n1 n2"]:
        """Masked k-space -> image with zeros for the missing samples."""
        self._check(values)
        return centred_ifft(values * self.mask)

    def _check(self, values: Tensor) -> None:
        if tuple(values.shape[-3:]) != self.shape:
            raise InputError(f"values of shape {tuple(values.shape)} do not fit a mask of shape {self.shape}")
