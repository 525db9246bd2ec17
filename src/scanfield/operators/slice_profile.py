"""What a slice's pixel sees of the body: its point-spread function along the slice and across it, as weights.

Notation: r size of a pixel, t thickness of a slice (mm), u distance from the pixel's centre along one of its axes, z
from the plane of the slice. Both functions are products of one along each axis, of integral 1.

    gaussian    along:  normal of FWHM 1.2067 r (about that of a sinc of zeros r apart)
                across: normal of FWHM t
    box-sinc    along:  1 for |u| < r / 2
                across: what a Hann-windowed sinc pulse with N zero crossings on either side excites under a small tip
                        angle, the Fourier transform of its envelope (Pauly et al., J. Magn. Reson. 81:43-56, 1989):
                        P(z) = int sinc(s) (1 + cos(pi s / N)) / 2 cos(2 pi s z / t) ds, |s| < N
                        flat in the slice, smooth at its edges, half as high at |z| = t / 2
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError

Psf = Literal["gaussian", "box-sinc"]
FWHM = 2 * math.sqrt(2 * math.log(2))  # of a normal distribution of standard deviation 1
SINC_WIDTH = 1.2067  # FWHM of sinc(x)
PULSE_ZEROS = 2  # N: a time-bandwidth product of 4
_REACH = 3.0  # standard deviations
_PULSE_REACH = 1.25  # thicknesses; beyond, the profile is below 0.2 %


def along_reach_mm(psf: Psf, pixel_mm: float) -> float:
    """How far from a pixel's centre its weights along the slice extend."""
    _check(pixel_mm)
    return pixel_mm / 2 if psf == "box-sinc" else _REACH * SINC_WIDTH * pixel_mm / FWHM


def along_weights(psf: Psf, pixel_mm: float, u_mm: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Weights at distances u along the slice, not normalised."""
    _check(pixel_mm)
    if psf == "box-sinc":
        return (u_mm.abs() < pixel_mm / 2).to(u_mm)
    return _normal(u_mm / (SINC_WIDTH * pixel_mm / FWHM))


def across_reach_mm(psf: Psf, thickness_mm: float) -> float:
    """How far from the plane of a slice its weights across it extend."""
    _check(thickness_mm)
    return _PULSE_REACH * thickness_mm if psf == "box-sinc" else _REACH * thickness_mm / FWHM


def across_weights(psf: Psf, thickness_mm: float, z_mm: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Weights at distances z across the slice, not normalised."""
    _check(thickness_mm)
    if psf == "gaussian":
        return _normal(z_mm * FWHM / thickness_mm)
    s = np.linspace(0, PULSE_ZEROS, 40 * PULSE_ZEROS + 1)
    envelope = np.sinc(s) * (1 + np.cos(np.pi * s / PULSE_ZEROS)) / 2
    envelope[[0, -1]] /= 2  # trapezoids; the other half is the same
    turns = torch.from_numpy(2 * np.pi * s).to(z_mm)
    weights = torch.from_numpy(envelope * 2 * (s[1] - s[0])).to(z_mm)
    return torch.cos((z_mm / thickness_mm)[..., None] * turns) @ weights


def _normal(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= _REACH, torch.exp(-x.square() / 2), torch.zeros_like(x))


def _check(size_mm: float) -> None:
    if not 0 < size_mm < float("inf"):
        raise InputError(f"pixel size and thickness must be positive numbers of mm, got {size_mm}")
