"""A Fourier-feature network fitted to the rays of a CT scan (Tancik et al., NeurIPS 2020, section 6).

Notation: mu(x) attenuation field (1/mm), y measured line integrals, B fixed Gaussian frequencies.

    theta* = argmin mean ( sum_j w_j mu_theta(x_j) - y )^2        x_j on a random ray, w_j in mm
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.fields.field import Field
from scanfield.fields.heads import SoftplusHead
from scanfield.fields.networks.mlp import MLP
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.scan import MeasurementBatch, held_out_residual, random_views_and_bins
from scanfield.losses.data import l2
from scanfield.operators.base import predict as predict_rays
from scanfield.operators.base import predict_all
from scanfield.operators.rays import LineIntegral
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction, Spec, render_field

Scan = Measurement[ProjectionGeometry]
WATER_PER_MM = 0.02

render = render_field  # the image is the field itself


@dataclass(frozen=True)
class Config:
    """Our settings; the text below a field is its help on the command line."""

    features: int = 128
    """number of random frequencies"""
    sigma: float = 4.0
    """standard deviation of the frequencies, in cycles per half extent of the volume"""
    width: int = 128
    """width of the two hidden layers"""
    steps: int = 5000
    """optimisation steps"""
    rays_per_step: int = 256
    """random rays per step"""
    samples_per_ray: int = 128
    """points per ray"""
    learning_rate: float = 1e-3
    """Adam's rate"""

    @staticmethod
    def fast() -> Config:
        return Config(features=64, width=64, steps=1500, rays_per_step=128, samples_per_ray=48)

    @staticmethod
    def tiny() -> Config:
        return Config(
            features=32, sigma=1.0, width=32, steps=300, rays_per_step=64, samples_per_ray=32, learning_rate=1e-2
        )


def build(config: Config, spec: Spec) -> Field:
    """The untrained field; also what a saved result is loaded into."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    encoding = GaussianFourier(spec.domain.dims, config.features, config.sigma, generator=generator)
    network = MLP([encoding.out_dims, config.width, config.width, 1], generator=generator)
    return Field(spec.domain, encoding, network, SoftplusHead(spec.scale))


def fit(config: Config, data: Scan, run: Run, *, held_out: Scan | None = None, prior: None = None) -> Reconstruction:
    """Minimises the squared difference to the measured line integrals over random rays."""
    grid = data.acquisition.volume
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    spec = Spec(Domain.of_grid(grid), grid, "1/mm", WATER_PER_MM, {"weights_seed": seed})
    field = build(config, spec).to(run.device)
    rays = LineIntegral(data.acquisition, spec.domain, config.samples_per_ray)
    jitter = run.generator("jitter")

    def loss(step: int, batch: MeasurementBatch) -> dict[str, Tensor]:
        return {"projection": l2(predict_rays(field, rays, batch.index, jitter), batch.value)}

    check = None
    if held_out is not None:
        unseen = LineIntegral(held_out.acquisition, spec.domain, config.samples_per_ray)
        check = held_out_residual(field, unseen, held_out.values, run)
    groups = [ParameterGroup("network", list(field.network.parameters()), config.learning_rate)]
    batches = random_views_and_bins(data, config.rays_per_step, 1, run)
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    log = minimise("fit", groups, loss, batches, plan, run, held_out=check)
    return Reconstruction("raymlp", config, spec, field, logs=[log])


def predict(result: Reconstruction, data: Scan) -> Tensor:
    """Line integrals of the field along the rays of `data`."""
    rays = LineIntegral(data.acquisition, result.spec.domain, result.config.samples_per_ray)
    return predict_all(result.field, rays, device=next(result.field.parameters()).device)
