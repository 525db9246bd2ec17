"""NIR: medical image registration via neural fields (Sun et al., arXiv 2206.03111, 2022).

Notation: F fixed and M moving image; x a point of the fixed image; n a sine network on the (encoded) coordinates of the
fixed image's box; S from these coordinates back to mm; A an affine map that brings the images together beforehand. The
network is one of

    displacement    u(x) = S n(c(x)),                           phi(x) = A (x + u(x))
    velocity        v(x) = S n(c(x)),   dy/dt = v(y), y(0) = x, phi(x) = A y(1)

The second is a diffeomorphism, and its inverse is the flow of -v. Similarity is local, over windows, so that the points
of a step come as small lattices, not one by one: dense patches at full resolution and a strided lattice of the whole
image (the hybrid of the paper), whose intensities are read between the voxel centres too:

    theta* = argmin  - mean LNCC(F(x), M(phi(x)))  +  smoothness mean |grad n|^2  +  folding mean max(0, -det J)

with LNCC the squared correlation in a window around every lattice point, J = d(x + u) / d x, and both penalties
evaluated exactly, at a random part of the points. A flow does not fold: only its smoothness is penalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.data.pair import Pair
from scanfield.errors import InputError
from scanfield.fields.calculus import jacobian
from scanfield.fields.encodings.frequency import Frequency, Identity
from scanfield.fields.field import Field
from scanfield.fields.image import ImageField
from scanfield.fields.motion import Composition, ConstantOutside, Displacement, Flow, VectorHead
from scanfield.fields.networks.init import shrink_output
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.align import align, centred_pose
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.losses.deformation import diffusion, folding
from scanfield.losses.image import local_ncc, ncc, window_voxels
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.lattice import MaskedVoxels, lattice_samples, strided_lattice
from scanfield.space.pose import Pose, spatial_directions
from scanfield.space.samples import Samples
from scanfield.tasks.result import Reconstruction, Spec, show_field

NEAR_IDENTITY = 1e-4  # bound of the output weights
CHECK_POINTS = 20_000  # held-out voxels that judge a fit, at most


@dataclass(frozen=True)
class Config:
    """The setting of the paper as far as it is known: its numbers are not, and are ours."""

    mode: Literal["displacement", "velocity"] = "displacement"
    """what the network is: a displacement, or a stationary velocity whose flow has an inverse and does not fold"""
    similarity: Literal["local_ncc", "ncc"] = "local_ncc"
    """correlation in windows, which a bias field hardly changes, or over all points of a step"""
    sampling: Literal["hybrid", "patches", "lattice", "points"] = "hybrid"
    """where a step looks: dense patches and a strided lattice of the image, one of them, or isolated points"""
    patches: int = 4
    """number of dense patches per step"""
    patch_size: int = 32
    """voxels of a patch along every axis"""
    stride: int = 4
    """voxels from one point of the strided lattice to the next; its first point is random"""
    window_mm: float = 9.0
    """width of the window in patches"""
    lattice_window_mm: float = 20.0
    """width of the window in the strided lattice; at least three of its points"""
    pre_alignment: Literal["none", "rigid", "similarity", "affine"] = "none"
    """map fitted first, from where the centres of mass meet (published: the images are aligned beforehand)"""
    octaves: int = 0
    """frequencies pi 2^k of the coordinates that the network sees beside them; 0 for coordinates alone"""
    width: int = 256
    """width of the hidden layers"""
    hidden_layers: int = 3
    """number of sine layers"""
    omega: float = 30.0
    """frequency of the sine layers, in radians per half extent of the box"""
    integration_steps: int = 8
    """steps of the flow (velocity)"""
    integration: Literal["euler", "rk4"] = "euler"
    """its scheme: one or four evaluations of the network a step (velocity)"""
    smoothness: float = 0.1
    """weight of the mean squared gradient of the displacement or velocity"""
    folding: float = 10.0
    """weight of the mean negative part of the determinant (displacement)"""
    regulariser_share: float = 0.1
    """part of a step's points at which the penalties are evaluated"""
    steps: int = 1000
    """optimisation steps"""
    learning_rate: float = 1e-4
    """Adam's rate"""
    final_rate: float = 1.0
    """part of that rate which is left at the end, along half a cosine"""

    def __post_init__(self) -> None:
        if self.similarity == "local_ncc" and self.sampling == "points":
            raise InputError("isolated points have no windows", fix="use --similarity ncc, or sample lattices")
        if not 0 < self.regulariser_share <= 1:
            raise InputError(
                f"the regulariser's share of the points lies above 0 and up to 1, got {self.regulariser_share}"
            )
        if min(self.patches, self.patch_size, self.stride, self.integration_steps) < 1 or self.octaves < 0:
            raise InputError("patches, their size, the stride and the flow's steps are at least 1, octaves at least 0")
        if not (0 <= self.smoothness < math.inf and 0 <= self.folding < math.inf):
            raise InputError(f"weights are at least 0, got {self.smoothness} and {self.folding}")

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours)."""
        return Config(
            patches=2,
            patch_size=24,
            width=64,
            integration_steps=2,
            integration="rk4",
            smoothness=0.05,
            steps=400,
            learning_rate=1e-3,
            final_rate=0.05,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return replace(
            Config.fast(), patches=1, patch_size=12, width=32, hidden_layers=2, steps=60, learning_rate=3e-3, stride=2
        )


class Warp(nn.Module):
    """phi and what it is made of.

    Args:
        field: displacement or velocity.
        pose: A; None where images are taken as they lie.
    """

    def __init__(self, config: Config, field: Field, pose: Pose | None) -> None:
        super().__init__()
        self.field, self.pose = field, pose
        self._config = config

    def deformation(self) -> Displacement | Flow:
        """x + u(x), or the flow of v. Beyond the fixed image's box the network's value is that of its nearest point."""
        values = ConstantOutside(self.field, self.field.domain)
        if self._config.mode == "displacement":
            return Displacement(values)
        return Flow(values, steps=self._config.integration_steps, scheme=self._config.integration)

    def phi(self) -> nn.Module:
        """Points of the fixed image -> the moving image (mm)."""
        return self.deformation() if self.pose is None else Composition(self.deformation(), self.pose)


def build(config: Config, spec: Spec) -> Warp:
    """The network on the box of the fixed image, scaled to mm, near zero, and the affine map that follows it."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    dims = spec.domain.dims
    encoding = Frequency(dims, config.octaves) if config.octaves else Identity(dims)
    widths = [encoding.out_dims, *[config.width] * config.hidden_layers, dims]
    network = Siren(widths, omegas=[config.omega] * config.hidden_layers, generator=generator)
    shrink_output(network, NEAR_IDENTITY, generator)
    field = Field(spec.domain, encoding, network, VectorHead(spec.domain, spec.domain.half_scale().tolist()))
    return Warp(config, field, _pose(config, spec))


