"""SIREN: implicit neural representations with periodic activation functions (Sitzmann et al., NeurIPS 2020).

Notation: f(x) = half * n(u(x)) + middle with a sine network n, unit coordinates u and the image's intensity range
[middle - half, middle + half]; I image values, s half extent of the box in mm, M a shape's surface with outward normals
nu. All derivatives are with respect to world millimetres.

    values      theta* = argmin mean (n - (I - middle) / half)^2                                    eq. 3, fit
    gradient    theta* = argmin mean |grad f - g|^2 / mean |g|^2,        g Sobel gradient of I       eq. 4
    laplacian   theta* = argmin mean (lap f - l)^2 / mean l^2,           l differences of I          eq. 5
    surface     theta* = argmin 3000 mean_M |f| / s + 100 mean_M (1 - cos(grad f, nu))
                              + 100 mean exp(-100 |f| / s) + 50 mean | |grad f| - 1 |               eq. 6

One field per image or shape. A fit to derivatives leaves a constant open: the image's mean closes it afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.calculus import laplacian, value_and_gradient
from scanfield.fields.encodings.frequency import Frequency, Identity
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.init import spread_biases
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren
from scanfield.fields.shape import (
    at_nearest_voxel,
    crop_to_object,
    field_mesh,
    object_mask,
    oriented_points,
    signed_distance,
)
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.losses.data import l2
from scanfield.losses.shape import eikonal, normal_alignment, off_surface, on_surface, wrong_side
from scanfield.losses.values import value_loss
from scanfield.operators.differences import discrete_laplacian, sobel_gradient
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh
from scanfield.space.samples import random_index, random_points
from scanfield.tasks.result import Reconstruction, Spec, show_field

FULL_BATCH = 2**18  # voxels of the published 512 x 512 images, all of them in every step
SURFACE_BATCH = 4096
SURFACE_MARGIN = 0.1  # of the object's largest extent, on every side


@dataclass(frozen=True)
class Config:
    """The published setting (image, Poisson and shape experiments)."""

    supervision: Literal["values", "gradient", "laplacian", "surface"] = "values"
    """what of the image is fitted: its values, its gradient, its Laplacian, or (of a mask) its surface"""
    activation: Literal["sine", "relu", "relu-frequency"] = "sine"
    """sine, or the two networks it is compared with: ReLU on coordinates and ReLU on Fourier features"""
    width: int = 256
    """width of the hidden layers"""
    hidden_layers: int = 4
    """number of layers with an activation (released code: an input layer and three hidden ones)"""
    first_omega: float = 30.0
    """frequency of the first sine layer: the bandwidth, in radians per half extent of the box"""
    hidden_omega: float = 30.0
    """frequency of the other sine layers"""
    steps: int = 10_000
    """optimisation steps"""
    learning_rate: float = 1e-4
    """Adam's rate"""
    points_per_step: int | None = None
    """voxels (or surface points) drawn per step; unset: all voxels, at most 262144; 4096 surface points"""
    surface_points: int = 200_000
    """points drawn from the surface before the fit"""
    on_surface_weight: float = 3000.0
    """weight of the distance at surface points, in half extents of the box"""
    normal_weight: float = 100.0
    """weight of the angle to the surface's normals"""
    off_surface_weight: float = 100.0
    """weight that keeps the distance from vanishing away from the surface"""
    eikonal_weight: float = 50.0
    """weight of the gradient's length being one"""
    side_weight: float = 0.0
    """weight of being negative inside and positive outside the mask (ours; published: 0)"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores: a narrower network, fewer steps, a higher rate (ours)."""
        return Config(width=128, steps=1500, learning_rate=5e-4, points_per_step=8192, side_weight=3000.0)

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return Config(width=32, hidden_layers=2, steps=60, learning_rate=1e-3, points_per_step=512, surface_points=2000)


