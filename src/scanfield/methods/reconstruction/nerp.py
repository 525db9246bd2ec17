"""NeRP: an earlier image of the patient as the start of a field (Shen, Pauly, Xing, IEEE TNNLS 35:770-782, 2024).

Notation: f(x) = scale * n(gamma(u(x))) attenuation field (1/mm) with a sine network n on Gaussian Fourier features
gamma(u) = [sin(pi B u), cos(pi B u)] of coordinates u in [-1, 1]^d, rows of B ~ N(0, sigma^2); A line integrals through
the field's image, y those measured, p the prior image.

    1. embed     theta_p = argmin mean_i (f_theta(x_i) - p_i)^2                 all voxels; skipped without a prior
    2. fit       theta*  = argmin mean (A f_theta - y)^2                        from theta_p, same B, a small rate
    3. read out  x_i     = f_theta*(x_i)

There is no regulariser: the prior is the start, and the small rate and few steps are what keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup, adam
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.scan import MeasurementBatch, held_out_residual, random_views_and_bins
from scanfield.fitting.regimes.staged import embed_image
from scanfield.fitting.schedules import cosine
from scanfield.losses.data import l2
from scanfield.operators.base import predict as predict_rays
from scanfield.operators.base import predict_all
from scanfield.operators.rays import LineIntegral
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.projection import ProjectionGeometry
from scanfield.space.rays import clip
from scanfield.tasks.result import Reconstruction, Spec, render_field, show_field

render = render_field  # the method's image is the field itself


@dataclass(frozen=True)
class Config:
    """The published setting (released configuration for two-dimensional CT; in three dimensions twice the steps)."""

    frequencies: int = 256
    """rows of B: Fourier features come in pairs of sine and cosine"""
    sigma: float = 4.0
    """standard deviation of the frequencies, in cycles per longest side of the box"""
    width: int = 256
    """width of the hidden layers"""
    hidden_layers: int = 7
    """number of sine layers; a linear one follows"""
    omega: float = 30.0
    """frequency of every sine layer"""
    prior_steps: int = 1000
    """steps that embed the prior"""
    prior_learning_rate: float = 1e-4
    """Adam's rate while the prior is embedded"""
    prior_weight_decay: float = 1e-4
    """weight decay while the prior is embedded (decoupled; published: added to the gradient)"""
    points_per_step: int | None = None
    """voxels of the prior drawn per step; unset: all of them, as published"""
    steps: int = 1000
    """steps on the measurement"""
    learning_rate: float = 1e-5
    """Adam's rate on the measurement, from a prior"""
    scratch_learning_rate: float = 1e-4
    """Adam's rate on the measurement, without a prior"""
    final_rate: float = 1.0
    """the rate on the measurement falls along half a cosine to this part of itself (published: 1, constant)"""
    rays_per_step: int | None = None
    """rays drawn per step; unset: the whole image is rendered and projected in every step, as published"""
    samples_per_ray: int | None = None
    """points per ray where rays are drawn (unset: one per detector bin)"""
    keep_best: bool = False
    """return the weights of the best check on held-out views, where there are any, instead of the last (published)"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours): a smaller network, lower frequencies, fewer steps, best held-out check."""
        return Config(
            frequencies=128, sigma=3.0, width=128, hidden_layers=6, prior_steps=300, steps=600, keep_best=True
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            frequencies=16,
            sigma=1.0,
            width=32,
            hidden_layers=2,
            omega=10.0,
            prior_steps=100,
            prior_learning_rate=1e-3,
            steps=150,
            learning_rate=3e-4,
            scratch_learning_rate=2e-3,
        )