def fit(config: Config, data: Pair, run: Run, *, held_out: Pair | None = None, prior: None = None) -> Reconstruction:
    """Fits the map that aligns a pair.

    Args:
        data: lattices lie around voxels of the fixed image's mask, and only points of the masks count.
        held_out: the same pair with a mask of fixed voxels that the fit does not see.
    """
    spec = spec_of(data, run)
    warp = build(config, spec).to(run.device)
    logs = []
    if warp.pose is not None:
        centred_pose(warp.pose, data)
        logs += align(warp.pose, data, run)
        warp.pose.requires_grad_(False)
    images, draws = Images(data).to(run.device), run.generator("points")
    voxels = MaskedVoxels(data.fixed.grid, data.fixed.mask)
    phi = warp.phi()
    show_field(nn.Sequential(phi, images.moving), spec, run, unit=data.moving.unit)

    def batches(step: int) -> list[Look]:
        return [look.to(run.device) for look in looks(config, voxels, draws)]

    def loss(step: int, batch: list[Look]) -> dict[str, Tensor]:
        likeness = torch.stack([_alike(config, images, phi, look) for look in batch]).mean()
        return {config.similarity: 1 - likeness, **_penalties(config, warp, batch, draws)}

    groups = [ParameterGroup("field", list(warp.field.parameters()), config.learning_rate, cosine(config.final_rate))]
    weights = {"smoothness": config.smoothness}
    if config.mode == "displacement":
        weights["folding"] = config.folding
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10) if held_out else 0)
    check = None if held_out is None else _check(phi, held_out, run)
    logs.append(minimise("fit", groups, loss, batches, plan, run, weights=weights, held_out=check))
    return Reconstruction("nir", config, spec, warp, logs=logs)


def transform(result: Reconstruction) -> nn.Module:
    """phi, from points of the fixed image to their places in the moving image (mm)."""
    assert isinstance(result.field, Warp)
    return result.field.phi()


