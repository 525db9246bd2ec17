"""NeSVoR: implicit neural representation for slice-to-volume reconstruction in MRI (Xu et al., IEEE TMI 42, 2023).

Notation: Y_ij intensity of pixel j of slice i (the 99th percentile of its stack is 1), x_k points of its point spread
in the world (`operators.slices`), h(x) grid features, e_i embedding of the slice.

    (v, z)(x) = density(h(x)),  V = softplus(v)                volume, and features for the variance
    sigma_i(x) = exp variance(e_i, z),  b_i(x) = exp bias(e_i, coarse h)
    c_i = n softmax(a)_i                                       scale of a slice; their mean is 1
    Y^_ij = c_i mean_k b_i(x_k) V(x_k)
    s_ij^2 = (c_i mean_k b_i(x_k) sigma_i(x_k))^2 + exp s_i    no gradient to c_i and b_i

All of it, with the poses that place x_k, is fitted to random pixels:

    mean (Y^ - Y)^2 / (2 s^2) + mean (log s^2) / 2  +  pose prior  +  image prior  +  bias and deformation priors

The image prior sees slopes g = |V(x_k) - V(x_l)| / |x_k - x_l| between points of one pixel's point spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scanfield.data.slices import SliceSet
from scanfield.errors import InputError
from scanfield.fields.calculus import jacobian
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.image import nearest
from scanfield.fields.slices import SliceModel, grid_by_cells
from scanfield.fitting.groups import ParameterGroup, adam, visited_adam
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import milestones
from scanfield.losses.deformation import near_isometry
from scanfield.losses.slices import misfit, motion, slope_cost, squared_slopes, typical_intensity, uncertainty
from scanfield.operators.slices import (
    FWHM_TO_SIGMA,
    Draws,
    SliceOperator,
    SlicePoses,
    SliceState,
    box_grid,
    coverage,
    coverage_grid,
    normal_lattice,
    psf_sigma_mm,
)
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.samples import random_index
from scanfield.tasks.result import Reconstruction, Spec, show_field

BETAS, EPSILON = (0.9, 0.99), 1e-15  # of Adam
JACOBIAN_POINTS = 4  # per pixel, at which the deformation is judged
CHECK_POINTS = 32  # of a pixel's point spread, where it is evaluated without gradient
CHUNK = 2**16  # field values held at a time


@dataclass(frozen=True)
class Config:
    """The published setting (version 0.6.0rc1 of the released program)."""

    coarsest_mm: float = 16.0
    """size of the cells of the coarsest grid level, along the longest side of the box"""
    finest_mm: float = 0.5
    """size of the cells of the finest level"""
    growth: float = 1.3819
    """ratio of the cells of neighbouring levels"""
    features: int = 2
    """features per grid vertex"""
    log2_table: int = 19
    """largest number of vertices stored per level, as a power of two; levels with fewer are stored as they are"""
    scaling: Literal["per-axis", "isotropic"] = "per-axis"
    """whether every axis of the box has the same number of cells (published), or cells are cubes (ours)"""
    width: int = 64
    """width of the networks' hidden layer"""
    z_features: int = 15
    """numbers that the density network hands to the variance network"""
    embedding: int = 16
    """numbers that stand for a slice in the networks of variance and bias"""
    optimise_poses: bool = True
    """fits a rigid motion to every slice"""
    slice_scale: bool = True
    """fits an intensity scale to every slice"""
    pixel_variance: bool = True
    """fits a variance that depends on place and slice"""
    slice_variance: bool = True
    """fits a variance to every slice, which takes weight from corrupted ones; off: one variance for all (ours;
    published: off means least squares, whose balance with the priors differs)"""
    first_deviation: float = 1.0
    """standard deviation that pixels and slices start with, in 99th percentiles"""
    bias_levels: int = 0
    """coarsest grid levels that a smooth bias field of every slice may depend on; 0: none. 1 or 2 where stacks are
    shaded and were not corrected; more is unstable"""
    psf: Literal["gaussian", "point"] = "gaussian"
    """a pixel is the mean over its point spread, or the value at its centre (to compare with)"""
    draws: Draws = "independent"
    """how points of the point spread are drawn: singly, or as a randomly shifted lattice; fewer are needed (ours)"""
    deformable: bool = False
    """lets every slice deform the body, near isometrically; for organs that are no rigid body. Published with
    --pose-weight 1 --image-weight 0.1 --log2-table 22 --pixels-per-step 8192"""
    deformation_mm: tuple[float, float] = (32.0, 8.0)
    """cells of the coarsest and the finest level of the deformation's grid"""
    image_prior: Literal["edge", "tv", "l2", "none"] = "edge"
    """what slopes of the volume cost: edges are kept (edge, tv), or everything is smoothed (l2)"""
    image_weight: float = 1.0
    """weight of the image prior"""
    edge_contrast: float = 0.2
    """slope, in mean intensities per mm, from which the edge prior grows linearly"""
    pose_weight: float = 0.1
    """weight of the squared motion away from the initial poses (rad^2 + 0.001 mm^2)"""
    bias_weight: float = 100.0
    """weight of the squared mean logarithm of the bias"""
    deformation_weight: float = 0.1
    """weight of what is not isometric in the deformation"""
    steps: int = 6000
    """optimisation steps"""
    pixels_per_step: int = 4096
    """pixels drawn per step"""
    points_per_pixel: int = 256
    """points of the point spread of each of them"""
    early_points: int | None = None
    """fewer of them in the first half of the steps (ours; published: the same)"""
    coarse_to_fine: float = 0.0
    """part of the steps in which the fine grid levels fade in one after the other, so that poses find large motion
    first (ours; published: 0)"""
    learning_rate: float = 5e-3
    """Adam's rate, of everything but the poses"""
    pose_learning_rate: float = 5e-3
    """of the poses, in radians and units of 30 mm (published: the same)"""
    weight_decay: float = 1e-2
    """of the networks' weights"""
    rate_fall: float = 0.33
    """factor of all rates at 50 %, 75 % and 90 % of the steps"""
    output_psf: float = 1.0
    """full width at half maximum, in voxels of the output, of the Gaussian a voxel is the mean over; 0: its centre"""
    output_points: int = 512
    """points of that Gaussian"""

    def __post_init__(self) -> None:
        if self.points_per_pixel < 2 or (self.early_points or 2) < 2 or self.pixels_per_step < 1:
            raise InputError("a step needs at least one pixel, and a pixel at least two points of its point spread")

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours)."""
        return Config(
            finest_mm=1.0,
            scaling="isotropic",
            first_deviation=0.1,
            draws="lattice",
            steps=2000,
            pixels_per_step=1024,
            points_per_pixel=16,
            early_points=8,
            learning_rate=1e-2,
            pose_learning_rate=1e-2,
            output_points=32,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return Config(
            finest_mm=4.0,
            scaling="isotropic",
            width=32,
            first_deviation=0.1,
            draws="lattice",
            steps=120,
            pixels_per_step=256,
            points_per_pixel=8,
            learning_rate=1e-2,
            output_points=8,
        )


def build(config: Config, spec: Spec) -> SliceModel:
    """The untrained model; its initial poses are put in by `fit`, or come with the weights."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])

    def grid(
        coarsest_mm: float, finest_mm: float, features: int, shape: Literal["linear", "smoothstep"]
    ) -> MultiresolutionGrid:
        return grid_by_cells(
            spec.domain,
            coarsest_mm=coarsest_mm,
            finest_mm=finest_mm,
            growth=config.growth,
            features=features,
            log2_table=config.log2_table,
            generator=generator,
            interpolation=shape,
        )

    return SliceModel(
        spec.domain,
        len(spec.facts["slices"]),
        grid(config.coarsest_mm, config.finest_mm, config.features, "linear"),
        scale=spec.scale,
        width=config.width,
        z_features=config.z_features,
        code=config.embedding,
        pixel_variance=config.pixel_variance,
        slice_variance=config.slice_variance,
        deviation=config.first_deviation,
        bias_levels=config.bias_levels,
        deformation=grid(*config.deformation_mm, 4, "smoothstep") if config.deformable else None,
        generator=generator,
    )


