"""IDIR: implicit neural representations for deformable image registration (Wolterink et al., MIDL 2022).

Notation: F fixed and M moving image; x a point of the fixed image, u(x) its displacement in mm,

    phi(x) = x + u(x),    u = S n(c(x))

with c the coordinates of the image's box in [-1, 1]^d, n a sine network and S from these coordinates back to mm. One
network per pair, fitted to random points x of the fixed mask:

    theta* = argmin  1 - NCC(F(x), M(phi(x)))  +  weight * mean R(x)

NCC is global, over all points of a step, and M is interpolated linearly, so that the gradient reaches u through the
weights of the interpolation. R is one of (J = d phi / d x and second derivatives in the coordinates c, exactly)

    jacobian       |det J - 1|
    hyperelastic   |grad u|^2 / 2 + phi_c(cof J) + phi_v(det J)                 (Burger, Modersitzki & Ruthotto 2013)
    bending        sum of squared second derivatives                                         (Rueckert et al. 1999)

Ours: beside R, max(0, 0.2 - det J), which costs nothing until a place is nearly folded (`fold_strength`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.data.pair import Pair
from scanfield.errors import InputError
from scanfield.fields.calculus import hessian, jacobian
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.image import ImageField
from scanfield.fields.motion import ConstantOutside, Displacement, VectorHead
from scanfield.fields.networks.init import shrink_output, spread_biases
from scanfield.fields.networks.layers import FullyConnected
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.losses.deformation import bending, folding, hyperelastic, volume_change
from scanfield.losses.image import edge_parameter, mutual_information, ncc, ngf_distance
from scanfield.operators.differences import sobel_gradient
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.lattice import MaskedVoxels
from scanfield.tasks.result import Reconstruction, Spec, show_field

WEIGHTS = {"jacobian": 0.05, "hyperelastic": 0.25, "bending": 1e-3}  # published, per mean over points
NEAR_IDENTITY = 1e-4  # bound of the output weights: the first displacements are some hundredths of a millimetre
LEAST_VOLUME = 0.2  # what is squeezed further counts as nearly folded
CHECK_POINTS = 20_000  # held-out voxels that judge a fit, at most


@dataclass(frozen=True)
class Config:
    """The published setting."""

    similarity: Literal["ncc", "mi", "ngf"] = "ncc"
    """what aligned images have in common: intensities up to an affine change (normalised cross-correlation), any
    dependence of intensities (mutual information), or the directions of edges (normalised gradient fields)"""
    edge_noise: float = 0.3
    """gradient below which an edge counts as noise, in mean gradients of the image (with ngf; ours)"""
    regulariser: Literal["jacobian", "hyperelastic", "bending", "none"] = "jacobian"
    """what a deformation costs: change of volume, hyperelastic energy, or curvature"""
    regulariser_strength: float = 1.0
    """weight of that, in published weights: 0.05 for jacobian, 0.25 for hyperelastic, 0.001 for bending"""
    regulariser_share: float = 1.0
    """part of a step's points at which it is evaluated (ours; published: 1)"""
    fold_strength: float = 0.0
    """weight of the mean of max(0, 0.2 - det J) at the regulariser's points: of what is nearly folded, or is (ours;
    published: 0)"""
    activation: Literal["sine", "relu"] = "sine"
    """sine, or the rectifier network it is compared with"""
    width: int = 256
    """width of the hidden layers"""
    hidden_layers: int = 3
    """number of layers with an activation"""
    omega: float = 32.0
    """frequency of the sine layers: the bandwidth of the motion, in radians per half extent of the box"""
    start: Literal["random", "identity"] = "random"
    """first displacement: what the network's own initialisation gives (several voxels), or nearly none (ours)"""
    scaling: Literal["per-axis", "isotropic"] = "per-axis"
    """whether every axis of the box fills [-1, 1] (published), or millimetres count the same along all of them"""
    steps: int = 2500
    """optimisation steps"""
    learning_rate: float = 1e-4
    """Adam's rate"""
    final_rate: float = 1.0
    """part of that rate which is left at the end, along half a cosine (ours; published: 1, a constant rate)"""
    points_per_step: int = 10_000
    """points drawn from the fixed mask per step"""
    jitter: bool = False
    """draws points anywhere in the voxels instead of at their centres (ours)"""
    smoothing_mm: tuple[float, ...] = (0.0,)
    """standard deviations of the Gaussians that smooth both images, one for each of as many equal stages (ours)"""
    overlap_only: bool = False
    """leaves out points that are mapped out of the moving image or its mask (ours; published: the image's border
    continues)"""

    def __post_init__(self) -> None:
        if not 0 < self.regulariser_share <= 1:
            raise InputError(
                f"the regulariser's share of the points lies above 0 and up to 1, got {self.regulariser_share}"
            )
        if not 0 <= self.fold_strength < math.inf:
            raise InputError(f"the weight of folds is a number from 0, got {self.fold_strength}")
        if not 0 < self.edge_noise < math.inf:
            raise InputError(f"the edges' noise is a positive number of mean gradients, got {self.edge_noise}")
        if not self.smoothing_mm or not all(0 <= s < math.inf for s in self.smoothing_mm):
            raise InputError(f"smoothing takes one or more lengths in mm from 0, got {self.smoothing_mm}")
        if self.activation == "relu" and self.regulariser == "bending":
            raise InputError("a ReLU network has no second derivative to regularise", fix="use another --regulariser")

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours)."""
        return Config(
            regulariser_strength=0.5,
            regulariser_share=0.25,
            fold_strength=2.0,
            omega=16.0,
            start="identity",
            scaling="isotropic",
            steps=1000,
            final_rate=0.05,
            jitter=True,
            smoothing_mm=(4.0, 2.0, 0.0),
            overlap_only=True,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return Config(width=32, hidden_layers=2, steps=60, learning_rate=1e-3, points_per_step=500)


def build(config: Config, spec: Spec) -> Field:
    """The displacement u: a network on the coordinates of the fixed image's box, scaled to mm."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    dims, hidden = spec.domain.dims, [config.width] * config.hidden_layers
    network: FullyConnected
    if config.activation == "sine":
        omegas = [config.omega] * config.hidden_layers
        network = Siren([dims, *hidden, dims], omegas=omegas, generator=generator)
    else:
        network = MLP([dims, *hidden, dims], generator=generator)
        spread_biases(network, generator)
    if config.start == "identity":
        shrink_output(network, NEAR_IDENTITY, generator)
    head = VectorHead(spec.domain, spec.domain.half_scale().tolist())
    return Field(spec.domain, Identity(dims), network, head)


