"""The classical rivals of a registration, on the same pair, the same masks and the same similarity.

    bspline             our cubic B-spline field under the loss below, by Adam on random points
    simpleitk-bspline   SimpleITK's B-spline transforms by L-BFGS-B, coarse to fine (where it is installed; volumes)

    loss = 1 - NCC(F(x), M(phi(x))) + BENDING mean |Hessian u|^2,      -MI in place of 1 - NCC for mutual information

Lattices of control points are halved from one level to the next; the coarse levels see smoothed images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scanfield.data.itk import LPS, itk_image, itk_mask, simpleitk
from scanfield.data.pair import Pair
from scanfield.errors import InputError
from scanfield.fields.bspline import bspline_field, refined
from scanfield.fields.calculus import hessian
from scanfield.fields.image import ImageField
from scanfield.fields.motion import Displacement, LatticeDisplacement, VectorHead
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.losses.deformation import bending
from scanfield.losses.image import mutual_information, ncc
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.lattice import MaskedVoxels

Similarity = Literal["ncc", "mi"]

SPACINGS_MM = (48.0, 24.0, 12.0)  # of the control points, level by level; a small image has closer ones
SMOOTHING_MM = (6.0, 3.0, 0.0)
LEAST_CELLS = 4  # of the first level, along the longest axis
POINTS, BENDING_POINTS = 8000, 2000  # a step; the first of them carry second derivatives
STEPS, RATE_MM, BENDING = 120, 0.5, 20.0
# Control points, shrink factor and smoothing (mm). At 12 mm SimpleITK takes minutes without being any better.
ITK_LEVELS = ((48.0, 4, 6.0), (24.0, 2, 3.0))
ITK_ITERATIONS, ITK_POINTS, ITK_BINS = 30, 20_000, 32


@dataclass(frozen=True)
class Baseline:
    """A rival: `register(pair, similarity, run)` gives phi, points of the fixed image -> the moving image (mm).

    Args:
        label: short name for tables.
        note: what it is, in one sentence.
        fast: seconds; the others take about a minute.
        register: the rival itself; raises `InputError` for a pair it cannot take.
    """

    label: str
    note: str
    fast: bool
    register: Callable[[Pair, Similarity, Run], nn.Module]


def bspline(pair: Pair, similarity: Similarity, run: Run) -> Displacement:
    """A multiresolution cubic B-spline field under the loss of this module (Rueckert et al. 1999)."""
    domain = Domain.of_grid(pair.fixed.grid)
    field = bspline_field(domain, _first_spacing(domain), domain.dims, VectorHead(domain)).to(run.device)
    voxels, draws = MaskedVoxels(pair.fixed.grid, pair.fixed.mask), run.generator("bspline points")
    for level, sigma in enumerate(SMOOTHING_MM):
        if level:
            field = refined(field).to(run.device)
        fixed, moving = (
            ImageField(smoothed(scan.values, scan.grid, sigma), scan.grid, mask=scan.mask).to(run.device)
            for scan in (pair.fixed, pair.moving)
        )
        ranges = {"range_p": _range(moving.image), "range_y": _range(fixed.image)} if similarity == "mi" else {}

        def loss(
            step: int, x: Tensor, field: nn.Module = field, images: Any = (fixed, moving), ranges: Any = ranges
        ) -> dict[str, Tensor]:
            near, _, second = hessian(field, x[:BENDING_POINTS])
            y = x + torch.cat([near, field(x[BENDING_POINTS:])])
            weight = images[1].shown(y).to(y.dtype)
            a, b = images[1](y)[:, 0], images[0](x)[:, 0]
            value = 1 - ncc(a, b, weight) if similarity == "ncc" else -mutual_information(a, b, weight, **ranges)
            return {similarity: value, "bending": bending(second)}

        group = ParameterGroup("spline", list(field.parameters()), RATE_MM, cosine(0.05))
        minimise(
            f"level {level}",
            [group],
            loss,
            lambda step: voxels.points(POINTS, draws).to(run.device),
            FitConfig(STEPS),
            run.again(quiet=True),
            weights={"bending": BENDING},
        )
    return Displacement(field)


def simpleitk_bspline(pair: Pair, similarity: Similarity, run: Run) -> LatticeDisplacement:
    """SimpleITK's B-spline registration: correlation or Mattes mutual information by L-BFGS-B, level by level.

    Every level begins with the moving image that the levels before have resampled; the transforms are composed.

    Raises:
        MissingExtra: SimpleITK is not installed.
        InputError: the pair are slices, or an image's axes are not at right angles.
    """
    sitk = simpleitk("the baseline of SimpleITK")
    if pair.dims != 3:
        raise InputError("it is run on volumes only")
    fixed, moving = (sitk.Cast(itk_image(scan), sitk.sitkFloat32) for scan in (pair.fixed, pair.moving))
    masks = [itk_mask(scan) for scan in (pair.fixed, pair.moving)]
    total = sitk.CompositeTransform(3)
    closer = _first_spacing(Domain.of_grid(pair.fixed.grid)) / SPACINGS_MM[0]  # in a small image
    for spacing, shrink, sigma in ITK_LEVELS:
        a = sitk.Shrink(sitk.SmoothingRecursiveGaussian(fixed, sigma), [min(shrink, n) for n in fixed.GetSize()])
        b = sitk.SmoothingRecursiveGaussian(moving, sigma)
        lowest = float(pair.moving.values.min())
        b = sitk.Resample(b, fixed, total, sitk.sitkLinear, lowest)  # what the levels before have found
        method = sitk.ImageRegistrationMethod()
        if similarity == "ncc":
            method.SetMetricAsCorrelation()
        else:
            method.SetMetricAsMattesMutualInformation(ITK_BINS)
        if masks[0] is not None:
            method.SetMetricFixedMask(masks[0])
        if masks[1] is not None:
            method.SetMetricMovingMask(sitk.Resample(masks[1], fixed, total, sitk.sitkNearestNeighbor, 0))
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(min(1.0, ITK_POINTS / a.GetNumberOfPixels()), seed=run.seed + 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsLBFGSB(
            gradientConvergenceTolerance=1e-7, numberOfIterations=ITK_ITERATIONS, costFunctionConvergenceFactor=1e5
        )
        sizes = zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)
        mesh = [max(1, round(n * s / (spacing * closer))) for n, s in sizes]
        transform = sitk.BSplineTransformInitializer(fixed, mesh, order=3)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(a, b)
        except RuntimeError as error:
            raise InputError(f"it failed: {' '.join(str(error).split())[-160:]}") from None
        total.AddTransform(transform)
    field = sitk.TransformToDisplacementField(
        total, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    )
    values = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) * LPS
    return LatticeDisplacement(torch.tensor(values, dtype=torch.float32), pair.fixed.grid).to(run.device)


BASELINES: dict[str, Baseline] = {
    "bspline": Baseline(
        "B-spline",
        f"Cubic B-spline field, control points down to {SPACINGS_MM[-1]:g} mm, with bending energy, by Adam.",
        True,
        bspline,
    ),
    "simpleitk-bspline": Baseline(
        "SimpleITK B-spline",
        f"SimpleITK's B-spline transforms, control points down to {ITK_LEVELS[-1][0]:g} mm, composed, by L-BFGS-B.",
        False,
        simpleitk_bspline,
    ),
}


def _first_spacing(domain: Domain) -> float:
    """Of the first level's control points: closer where an image is small."""
    return min(SPACINGS_MM[0], max(domain.extent) / LEAST_CELLS)


def _range(values: Tensor) -> tuple[float, float]:
    return float(values.min()), float(values.max())