# The fit --------------------------------------------------------------------------------------------------------------


def fit(
    config: Config, data: SliceSet, run: Run, *, held_out: SliceSet | None = None, prior: None = None
) -> Reconstruction:
    """Fits the volume and everything about the slices.

    Args:
        held_out: other slices of the same stacks; they are watched at their initial poses.
    """
    spec = spec_of(config, data, run)
    model = build(config, spec)
    model.poses = SlicePoses(data.initial)
    model, here = model.to(run.device), data.to(run.device)
    show_field(model, spec, run)
    terms, pixels, points = fit_terms(config, model, here), run.generator("pixels"), run.generator("point spread")
    levels = len(model.encoding.levels.cells)

    def batches(step: int) -> Tensor:
        return random_index(len(data.pixels), config.pixels_per_step, pixels).to(run.device)

    def loss(step: int, index: Int[Tensor, " m"]) -> dict[str, Tensor]:
        if config.coarse_to_fine:
            model.encoding.show_levels(1 + (levels - 1) * min(1.0, step / (config.coarse_to_fine * config.steps)))
        early = config.early_points if 2 * step < config.steps else None
        return terms(index, early or config.points_per_pixel, points)

    check = None if held_out is None else _check(model, held_out.to(run.device))
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10) if held_out else 0)
    log = minimise("fit", groups(config, model), loss, batches, plan, run, weights=weights(config), held_out=check)
    model.encoding.show_levels(levels)
    variance = _pixels(model, here, torch.arange(data.count, device=run.device))[1].cpu()
    mean = torch.zeros(data.count).index_add_(0, data.slice_index.cpu(), variance) / data.slice_index.cpu().bincount()
    covered = coverage(data, model.poses.matrices()[:, :3].float(), coverage_grid(spec.grid))
    kept = {"noise": mean.sqrt(), "coverage": covered.to(torch.uint8)}
    return Reconstruction("nesvor", config, spec, model, tensors=kept, logs=[log])