def fit(config: Config, data: Pair, run: Run, *, held_out: Pair | None = None, prior: None = None) -> Reconstruction:
    """Fits the displacement that aligns a pair.

    Args:
        data: points are drawn from the fixed image's mask, from everywhere without one.
        held_out: the same pair with a mask of fixed voxels that the fit does not see.
    """
    spec = spec_of(config, data, run)
    field = build(config, spec).to(run.device)
    levels = [Images(config, data, sigma).to(run.device) for sigma in config.smoothing_mm]
    show_field(nn.Sequential(Displacement(field), levels[-1].moving), spec, run, unit=data.moving.unit)
    voxels, draws = MaskedVoxels(data.fixed.grid, data.fixed.mask), run.generator("points")

    def batches(step: int) -> Tensor:
        return voxels.points(config.points_per_step, draws, jitter=config.jitter).to(run.device)

    def loss(step: int, x: Float[Tensor, "n 3"]) -> dict[str, Tensor]:
        images = levels[step * len(levels) // max(1, config.steps)]
        return terms(config, field, images, x)

    groups = [ParameterGroup("field", list(field.parameters()), config.learning_rate, cosine(config.final_rate))]
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10) if held_out else 0)
    check = None if held_out is None else _check(config, field, held_out, run)
    log = minimise("fit", groups, loss, batches, plan, run, weights=weights(config), held_out=check)
    return Reconstruction("idir", config, spec, field, logs=[log])


def transform(result: Reconstruction) -> Displacement:
    """phi, from points of the fixed image to their places in the moving image (mm). Beyond the fixed image's box the
    displacement is that of the nearest point of the box."""
    return Displacement(ConstantOutside(result.field, result.spec.domain))


def similarity(config: Config) -> str:
    """What the rivals in the table maximise: correlation, or mutual information where images of two kinds are meant."""
    return "ncc" if config.similarity == "ncc" else "mi"


def spec_of(config: Config, data: Pair, run: Run) -> Spec:
    """The fixed image's box and grid, displacements in mm, and the seed of the weights."""
    domain = Domain.of_grid(data.fixed.grid, scaling=config.scaling)
    facts = {"weights_seed": int(torch.randint(2**62, (), generator=run.generator("weights")))}
    return Spec(domain, data.fixed.grid, "mm", float(domain.half_scale().max()), facts)


# The loss -------------------------------------------------------------------------------------------------------------


