"""Receiver coils: how they see an image, how their images are combined, what they look like and how that is estimated.

Notation: S_c(x) complex sensitivity of coil c, x_c = S_c m its image.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import avg_pool3d

from scanfield.errors import InputError
from scanfield.space.grid import Grid

RADIUS = 1.25
"""Radius of the analytic coils' cylinder, in half diagonals of the slice."""
POWER_ITERATIONS = 30
_TINY = 1e-12


def combine(
    coil_images: Complex[Tensor, "*frames coils n0 n1 n2"], sensitivities: Complex[Tensor, "coils n0 n1 n2"]
) -> Complex[Tensor, "*frames n0 n1 n2"]:
    """sum_c conj(S_c) x_c / sum_c |S_c|^2: the least-squares image; zero where no coil sees anything.

    Roemer et al., MRM 16:192-225, 1990, for coils of equal and independent noise.
    """
    power = sensitivities.abs().square().sum(dim=0)
    seen = power > 1e-6 * power.max()
    return (coil_images * sensitivities.conj()).sum(dim=-4) / torch.where(seen, power, 1.0) * seen


def root_sum_of_squares(coil_images: Complex[Tensor, "*frames coils n0 n1 n2"]) -> Float[Tensor, "*frames n0 n1 n2"]:
    """sqrt(sum_c |x_c|^2): a magnitude image without sensitivities."""
    return coil_images.abs().square().sum(dim=-4).sqrt()


def analytic_sensitivities(grid: Grid, coils: int) -> Complex[Tensor, "coils n0 n1 n2"]:
    """Long rectangular loops side by side on a cylinder about the grid's third axis.

    With z = x + i y in the slice, the field of a loop whose two wires cross the slice at p and q is, by Biot-Savart,
    proportional to 1 / (z - p) - 1 / (z - q); by reciprocity (Hoult, Richards, J. Magn. Reson. 24:71-85, 1976) so is
    its sensitivity, whose phase thus turns from coil to coil. Scaled to a root sum of squares of 1 at the centre.

    Raises:
        InputError: no coil.
    """
    if coils < 1:
        raise InputError(f"an image needs at least one coil, got {coils}")
    n0, n1, n2 = grid.shape
    s0, s1, _ = grid.spacing_mm
    x = (torch.arange(n0, dtype=torch.float64) - (n0 - 1) / 2) * s0
    y = (torch.arange(n1, dtype=torch.float64) - (n1 - 1) / 2) * s1
    z = torch.complex(*torch.meshgrid(x, y, indexing="ij"))
    radius = RADIUS * math.hypot(n0 * s0, n1 * s1) / 2
    half = 0.8 * math.pi / max(coils, 3)  # of the angle between neighbours, so that the loops do not overlap
    maps, centre = [], 0.0
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        p, q = (radius * complex(math.cos(a), math.sin(a)) for a in (angle + half, angle - half))
        maps.append(1 / (z - p) - 1 / (z - q))
        centre += abs(1 / p - 1 / q) ** 2
    plane = torch.stack(maps).to(torch.complex64) / math.sqrt(centre)
    return plane[..., None].expand(coils, n0, n1, n2).contiguous()


def estimate_sensitivities(
    coil_images: Complex[Tensor, "coils n0 n1 n2"], window: int = 5
) -> Complex[Tensor, "coils n0 n1 n2"]:
    """Sensitivities from coil images by adaptive combination (Walsh, Gmitro, Marcellin, MRM 43:682-690, 2000).

    The dominant eigenvector of the coils' covariance in a window about every voxel, found by power iteration. Its root
    sum of squares is 1 everywhere; its phase is that relative to the dominant eigenvector of the whole image, so that
    the image keeps its own. Meant for low-resolution images, see `calibration.low_resolution_images`.

    Args:
        window: voxels along every axis (an odd number); axes of one voxel have a window of 1.

    Raises:
        InputError: no coil, a window that is not odd, or images that are zero everywhere.
    """
    coils, *shape = coil_images.shape
    if coils < 1:
        raise InputError("an image needs at least one coil, got 0")
    if window < 1 or window % 2 == 0:
        raise InputError(f"the window is an odd number of voxels, got {window}")
    scale = coil_images.abs().max()
    if not scale > 0:
        raise InputError("the coil images are zero everywhere, there is nothing to estimate sensitivities from")
    images = coil_images / scale
    widths = [min(window, 2 * ((n - 1) // 2) + 1) for n in shape]
    rows = []
    for c in range(coils):
        products = torch.view_as_real(images[c] * images.conj()).movedim(-1, 0)  # (2, coils, n0, n1, n2)
        pad = [w // 2 for w in widths]
        mean = avg_pool3d(products.contiguous(), widths, stride=1, padding=pad, count_include_pad=False)
        rows.append(torch.view_as_complex(mean.movedim(0, -1).contiguous()))
    local = torch.stack(rows).flatten(2).permute(2, 0, 1)  # (voxels, coils, coils)
    whole = local.mean(dim=0)
    reference = torch.linalg.eigh(whole).eigenvectors[:, -1]
    vector = reference.expand(len(local), coils) + _TINY
    for _ in range(POWER_ITERATIONS):
        ahead = torch.einsum("vij,vj->vi", local, vector)
        length = ahead.norm(dim=1, keepdim=True)
        vector = torch.where(length > _TINY, ahead / length.clamp(min=_TINY), vector)
    phase = torch.einsum("i,vi->v", reference.conj(), vector)
    vector = vector * torch.exp(-1j * phase.angle())[:, None]
    vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=_TINY)
    return vector.T.reshape(coils, *shape).contiguous()