def spec_of(config: Config, data: SliceSet, run: Run) -> Spec:
    """The box around all pixels with two of the coarsest pixels to spare, a grid of the finest pixels in it, and the
    slices by stack and place. A unit of the volume is the mean of the stacks'."""
    sizes = torch.cat([data.spacing_mm, data.thickness_mm[:, None]], dim=1)
    grid = box_grid(data.world(), float(data.spacing_mm.min()), margin_mm=2 * float(sizes.max()))
    slices = torch.stack([data.stack_index, data.number], dim=1).tolist()
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    facts = {"weights_seed": seed, "slices": slices}
    return Spec(Domain.of_grid(grid, scaling=config.scaling), grid, "arbitrary", float(data.scale.mean()), facts)


def groups(config: Config, model: SliceModel) -> list[ParameterGroup]:
    """Tables, networks, slices and poses, each with its optimiser. Rows of a table that a step does not visit rest."""
    falls = milestones((0.5, 0.75, 0.9), config.rate_fall)
    tables, networks, slices = [model.encoding.table], list(model.density.parameters()), [model.log_variance]
    for network in (model.variance, model.bias):
        networks += [] if network is None else list(network.parameters())
    if config.pixel_variance or config.bias_levels:
        slices.append(model.codes)
    if config.slice_scale:
        slices.append(model.log_scale)
    if model.deformation is not None:
        tables.append(model.deformation.encoding.table)
        networks += model.deformation.network.parameters()
        slices.append(model.deformation.codes)
    rate = config.learning_rate
    found = [
        ParameterGroup("tables", tables, rate, falls, visited_adam(betas=BETAS, epsilon=EPSILON)),
        ParameterGroup(
            "networks", networks, rate, falls, adam(betas=BETAS, epsilon=EPSILON, weight_decay=config.weight_decay)
        ),
        ParameterGroup("slices", slices, rate, falls, adam(betas=BETAS, epsilon=EPSILON)),
    ]
    if config.optimise_poses:
        poses = list(model.poses.parameters())
        found.append(
            ParameterGroup("poses", poses, config.pose_learning_rate, falls, adam(betas=BETAS, epsilon=EPSILON))
        )
    return found