def build(config: Config, spec: Spec) -> Field:
    """A network on unit coordinates, scaled to the image's intensities or the shape's millimetres."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    dims, channels, hidden = spec.domain.dims, spec.facts["channels"], [config.width] * config.hidden_layers
    encoding: nn.Module
    network: nn.Module
    if config.activation == "sine":
        encoding = Identity(dims)
        omegas = [config.first_omega, *[config.hidden_omega] * (config.hidden_layers - 1)]
        network = Siren([dims, *hidden, channels], omegas=omegas, generator=generator)
    else:
        encoding = Identity(dims) if config.activation == "relu" else Frequency(dims, spec.facts["octaves"])
        network = MLP([encoding.out_dims, *hidden, channels], generator=generator)
        spread_biases(network, generator)
    return Field(spec.domain, encoding, network, LinearHead(spec.scale, spec.facts["offset"]))


def supervision(config: Config) -> str:
    """What of an image the fit sees: it decides what can be held out and who the rivals are."""
    return config.supervision


def fit(config: Config, data: Scan, run: Run, *, held_out: Scan | None = None, prior: None = None) -> Reconstruction:
    """Fits a field to an image, or a signed distance to the surface of a mask.

    Args:
        data: an image (2-D or 3-D); the voxels of its mask, where it has one, are fitted. With surface supervision, an
            image of two values whose larger one is the object.
        held_out: the same image with a mask of voxels the fit does not see (not for surfaces).

    Raises:
        InputError: what is to be fitted does not exist in this image: see the message.
    """
    if config.supervision == "surface":
        if held_out is not None:
            raise InputError("a surface has no voxels to hold out", where=data.source)
        return _fit_surface(config, data, run)
    return _fit_image(config, data, run, held_out)


# Images -------------------------------------------------------------------------------------------------------------


def _fit_image(config: Config, data: Scan, run: Run, held_out: Scan | None) -> Reconstruction:
    spec = _image_spec(data, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    x, target = _targets(config, data, run.device)
    power = spec.scale**2 if config.supervision == "values" else float(target.square().mean())
    if power == 0:
        raise InputError(f"the image is constant: its {config.supervision} carries no information", where=data.source)

    def loss(step: int, index: Int[Tensor, " m"] | slice) -> dict[str, Tensor]:
        if config.supervision == "values":
            return {"values": value_loss(field, x[index], target[index]) / power}
        return {config.supervision: l2(_observe(config, field, x[index]), target[index]) / power}

    size = config.points_per_step or FULL_BATCH
    draws = run.generator("voxels")

    def batches(step: int) -> Tensor | slice:
        return slice(None) if size >= len(x) else random_index(len(x), size, draws).to(run.device)

    check = None
    if held_out is not None:
        unseen = _targets(config, held_out, run.device)

        def check() -> float:
            chunks = zip(unseen[0].split(8192), unseen[1].split(8192), strict=True)
            squares = [(_observe(config, field, part) - truth).square().sum() for part, truth in chunks]
            return float((torch.stack(squares).sum() / unseen[1].numel()).sqrt())

    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    groups = [ParameterGroup("field", list(field.parameters()), config.learning_rate)]
    log = minimise("fit", groups, loss, batches, plan, run, held_out=check)
    if config.supervision != "values":
        _close_constant(field, data, spec)
    return Reconstruction("siren", config, spec, field, logs=[log])


def _image_spec(data: Scan, run: Run) -> Spec:
    """Intensities are scaled to [-1, 1] by the range of the fitted voxels, as published."""
    fitted = data.values.float() if data.mask is None else data.values[data.mask].float()
    low, high = float(fitted.min()), float(fitted.max())
    facts = {
        "weights_seed": int(torch.randint(2**62, (), generator=run.generator("weights"))),
        "channels": 1 if data.values.ndim == 3 else data.values.shape[3],
        "offset": (low + high) / 2,
        # Octaves up to the Nyquist rate of the lattice in 2-D, ten in 3-D: as in the paper's comparison.
        "octaves": 10 if data.grid.shape[2] > 1 else max(1, int(math.log2(max(data.grid.shape) / 4))),
    }
    return Spec(Domain.of_grid(data.grid), data.grid, data.unit, (high - low) / 2 or 1.0, facts)


def _targets(config: Config, data: Scan, device: torch.device) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n c"]]:
    """Where the field is asked, and what it (or its derivative) should be there, in the image's unit and mm."""
    grid, chosen = data.grid, torch.ones(data.grid.shape, dtype=torch.bool) if data.mask is None else data.mask.clone()
    if config.supervision == "values":
        target = data.values.reshape(grid.size, -1).float()
    elif data.values.ndim > 3:
        raise InputError("derivatives are fitted for images of one channel", where=data.source)
    elif config.supervision == "gradient":
        target = sobel_gradient(data.values, grid).reshape(grid.size, 3)
    else:
        if config.activation == "relu":
            raise InputError(
                "a ReLU network has no second derivative to fit", fix="use --activation sine or relu-frequency"
            )
        target = discrete_laplacian(data.values, grid).reshape(grid.size, 1)
        for axis, n in enumerate(grid.shape):  # second differences at the border are not known
            if n > 1:
                chosen.index_fill_(axis, torch.tensor([0, n - 1]), False)
    index = chosen.flatten().nonzero()[:, 0]
    if len(index) == 0:
        raise InputError(f"no voxel is left to fit the {config.supervision} to", where=data.source)
    return grid.points()[index].to(device), target[index].to(device)


