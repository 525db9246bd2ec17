"""Terms that make a field a signed distance (negative inside, |grad f| = 1). Means over points, without weights.

Distances are in mm; what a term compares with a length takes that length as an argument.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def eikonal(gradient: Float[Tensor, "*n k"]) -> Float[Tensor, ""]:
    """mean | |grad f| - 1 |: f grows by one mm per mm (Gropp et al. 2020; the absolute value as in SIREN, eq. 6)."""
    return (gradient.norm(dim=-1) - 1).abs().mean()


def normal_alignment(gradient: Float[Tensor, "*n k"], normal: Float[Tensor, "*n k"]) -> Float[Tensor, ""]:
    """mean (1 - cos(grad f, n)): the gradient points along the outward normal (SIREN, eq. 6)."""
    return (1 - functional.cosine_similarity(gradient, normal, dim=-1)).mean()


def on_surface(value_mm: Float[Tensor, "*n"], unit_mm: float) -> Float[Tensor, ""]:
    """mean |f| / unit at points of the surface."""
    return value_mm.abs().mean() / unit_mm


def off_surface(value_mm: Float[Tensor, "*n"], unit_mm: float, sharpness: float = 100.0) -> Float[Tensor, ""]:
    """mean exp(-sharpness |f| / unit): away from the surface f is not zero (SIREN, eq. 6: sharpness >> 1)."""
    return (-sharpness * value_mm.abs() / unit_mm).exp().mean()


def wrong_side(value_mm: Float[Tensor, "*n"], side: Float[Tensor, "*n"], unit_mm: float) -> Float[Tensor, ""]:
    """mean max(0, -side f) / unit: f has the sign of `side` (-1 inside, 1 outside, 0 not known)."""
    return functional.relu(-side * value_mm).mean() / unit_mm