def weights(config: Config) -> dict[str, float]:
    """The factors of the terms."""
    found = {}
    if config.optimise_poses:
        found["poses"] = config.pose_weight
    if config.image_prior != "none":
        found["image"] = config.image_weight
    if config.bias_levels:
        found["bias"] = config.bias_weight
    if config.deformable:
        found["deformation"] = config.deformation_weight
    return found


Terms = Callable[[Int[Tensor, " m"], int, torch.Generator], dict[str, Tensor]]


def fit_terms(config: Config, model: SliceModel, data: SliceSet) -> Terms:
    """The loss at some pixels, with a number of points each: named terms without weights (see the module)."""
    sigma = psf_sigma_mm(data.spacing_mm, data.thickness_mm)
    contrast = config.edge_contrast * typical_intensity(data.pixels)

    def terms(index: Int[Tensor, " m"], count: int, generator: torch.Generator) -> dict[str, Tensor]:
        of, y = data.slice_index[index], data.pixels[index]
        operator = SliceOperator(data.slice_index, data.local_mm, sigma, model.poses, count, config.draws)
        x, found = operator.samples(index, generator).x, {}
        if config.psf == "point":
            x = torch.cat([x, replace(operator, count=1).samples(index).x], dim=1)
        if model.deformation is not None:
            found["deformation"] = _not_isometric(model, x, of)
        seen = simulate(model, model.deformed(x, of), of, count if config.psf == "point" else 0)
        found |= {"data": misfit(seen.value, y, seen.variance), "variance": uncertainty(seen.variance)}
        if config.bias_levels:
            found["bias"] = seen.log_bias.mean().square()
        if config.optimise_poses:
            found["poses"] = motion(*model.poses.correction())
        if config.image_prior != "none":
            square = squared_slopes(seen.volume[:, :count], x[:, :count])
            found["image"] = slope_cost(config.image_prior, square, contrast)
        return found

    return terms


@dataclass(frozen=True, eq=False)
class Simulated:
    """What the model says about pixels: Y^, s^2, and V and log b at their points."""

    value: Float[Tensor, " m"]
    variance: Float[Tensor, " m"]
    volume: Float[Tensor, "m k"]
    log_bias: Float[Tensor, "m k"]


def simulate(model: SliceModel, x: Float[Tensor, "m k 3"], of: Int[Tensor, " m"], first: int = 0) -> Simulated:
    """Pixels of the slices `of` as means over their points from the `first` one on."""
    h = model.encoding(model.unit(x))
    volume, z = model.volume(h)
    log_bias, c = model.bias_of(h, of), model.scales()[of]
    b = log_bias.exp()
    value = c * (b * volume)[:, first:].mean(dim=1)
    noise = c.detach() * (b.detach() * model.sigma_of(z, of))[:, first:].mean(dim=1)
    return Simulated(value, noise.square() + model.variance_of(of), volume, log_bias)


def _not_isometric(model: SliceModel, x: Float[Tensor, "m k 3"], of: Int[Tensor, " m"]) -> Float[Tensor, ""]:
    """mean |J^T J - 1|^2 of the deformations, at some points of every pixel."""
    some = x[:, :JACOBIAN_POINTS].detach()
    return near_isometry(jacobian(lambda place: model.deformed(place, of), some)[1])


def _check(model: SliceModel, unseen: SliceSet) -> Callable[[], float]:
    """Root mean square error at slices the fit does not see, at their initial poses, in 99th percentiles."""
    nowhere = torch.full((unseen.count,), -1, device=unseen.pixels.device)
    return lambda: float((_pixels(model, unseen, nowhere)[0] - unseen.pixels).square().mean().sqrt())


# What comes out -------------------------------------------------------------------------------------------------------


