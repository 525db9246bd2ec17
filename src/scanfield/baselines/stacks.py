"""The classical rivals of slice-to-volume reconstruction, on the same slices.

    mean       every stack interpolated by cubic splines, where the scanner put it; the mean of the stacks
    classical  robust super-resolution with motion (after Kuklisova-Murgasova et al., Med. Image Anal. 16:1550-1564,
               2012, and Gholipour et al., IEEE TMI 29:1739-1758, 2010): registration of the slices to the volume,
               weights of pixels and slices, and super-resolution, in turns

Notation: v volume on voxels, (A v)_j the mean of v, linearly interpolated, over the Gaussian point spread of pixel j at
its slice's pose (`operators.slices`), c_i scale of a slice, e = y - c A v. Super-resolution minimises

    sum_j w_j e_j^2 / 2  +  a m sum_b q_b (D v)_b^2 / 2,    q_b = 1 / sqrt(1 + (D v)_b^2 / d^2)

by conjugate gradients; D are differences between neighbours, q comes from the volume before (half-quadratic form of an
edge-preserving prior), m is the number of pixels per voxel. Residuals are a mixture of a normal distribution and a
uniform one, w_j = P(normal | e_j) P(slice i is no outlier), by expectation maximisation; so are the slices' root mean
square residuals, of two normal distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.baselines.slice_registration import FINE_POINTS, predicted_pixels, register_slices
from scanfield.data.slices import SliceSet
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.operators.slices import SliceOperator, SlicePoses, SliceState, coverage, psf_sigma_mm
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.grid import Grid

BLURS = (1.0, 0.7, 0.7, 0.5, 0.5, 0.35, 0.35)  # of the mean that slices are moved to at first, in thicknesses
MOVES = 20  # steps of registration in each round
ROUNDS = 2  # of registration to what super-resolution gives
CG_STEPS = 10  # of each super-resolution
PRIOR = 0.02  # a
EDGE = 0.05  # d, of the stacks' 99th percentile, between neighbouring voxels
EM_STEPS = 10
CHUNK = 2**20  # points held at a time


@dataclass(frozen=True)
class Baseline:
    """A rival: `reconstruct(slices, grid, run)` gives the volume, in 99th percentiles of the stacks, and the slices.

    Args:
        label: short name for tables.
        note: what it is, in one sentence.
        fast: seconds; the others take a minute or more.
        reconstruct: the rival itself; raises `InputError` for slices it cannot take.
    """

    label: str
    note: str
    fast: bool
    reconstruct: Callable[[SliceSet, Grid, Run], tuple[Float[Tensor, "n0 n1 n2"], SliceState]]


def mean_of_stacks(data: SliceSet, grid: Grid, run: Run) -> tuple[Float[Tensor, "n0 n1 n2"], SliceState]:
    """The mean of all stacks, each interpolated by cubic splines at its initial pose; zero where there is none.

    Slices that are missing within a stack are interpolated from their neighbours.

    Raises:
        InputError: no stack has two slices.
    """
    total, count = torch.zeros(grid.size), torch.zeros(grid.size)
    for stack in range(data.stacks):
        chosen = data.stack_index == stack
        if int(chosen.sum()) < 2:
            continue
        image = _stack_image(data.subset(chosen))
        for start in range(0, grid.size, 2**18):
            x = grid.points(start, start + 2**18)
            shown = image.shown(x)
            part = slice(start, start + len(x))
            count[part] += shown
            total[part][shown] += image(x[shown])[:, 0]
    if not bool(count.any()):
        raise InputError("it needs a stack of at least two slices")
    volume = (total / count.clamp(min=1)).clamp(min=0).reshape(grid.shape)
    return volume, SliceState(data.initial.double(), torch.ones(data.count), torch.ones(data.count))


def classical(data: SliceSet, grid: Grid, run: Run) -> tuple[Float[Tensor, "n0 n1 n2"], SliceState]:
    """Robust super-resolution with motion (see the module)."""
    here, poses = data.to(run.device), SlicePoses(data.initial).to(run.device)
    weight, good, scale = (
        torch.ones_like(here.pixels),
        here.pixels.new_ones(data.count),
        here.pixels.new_ones(data.count),
    )
    system = _System(here, grid, poses)
    thick = float(data.thickness_mm.max())
    for number, blur in enumerate((*BLURS, *[0.0] * ROUNDS)):
        if run.stop.is_set():
            break
        start = system.average(here.pixels, weight)
        volume = start if blur else system.solve(start, here.pixels, weight, scale)
        shown = smoothed(volume, grid, blur * thick)
        register_slices(shown, grid, data, run, poses=poses, steps=MOVES, name=f"slices, round {number}")
        seen = predicted_pixels(shown, grid, here, system.matrices()).to(here.pixels)
        scale = _scales(seen, here, weight)
        residual = here.pixels - scale[here.slice_index] * seen
        inlier = _pixel_weights(residual)
        good = _slice_weights(residual, inlier, here)
        weight = inlier * good[here.slice_index]
        system = _System(here, grid, poses)
    volume = system.solve(system.average(here.pixels, weight), here.pixels, weight, scale)
    volume = torch.where(system.covered, volume.clamp(min=0), 0.0)
    return volume.cpu(), SliceState(poses.matrices(), scale.cpu(), good.cpu())


def _stack_image(data: SliceSet) -> ImageField:
    """One stack as a function of position, by cubic splines; `shown` where its mask is."""
    number = data.number
    low, high = int(number.min()), int(number.max())
    n0, n1 = (int(n) for n in data.shape[0])
    planes, masks = torch.zeros(high - low + 1, n0, n1), torch.zeros(high - low + 1, n0, n1, dtype=torch.bool)
    for index, place in enumerate((number - low).tolist()):
        planes[place] = data.image(index, data.pixels)[..., 0]
        masks[place] = data.image(index, torch.ones_like(data.pixels))[..., 0] > 0
    for place in sorted(set(range(len(planes))) - set((number - low).tolist())):
        before = int(number[number - low < place].max()) - low
        after = int(number[number - low > place].min()) - low
        part = (place - before) / (after - before)
        planes[place] = torch.lerp(planes[before], planes[after], part)
        masks[place] = masks[before] & masks[after]
    first, last = int(number.argmin()), int(number.argmax())
    affine = data.grid(first).affine.copy()
    affine[:3, 2] = ((data.initial[last] - data.initial[first])[:3, 3] / (high - low)).cpu().numpy()
    grid = Grid((n0, n1, high - low + 1), affine)
    return ImageField(planes.movedim(0, 2), grid, order=3, mask=masks.movedim(0, 2))


class _System:
    """The equations of super-resolution at the slices' current poses."""

    def __init__(self, data: SliceSet, grid: Grid, poses: SlicePoses) -> None:
        self.data, self.grid, self.poses = data, grid, poses
        self.sigma = psf_sigma_mm(data.spacing_mm, data.thickness_mm)
        self.covered = coverage(data, self.matrices(), grid).to(data.pixels.device)
        self.density = len(data.pixels) / max(1, int(self.covered.sum()))

    def matrices(self) -> Float[Tensor, "n 3 4"]:
        """The current poses."""
        with torch.no_grad():
            return self.poses()

    def average(self, y: Float[Tensor, " m"], weight: Float[Tensor, " m"]) -> Float[Tensor, "n0 n1 n2"]:
        """(A^T W y) / (A^T W 1): every voxel the mean of the pixels that see it."""
        below = self.adjoint(weight)
        return self.adjoint(weight * y) / below.clamp(min=1e-3 * float(below.max()))

    def adjoint(self, y: Float[Tensor, " m"]) -> Float[Tensor, "n0 n1 n2"]:
        """A^T y."""
        zero = torch.zeros(self.grid.shape, device=y.device)
        return self._gradient(zero, lambda seen, index: (seen * y[index]).sum())

    def solve(
        self,
        volume: Float[Tensor, "n0 n1 n2"],
        y: Float[Tensor, " m"],
        weight: Float[Tensor, " m"],
        scale: Float[Tensor, " n"],
    ) -> Float[Tensor, "n0 n1 n2"]:
        """Conjugate gradients from `volume` on, with the edges that it has."""
        c = scale[self.data.slice_index]
        edges = [1 / (1 + volume.diff(dim=k).square() / EDGE**2).sqrt() for k in range(3)]

        def normal(v: Tensor) -> Tensor:
            """The left side: (A^T C W C A + a m D^T Q D) v."""
            data = self._gradient(v, lambda seen, index: ((c[index] * seen).square() * weight[index]).sum() / 2)
            return data + PRIOR * self.density * _smoothing(v, edges)

        v = volume
        residual = self.adjoint(weight * c * y) - normal(v)
        way, power = residual, residual.square().sum()
        for _ in range(CG_STEPS):
            ahead = normal(way)
            curvature = (way * ahead).sum()
            if float(power) == 0 or float(curvature) <= 0:
                break
            step = power / curvature
            v, residual = v + step * way, residual - step * ahead
            before, power = power, residual.square().sum()
            way = residual + power / before * way
        return v

    def _gradient(self, v: Tensor, energy: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """d energy(A v) / d v, pixel by pixel: with energy (A v) y it is A^T y."""
        image, total = ImageField(v, self.grid), torch.zeros_like(v)
        operator = SliceOperator(self.data.slice_index, self.data.local_mm, self.sigma, self.matrices, FINE_POINTS)
        for index in torch.arange(len(self.data.pixels), device=v.device).split(CHUNK // FINE_POINTS):
            x = operator.samples(index).x
            with torch.enable_grad():
                image.image = v.detach().requires_grad_()
                seen = image(x)[..., 0].mean(dim=1)
                total += torch.autograd.grad(energy(seen, index), image.image)[0]
        return total


def _smoothing(v: Float[Tensor, "n0 n1 n2"], edges: list[Tensor]) -> Float[Tensor, "n0 n1 n2"]:
    """D^T Q D v."""
    total = torch.zeros_like(v)
    for axis, q in enumerate(edges):
        flow = q * v.diff(dim=axis)
        n = v.shape[axis]
        total.narrow(axis, 0, n - 1).sub_(flow)
        total.narrow(axis, 1, n - 1).add_(flow)
    return total


def _scales(seen: Tensor, data: SliceSet, weight: Tensor) -> Float[Tensor, " n"]:
    """c_i by weighted least squares, between 1/2 and 2, with mean 1."""

    def sums(values: Tensor) -> Tensor:
        return seen.new_zeros(data.count).index_add(0, data.slice_index, values)

    below = sums(weight * seen.square())
    scale = torch.where(below > 0, sums(weight * seen * data.pixels) / below.clamp(min=1e-12), 1.0).clamp(0.5, 2.0)
    return scale / scale.mean()


def _pixel_weights(residual: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """P(normal | e): a normal distribution about zero against a uniform one over the residuals' range."""
    uniform = 1 / (residual.max() - residual.min()).clamp(min=1e-6)
    square, share = residual.square(), 0.9
    variance = square.median() / 0.455  # the median of chi^2 with one degree of freedom
    weight = torch.ones_like(residual)
    for _ in range(EM_STEPS):
        variance = variance.clamp(min=1e-10)
        normal = share * (-square / (2 * variance)).exp() / (2 * torch.pi * variance).sqrt()
        weight = normal / (normal + (1 - share) * uniform)
        variance, share = (weight * square).sum() / weight.sum().clamp(min=1e-6), min(0.999, float(weight.mean()))
    return weight


def _slice_weights(residual: Tensor, inlier: Tensor, data: SliceSet) -> Float[Tensor, " n"]:
    """P(slice is no outlier): two normal distributions of r_i, the root of the mean of (1 - w_j)^2 over a slice."""
    pixels = torch.bincount(data.slice_index, minlength=data.count).clamp(min=1)
    r = (residual.new_zeros(data.count).index_add(0, data.slice_index, (1 - inlier).square()) / pixels).sqrt()
    low, high, share = r.median(), r.max(), 0.9
    spread_low = spread_high = r.var().clamp(min=1e-6) if data.count > 1 else r.new_tensor(1e-6)
    good = torch.ones_like(r)
    for _ in range(EM_STEPS):
        a = share * (-(r - low).square() / (2 * spread_low)).exp() / spread_low.sqrt()
        b = (1 - share) * (-(r - high).square() / (2 * spread_high)).exp() / spread_high.sqrt()
        good = torch.where(r <= low, 1.0, torch.where(r >= high, 0.0, a / (a + b).clamp(min=1e-30)))
        bad = 1 - good
        if float(bad.sum()) < 1e-3 or float(good.sum()) < 1e-3:
            return torch.ones_like(r)
        low, high = (good * r).sum() / good.sum(), (bad * r).sum() / bad.sum()
        spread_low = ((good * (r - low).square()).sum() / good.sum()).clamp(min=1e-6)
        spread_high = ((bad * (r - high).square()).sum() / bad.sum()).clamp(min=1e-6)
        share = min(0.999, float(good.mean()))
    return good if bool(high - low > 2 * spread_low.sqrt()) else torch.ones_like(r)


BASELINES: dict[str, Baseline] = {
    "mean": Baseline(
        "mean of stacks",
        "Mean of all stacks, each interpolated by cubic splines where the scanner put it.",
        True,
        mean_of_stacks,
    ),
    "classical": Baseline(
        "classical",
        f"Slice-to-volume registration, expectation maximisation of outliers and super-resolution with an "
        f"edge-preserving prior, {len(BLURS) + ROUNDS} rounds.",
        False,
        classical,
    ),
}