def _observe(config: Config, field: nn.Module, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
    """The quantity that is fitted."""
    if config.supervision == "gradient":
        return value_and_gradient(field, x)[1]
    if config.supervision == "laplacian":
        return laplacian(field, x)[2]
    return field(x)


def _close_constant(field: Field, data: Scan, spec: Spec) -> None:
    """Gives the field the image's mean, which derivatives say nothing about."""
    mean = read_out(field, data.grid, device=field.world_to_unit.device).mean()
    spec.facts["offset"] += float(data.values.float().mean() - mean)
    field.head = LinearHead(spec.scale, spec.facts["offset"])


# Shapes -------------------------------------------------------------------------------------------------------------


def _fit_surface(config: Config, data: Scan, run: Run) -> Reconstruction:
    mask, grid = _object(data)
    spec = _surface_spec(grid, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    surface, normals = (
        t.to(run.device) for t in oriented_points(mask, grid, config.surface_points, run.generator("surface"))
    )
    distance = signed_distance(mask, grid)
    sign = torch.where(distance.abs() > max(grid.spacing_mm), distance.sign(), 0.0).to(run.device)
    draws, size, unit_mm = run.generator("points"), config.points_per_step or SURFACE_BATCH, spec.scale

    def batches(step: int) -> tuple[Tensor, Tensor, Tensor]:
        index = random_index(len(surface), size, draws).to(run.device)
        return surface[index], normals[index], random_points(spec.domain, size, draws).to(run.device)

    def loss(step: int, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        on, normal, off = batch
        value, gradient = value_and_gradient(field, torch.cat([on, off]))
        return {
            "on-surface": on_surface(value[: len(on)], unit_mm),
            "normal": normal_alignment(gradient[: len(on)], normal),
            "off-surface": off_surface(value[len(on) :], unit_mm),
            "eikonal": eikonal(gradient),
            "side": wrong_side(value[len(on) :, 0], at_nearest_voxel(sign, grid, off), unit_mm),
        }

    weights = {
        "on-surface": config.on_surface_weight,
        "normal": config.normal_weight,
        "off-surface": config.off_surface_weight,
        "eikonal": config.eikonal_weight,
        "side": config.side_weight,
    }
    groups = [ParameterGroup("field", list(field.parameters()), config.learning_rate)]
    log: FitLog = minimise("fit", groups, loss, batches, FitConfig(config.steps, clip_norm=1.0), run, weights=weights)
    return Reconstruction("siren", config, spec, field, logs=[log])


def _object(data: Scan) -> tuple[Tensor, Grid]:
    """The mask around its object; the published box fits the object closely."""
    mask = object_mask(data)
    extent = [int(mask.any(dim=tuple({0, 1, 2} - {axis})).sum()) * data.grid.spacing_mm[axis] for axis in range(3)]
    return crop_to_object(mask, data.grid, margin_mm=SURFACE_MARGIN * max(extent))


def _surface_spec(grid: Grid, run: Run) -> Spec:
    domain = Domain.of_grid(grid)
    facts = {
        "weights_seed": int(torch.randint(2**62, (), generator=run.generator("weights"))),
        "channels": 1,
        "offset": 0.0,
        "octaves": 10,
    }
    return Spec(domain, grid, "mm", float(domain.half_scale()[0]), facts)


def surface_mesh(result: Reconstruction, spacing_mm: float | None = None) -> Mesh:
    """The zero level of a fitted signed distance, on a lattice of `spacing_mm` (default: the mask's finest spacing).

    Raises:
        ScanfieldError: the field has no zero level.
    """
    grid = result.spec.grid.resampled(spacing_mm or min(result.spec.grid.spacing_mm))
    return field_mesh(result.field, grid, device=_device(result))


# What every method offers -----------------------------------------------------------------------------------------


def render(result: Reconstruction, grid: Grid) -> Tensor:
    """The field on any grid: intensities, zero outside the image's box; or signed distances (mm, negative inside),
    continued outside the shape's box by the distance to the box."""
    if result.config.supervision != "surface":
        return read_out(result.field, grid, domain=result.spec.domain, device=_device(result))
    return read_out(_Continued(result.field, result.spec.domain), grid, device=_device(result))


def predict(result: Reconstruction, data: Scan) -> Tensor:
    """The field at the voxels of `data`."""
    return render(result, data.grid)


class _Continued(nn.Module):
    """f(p) + |x - p| with p the point of the box nearest to x: a network says nothing outside its box."""

    def __init__(self, field: nn.Module, domain: Domain) -> None:
        super().__init__()
        self.field, self.domain = field, domain

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
        nearest = self.domain.clamp(x)
        out: Tensor = self.field(nearest) + (x - nearest).norm(dim=-1, keepdim=True)
        return out


def _device(result: Reconstruction) -> torch.device:
    return next(result.field.parameters()).device