def build(config: Config, spec: Spec) -> Field:
    """Gaussian Fourier features, a sine network, and its unit: the largest attenuation expected."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    encoding = GaussianFourier(spec.domain.dims, config.frequencies, config.sigma, generator=generator, factor="pi")
    widths = [encoding.out_dims, *[config.width] * config.hidden_layers, 1]
    network = Siren(widths, omegas=[config.omega] * config.hidden_layers, generator=generator)
    return Field(spec.domain, encoding, network, LinearHead(spec.scale))


def fit(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    *,
    held_out: Measurement[ProjectionGeometry] | None = None,
    prior: Scan | None = None,
) -> Reconstruction:
    """Embeds the prior where there is one, then fits the measurement.

    Args:
        prior: attenuation in 1/mm on the grid of `data` (see `tasks.priors`); without one the fit starts from random
            weights, the comparison the paper makes.
    """
    spec = _spec(data, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    check = None
    if held_out is not None:
        rays = LineIntegral(held_out.acquisition, spec.domain, held_out.acquisition.shape[2])
        check = held_out_residual(field, rays, held_out.values, run)
    parameters = list(field.network.parameters())
    logs = []
    if prior is not None:
        decay = adam(weight_decay=config.prior_weight_decay)
        groups = [ParameterGroup("network", parameters, config.prior_learning_rate, optimiser=decay)]
        plan = _plan(config.prior_steps)
        logs.append(
            embed_image(field, prior, groups, plan, run, points_per_step=config.points_per_step, held_out=check)
        )
    rate = config.scratch_learning_rate if prior is None else config.learning_rate
    logs.append(_fit_measurement(config, field, data, rate, check, run))
    return Reconstruction("nerp", config, spec, field, logs=logs)


def _fit_measurement(
    config: Config,
    field: Field,
    data: Measurement[ProjectionGeometry],
    rate: float,
    check: Callable[[], float] | None,
    run: Run,
) -> FitLog:
    power = float(data.values.square().mean()) or 1.0
    groups = [ParameterGroup("network", list(field.network.parameters()), rate, cosine(config.final_rate))]
    plan = _plan(config.steps, keep_best=config.keep_best and check is not None)
    batches: Callable[[int], Any]
    if config.rays_per_step is None:
        grid = data.acquisition.volume
        projector, x = VoxelProjector(data.acquisition, grid, device=run.device), grid.points(device=run.device)
        measured = data.values.to(run.device)

        def loss(step: int, batch: Any) -> dict[str, Tensor]:
            return {"projection": l2(projector.apply(field(x).reshape(grid.shape)), measured) / power}

        return minimise("fit", groups, loss, lambda step: None, plan, run, held_out=check)
    rays = LineIntegral(data.acquisition, field.domain, config.samples_per_ray or data.acquisition.shape[2])

    def loss_of_rays(step: int, batch: MeasurementBatch) -> dict[str, Tensor]:
        return {"projection": l2(predict_rays(field, rays, batch.index), batch.value) / power}

    batches = random_views_and_bins(data, config.rays_per_step, 1, run)
    return minimise("fit", groups, loss_of_rays, batches, plan, run, held_out=check)


def predict(result: Reconstruction, data: Measurement[ProjectionGeometry]) -> Tensor:
    """Line integrals of the field along the rays of `data`."""
    device = next(result.field.parameters()).device
    rays = LineIntegral(data.acquisition, result.spec.domain, data.acquisition.shape[2])
    return predict_all(result.field, rays, device=device)


def _plan(steps: int, *, keep_best: bool = False) -> FitConfig:
    return FitConfig(steps, check_every=max(1, steps // 10), keep_best=keep_best)


def _spec(data: Measurement[ProjectionGeometry], run: Run) -> Spec:
    """The unit of the network's output is twice the largest mean attenuation along a ray: of the order of an image's
    maximum, as published, and the same with a prior and without."""
    grid = data.acquisition.volume
    domain = Domain.of_grid(grid)
    near, far = clip(data.acquisition.rays(torch.arange(data.acquisition.count)), domain)
    long = far - near > 0.25 * max(domain.spatial_extent_mm)
    mean = data.values.reshape(-1)[long] / (far - near)[long]
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    return Spec(domain, grid, "1/mm", 2 * float(mean.max()), {"weights_seed": seed})