def terms(config: Config, field: Field, images: Images, x: Float[Tensor, "n 3"]) -> dict[str, Float[Tensor, ""]]:
    """The loss at points x of the fixed image: dissimilarity and regulariser, by name and without weights."""
    phi, cost = _mapped(config, field, x)
    return {config.similarity: _unlike(config, field, images, x, phi), **cost}


def weights(config: Config) -> dict[str, float]:
    """The factors of the terms."""
    factors = {"folding": config.fold_strength} if config.fold_strength else {}
    if config.regulariser != "none":
        factors[config.regulariser] = config.regulariser_strength * WEIGHTS[config.regulariser]
    return factors


def _mapped(config: Config, field: Field, x: Float[Tensor, "n 3"]) -> tuple[Tensor, dict[str, Tensor]]:
    """phi(x) (n, 3) and the regulariser, by name.

    The points are independent of each other: the mean over the first part of them has the same expectation as the mean
    over all. Only these points carry derivatives.
    """
    c, network = field.features(x), field.network
    axes = range(c.shape[-1])
    first = math.ceil(config.regulariser_share * len(x)) if weights(config) else 0
    parts: list[Tensor] = []
    cost: dict[str, Tensor] = {}
    if config.regulariser == "bending":
        value, slope, second = hessian(network, c[:first], axes=axes)
        parts, cost = [value], {"bending": bending(second)}
    elif first:
        value, slope = jacobian(network, c[:first], axes=axes)
        parts = [value]
    if first:
        matrix = slope + torch.eye(len(axes), device=c.device)
        if config.regulariser in ("jacobian", "hyperelastic"):
            measure = volume_change if config.regulariser == "jacobian" else hyperelastic
            cost[config.regulariser] = measure(matrix)
        if config.fold_strength:
            cost["folding"] = folding(matrix, LEAST_VOLUME)
    if first < len(x):
        parts.append(network(c[first:]))
    return x + field.head(torch.cat(parts)), cost


def _unlike(config: Config, field: nn.Module, images: Images, x: Tensor, phi: Tensor) -> Tensor:
    """How much F(x) and M(phi(x)) differ, by the chosen similarity; smaller is better."""
    fixed, moving = images.fixed(x)[:, 0], images.moving(phi)[:, 0]
    weight = images.moving.shown(phi).to(x.dtype) if config.overlap_only else None
    if config.similarity == "ncc":
        return 1 - ncc(moving, fixed, weight)
    if config.similarity == "mi":
        return -mutual_information(moving, fixed, weight, range_p=images.moving_range, range_y=images.fixed_range)
    _, matrix = jacobian(Displacement(field), x)
    there = torch.cat([slope(phi) for slope in images.moving_slopes], dim=-1)
    slope = (matrix.mT @ there[..., None])[..., 0]  # of M(phi(x)) in x
    here = torch.cat([slope(x) for slope in images.fixed_slopes], dim=-1)
    return ngf_distance(here, slope, images.fixed_edge, images.moving_edge, weight)


def _check(config: Config, field: nn.Module, unseen: Pair, run: Run) -> Callable[[], float]:
    """The similarity at voxels the fit does not see, in the images as they are."""
    images = Images(config, unseen, 0.0).to(run.device)
    voxels = MaskedVoxels(unseen.fixed.grid, unseen.fixed.mask)
    count = min(len(voxels), CHECK_POINTS)
    x = voxels.points(count, run.generator("held-out"), jitter=False).to(run.device)

    def check() -> float:
        return float(_unlike(config, field, images, x, Displacement(field)(x)))

    return check


class Images(nn.Module):
    """Both images as functions of position, smoothed by a Gaussian.

    Args:
        sigma_mm: its standard deviation.
    """

    def __init__(self, config: Config, data: Pair, sigma_mm: float) -> None:
        super().__init__()
        fixed, moving = (smoothed(scan.values, scan.grid, sigma_mm) for scan in (data.fixed, data.moving))
        self.fixed = ImageField(fixed, data.fixed.grid)
        self.moving = ImageField(moving, data.moving.grid, mask=data.moving.mask)
        self.fixed_range, self.moving_range = ((float(image.min()), float(image.max())) for image in (fixed, moving))
        if config.similarity == "ngf":
            slopes = [sobel_gradient(fixed, data.fixed.grid), sobel_gradient(moving, data.moving.grid)]
            self.fixed_edge, self.moving_edge = (edge_parameter(slope, config.edge_noise) for slope in slopes)
            self.fixed_slopes, self.moving_slopes = (
                nn.ModuleList(ImageField(part, scan.grid) for part in slope.unbind(-1))
                for slope, scan in zip(slopes, (data.fixed, data.moving), strict=True)
            )
