"""Thick MR slices: how a field becomes the pixels of slices that lie anywhere.

Notation: pixel j of slice i lies at p_ij in the slice's own frame (mm; origin in the slice's middle, z = 0 in its
plane). Its point spread is a Gaussian with covariance S_i = diag(s_x, s_y, s_z)^2 in that frame. T_i takes the slice's
frame to the world (mm, RAS+). A field V gives the pixel

    y_ij = E V(T_i(p_ij + S_i^{1/2} u)),   u ~ N(0, 1),     by the mean over K points u_k.

Poses are rigid; the correction of an initial pose acts first, its translation before its rotation (NeSVoR, Xu et al.,
IEEE TMI 42:1707-1719, 2023):

    T_i(p) = R_i exp([w_i]) (p + t_i) + c_i,   w_i = t_i = 0 at first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scanfield.data.slices import SliceSet
from scanfield.operators.smooth import smoothed
from scanfield.space.grid import Grid
from scanfield.space.pose import rotation_matrix
from scanfield.space.samples import Samples

Draws = Literal["lattice", "independent"]

FWHM_TO_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))
IN_PLANE_FWHM = 1.2067  # in pixels: the Gaussian nearest to the sinc that a Fourier-encoded plane has
POSE_UNIT_MM = 30.0  # of the translations' parameters: a rate moves a brain's rim as far as it turns it
COVERAGE_VOXELS = 1_000_000
_TAIL = 1e-5  # quantiles of shifted lattices are cut off there (4.3 sigma)


def psf_sigma_mm(spacing_mm: Float[Tensor, "n 2"], thickness_mm: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Standard deviations (mm) of the point spread along a slice's axes: full width at half maximum 1.2067 pixels in
    the plane and the slice's thickness across it (Jiang et al., IEEE TMI 26:967-980, 2007)."""
    widths = torch.cat([IN_PLANE_FWHM * spacing_mm, thickness_mm[:, None]], dim=1)
    return FWHM_TO_SIGMA * widths


class SlicePoses(nn.Module):
    """The poses of n slices: fixed initial ones, with corrections as parameters that are zero at first.

    Args:
        initial: slice frame -> world mm, rigid and proper.

    Attributes:
        rotation: w, (n, 3) rotation vectors, rad.
        shift: t, (n, 3) in units of `POSE_UNIT_MM`.
    """

    turn: Tensor
    place: Tensor

    def __init__(self, initial: Float[Tensor, "n 4 4"]) -> None:
        super().__init__()
        matrix = initial.double()
        linear = matrix[:, :3, :3]
        one = torch.eye(3, dtype=torch.float64, device=matrix.device)
        if matrix.shape[1:] != (4, 4) or not torch.isfinite(matrix).all():
            raise ValueError(f"poses are finite 4x4 matrices, got shape {tuple(matrix.shape)}")
        if not torch.allclose(linear @ linear.mT, one.expand_as(linear), atol=1e-4) or (torch.det(linear) < 0).any():
            raise ValueError("poses of slices are rigid and proper: rotations without scale, shear or mirroring")
        self.register_buffer("turn", linear.float())
        self.register_buffer("place", matrix[:, :3, 3].float())
        self.rotation = nn.Parameter(torch.zeros(len(matrix), 3))
        self.shift = nn.Parameter(torch.zeros(len(matrix), 3))

    def forward(self) -> Float[Tensor, "n 3 4"]:
        """T_i as matrices."""
        turn = self.turn @ rotation_matrix(self.rotation)
        place = self.place + (turn @ (POSE_UNIT_MM * self.shift)[..., None])[..., 0]
        return torch.cat([turn, place[..., None]], dim=-1)

    def matrices(self) -> Float[Tensor, "n 4 4"]:
        """T_i as 4x4 matrices in double precision, without gradient, on the CPU."""
        with torch.no_grad():
            top = self().double().cpu()
        last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(len(top), 1, 4)
        return torch.cat([top, last], dim=1)

    def correction(self) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """w (rad) and t (mm): how far the poses are from the initial ones."""
        return self.rotation, POSE_UNIT_MM * self.shift


@dataclass(frozen=True, eq=False)
class SliceOperator:
    """The pixels of slices as means over points of their point spread: a `SampledOperator` with one row per pixel.

    Args:
        slice_index: slice of every pixel.
        local_mm: p, its place in the slice's frame.
        sigma_mm: widths of the point spread of every slice (`psf_sigma_mm`).
        poses: gives the current T as (slices, 3, 4), such as `SlicePoses`; called anew for every batch.
        count: K, points per pixel.
        draws: with a generator, 'independent' normal points, or a 'lattice' of normal quantiles that is shifted at
            random for every pixel (Cranley & Patterson 1976), in pairs u, -u. Both give the same expectation (nearly,
            for an odd number of points); of smooth fields, 16 points of a lattice vary as little as 200 to 300 others.
    """

    slice_index: Int[Tensor, " pixels"]
    local_mm: Float[Tensor, "pixels 3"]
    sigma_mm: Float[Tensor, "slices 3"]
    poses: Callable[[], Float[Tensor, "slices 3 4"]]
    count: int
    draws: Draws = "lattice"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.slice_index.shape)

    def samples(self, index: Int[Tensor, " m"], generator: torch.Generator | None = None) -> Samples:
        """K points of every pixel's point spread; without a generator those of a fixed symmetric lattice, whose mean
        is exact where the field is a polynomial of third degree within the point spread."""
        where = self.slice_index[index]
        u = _normal_points(len(index), self.count, self.draws, generator).to(self.local_mm)
        local = self.local_mm[index][:, None] + self.sigma_mm[where][:, None] * u
        pose = self.poses()[where]
        return Samples(local @ pose[..., :3].mT + pose[:, None, :, 3])

    def reduce(self, values: Float[Tensor, "m s c"], samples: Samples) -> Float[Tensor, "m *out"]:
        """Mean over a pixel's points; one channel gives (m,), several give (m, c)."""
        mean = values.mean(dim=-2)
        return mean.squeeze(-1) if mean.shape[-1] == 1 else mean