def inverse(result: Reconstruction) -> nn.Module | None:
    """Of a flow, the flow backwards after the inverse of A; a displacement is inverted point by point (None)."""
    phi = transform(result)
    return phi.inverse() if result.config.mode == "velocity" and isinstance(phi, Flow | Composition) else None


def spec_of(data: Pair, run: Run) -> Spec:
    """The fixed image's box and grid, displacements in mm, and the seed of the weights."""
    domain = Domain.of_grid(data.fixed.grid)
    facts = {"weights_seed": int(torch.randint(2**62, (), generator=run.generator("weights")))}
    return Spec(domain, data.fixed.grid, "mm", float(domain.half_scale().max()), facts)


def _pose(config: Config, spec: Spec) -> Pose | None:
    if config.pre_alignment == "none":
        return None
    directions = spatial_directions(spec.domain) if spec.domain.dims == 2 else None
    return Pose(config.pre_alignment, centre_mm=spec.grid.centre_mm, directions=directions)


# Where a step looks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Look:
    """Points of a step, and the window of the local correlation where they are lattices, in lattice points."""

    samples: Samples
    window: tuple[int, int, int] | None = None

    def to(self, device: torch.device) -> Look:
        return replace(self, samples=replace(self.samples, x=self.samples.x.to(device)))


def looks(config: Config, voxels: MaskedVoxels, draws: torch.Generator) -> list[Look]:
    """The points of a step: patches, a strided lattice, both, or isolated points as many as both have."""
    grid = voxels.grid
    if config.sampling == "points":
        lattice = math.prod(-(-n // config.stride) for n in grid.shape)
        patch = math.prod(min(config.patch_size, n) for n in grid.shape)
        return [Look(Samples(voxels.points(config.patches * patch + lattice, draws)))]
    parts = []
    if config.sampling in ("hybrid", "patches"):
        patches = voxels.patches(config.patches, config.patch_size, draws, jitter=True)
        parts.append(Look(lattice_samples(patches), window_voxels(config.window_mm, patches[0])))
    if config.sampling in ("hybrid", "lattice"):
        whole = strided_lattice(grid, config.stride, draws)
        parts.append(Look(lattice_samples([whole]), window_voxels(config.lattice_window_mm, whole)))
    return parts


# The loss -------------------------------------------------------------------------------------------------------------


def _alike(config: Config, images: Images, phi: nn.Module, look: Look) -> Float[Tensor, ""]:
    """How alike F(x) and M(phi(x)) are; 1 for images that agree."""
    shape = look.samples.x.shape[:-1]
    x = look.samples.x.reshape(-1, 3)
    y = phi(x)
    moving, fixed = images.moving(y)[:, 0], images.fixed(x)[:, 0]
    weight = (images.fixed.shown(x) & images.moving.shown(y)).to(x.dtype)
    if config.similarity == "ncc":
        return ncc(moving, fixed, weight)
    assert look.window is not None
    return local_ncc(moving.reshape(shape), fixed.reshape(shape), look.window, weight.reshape(shape))


def _penalties(config: Config, warp: Warp, batch: list[Look], draws: torch.Generator) -> dict[str, Tensor]:
    """Smoothness, and folding of a displacement, at a random part of the points."""
    x = torch.cat([look.samples.x.reshape(-1, 3) for look in batch])
    count = math.ceil(config.regulariser_share * len(x))
    some = x[torch.randint(len(x), (count,), generator=draws).to(x.device)]
    _, slope = jacobian(warp.field, some)
    terms = {"smoothness": diffusion(slope)}
    if config.mode == "displacement":
        terms["folding"] = folding(slope + torch.eye(3, device=slope.device))
    return terms


def _check(phi: nn.Module, unseen: Pair, run: Run) -> Callable[[], float]:
    """1 - NCC at voxels the fit does not see."""
    images = Images(unseen).to(run.device)
    voxels = MaskedVoxels(unseen.fixed.grid, unseen.fixed.mask)
    x = voxels.points(min(len(voxels), CHECK_POINTS), run.generator("held-out"), jitter=False).to(run.device)

    def check() -> float:
        with torch.no_grad():
            return 1 - float(ncc(images.moving(phi(x))[:, 0], images.fixed(x)[:, 0]))

    return check


class Images(nn.Module):
    """Both images as functions of position."""

    def __init__(self, data: Pair) -> None:
        super().__init__()
        self.fixed, self.moving = (ImageField(s.values, s.grid, mask=s.mask) for s in (data.fixed, data.moving))