def render(result: Reconstruction, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The volume, each voxel the mean over a Gaussian as wide as it; zero where there are no slices."""
    return _rendered(result, grid, lambda model, x: model(x)[..., 0])


def deviation(result: Reconstruction, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The standard deviation sigma(x) that the fit gives to the volume's pixels, for the mean slice; zero without a
    variance of pixels and where there are no slices."""

    def sigma(model: SliceModel, x: Float[Tensor, "m k 3"]) -> Float[Tensor, "m k"]:
        z = model.volume(model.encoding(model.unit(x)))[1]
        code = model.codes.mean(dim=0).expand(*z.shape[:2], -1)
        if model.variance is None:
            return torch.zeros_like(z[..., 0])
        return model.scale * model.variance(torch.cat([code, z], dim=-1))[..., 0].exp()

    return _rendered(result, grid, sigma)


def mask(result: Reconstruction, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """Where there are slices."""
    covered = result.tensors["coverage"]
    parts = [
        nearest(covered, coverage_grid(result.spec.grid), grid.points(k, k + CHUNK)) for k in range(0, grid.size, CHUNK)
    ]
    return torch.cat(parts).reshape(grid.shape) > 0


def slices(result: Reconstruction) -> SliceState:
    """Poses, scales and weights of the fitted slices, in the order of `spec.facts["slices"]`."""
    model = result.field
    assert isinstance(model, SliceModel)
    noise = result.tensors["noise"]
    weight = (noise.median() / noise).square().clamp(max=1)
    return SliceState(model.poses.matrices(), model.scales().detach().cpu(), weight)


def predict(result: Reconstruction, data: SliceSet) -> Float[Tensor, " m"]:
    """The pixels of slices, in 99th percentiles of their stacks: of fitted ones at their fitted poses and with all that
    was found out about them, of others the volume alone, at their initial poses."""
    model = result.field
    assert isinstance(model, SliceModel)
    device = model.world_to_unit.device
    here = data.to(device)
    fitted = {tuple(name): place for place, name in enumerate(result.spec.facts["slices"])}
    names = torch.stack([data.stack_index, data.number], dim=1).tolist()
    places = torch.tensor([fitted.get(tuple(name), -1) for name in names], device=device)
    return _pixels(model, here, places)[0].cpu()


def _pixels(model: SliceModel, data: SliceSet, places: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Y^ and s^2 of all pixels; `places` are the model's numbers of the slices, -1 for one that was not fitted."""
    values, variances = [], []
    sigma = psf_sigma_mm(data.spacing_mm, data.thickness_mm)
    with torch.no_grad():
        poses, known = data.initial[:, :3].float(), places >= 0
        poses = torch.where(known[:, None, None], model.poses()[places.clamp(min=0)], poses)
        operator = SliceOperator(data.slice_index, data.local_mm, sigma, lambda: poses, CHECK_POINTS)
        for index in torch.arange(len(data.pixels), device=poses.device).split(CHUNK // CHECK_POINTS):
            place, x = places[data.slice_index[index]], operator.samples(index).x
            of, own = place.clamp(min=0), place >= 0
            seen = simulate(model, torch.where(own[:, None, None], model.deformed(x, of), x), of)
            values.append(torch.where(own, seen.value, seen.volume.mean(dim=1)))
            variances.append(seen.variance)
    return torch.cat(values), torch.cat(variances)


def _rendered(result: Reconstruction, grid: Grid, at: Callable[[SliceModel, Tensor], Tensor]) -> Tensor:
    """Means of `at` over Gaussians as wide as voxels, where there are slices; zero elsewhere."""
    model, config = result.field, result.config
    assert isinstance(model, SliceModel)
    widths = torch.tensor(grid.directions * (config.output_psf * FWHM_TO_SIGMA * np.asarray(grid.spacing_mm)))
    spread = (normal_lattice(config.output_points if config.output_psf else 1).double() @ widths.T).float()
    inside = mask(result, grid).flatten().nonzero()[:, 0]
    out = torch.zeros(grid.size)
    with torch.no_grad():
        for some in inside.split(max(1, CHUNK // len(spread))):
            x = grid.to_world(grid.voxels(some).double()).float()
            x = (x[:, None] + spread).to(model.world_to_unit.device)
            out[some] = at(model, x).mean(dim=1).cpu()
    return out.reshape(grid.shape)