def normal_lattice(count: int) -> Float[Tensor, "count 3"]:
    """Points with equal weights for means over a three-dimensional standard normal distribution, the same every time.

    They come in pairs u, -u (and the origin, where `count` is odd), and their covariance is 1: polynomials up to the
    third degree have their exact mean. Fewer than 6 points cannot span that; they are then the origin alone, repeated.
    """
    return _fixed_points(count).clone()


@functools.lru_cache(maxsize=32)
def _fixed_points(count: int) -> Tensor:
    if count < 6:
        return torch.zeros(count, 3)
    half = torch.special.ndtri(_additive(count // 2))
    points = torch.cat([half, -half.flip(0)])
    if count % 2:
        points = torch.cat([points, torch.zeros(1, 3, dtype=torch.float64)])
    root = torch.linalg.cholesky(points.mT @ points / count)
    return torch.linalg.solve_triangular(root, points.mT, upper=False).mT.contiguous().float()


def _additive(count: int) -> Float[Tensor, "count 3"]:
    """The additive recurrence frac(1/2 + k a), k = 1 .. count, with the powers of the generalised golden ratio,
    g^4 = g + 1: points that fill the unit cube evenly for every `count`."""
    golden = 1.2207440846057596
    step = torch.tensor([golden**-1, golden**-2, golden**-3], dtype=torch.float64)
    return (0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * step).frac().clamp(_TAIL, 1 - _TAIL)


def _normal_points(
    pixels: int, count: int, draws: Draws, generator: torch.Generator | None
) -> Float[Tensor, "p count 3"]:
    if generator is None:
        return _fixed_points(count).expand(pixels, count, 3)
    if draws == "independent":
        return torch.randn(pixels, count, 3, generator=generator)
    shift = torch.rand(pixels, 1, 3, generator=generator)
    half = torch.special.ndtri((_additive(count // 2).float() + shift).frac_().clamp_(_TAIL, 1 - _TAIL))
    return torch.cat([half, torch.zeros(pixels, count % 2, 3), -half.flip(1)], dim=1)


@dataclass(frozen=True, eq=False)
class SliceState:
    """What a reconstruction found out about its slices.

    Args:
        poses: slice frame -> world mm, float64.
        scale: factor between the volume and the slice; their mean is 1.
        weight: how much a slice counts beside a typical one, 1 at most; near 0 for outliers.
    """

    poses: Float[Tensor, "n 4 4"]
    scale: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def soundness(self) -> Float[Tensor, " n"]:
        """From 1 for a usual slice to 0: its weight, times how near its scale is to the usual one. A slice that lost
        its signal everywhere is explained by a small scale and keeps its weight."""
        relative = self.scale / self.scale.median()
        return self.weight * torch.minimum(relative, 1 / relative)


def box_grid(x: Float[Tensor, "n 3"], spacing_mm: float, margin_mm: float) -> Grid:
    """The grid of cubic voxels, along the axes of the world, that covers all points and a margin around them."""
    low, high = (x.amin(0) - margin_mm).double().cpu().numpy(), (x.amax(0) + margin_mm).double().cpu().numpy()
    counts = np.maximum(1, np.ceil((high - low) / spacing_mm)).astype(int)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing_mm * (counts - 1) / 2
    return Grid((int(counts[0]), int(counts[1]), int(counts[2])), affine)


def coverage(data: SliceSet, poses: Float[Tensor, "n 3 4"], grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """Which voxels the slices' pixels fill, each as thick as its slice: smoothed by a voxel, and cut off at a half."""
    of = data.slice_index
    sizes = torch.cat([data.spacing_mm, data.thickness_mm[:, None]], dim=1)
    parts = [math.ceil(float(size) / min(grid.spacing_mm)) + 1 for size in sizes.amax(dim=0)]
    seen, limit = torch.zeros(grid.size, dtype=torch.bool), torch.tensor(grid.shape)
    for place in itertools.product(*map(range, parts)):
        within = torch.tensor([(k + 0.5) / n - 0.5 for k, n in zip(place, parts, strict=True)], device=sizes.device)
        local = data.local_mm + within * sizes[of]
        x = torch.einsum("mij,mj->mi", poses[of][:, :, :3], local) + poses[of][:, :, 3]
        voxel = grid.to_voxel(x.cpu().double()).round().long()
        i, j, k = voxel[((voxel >= 0) & (voxel < limit)).all(dim=1)].unbind(-1)
        seen[(i * limit[1] + j) * limit[2] + k] = True
    return smoothed(seen.reshape(grid.shape).float(), grid, max(grid.spacing_mm)) > 0.5


def coverage_grid(grid: Grid) -> Grid:
    """The grid, or a coarser one of about a million voxels: enough for `coverage`."""
    coarser = (grid.size / COVERAGE_VOXELS) ** (1 / 3)
    return grid if coarser <= 1 else grid.resampled(coarser * grid.spacing_mm[0])
