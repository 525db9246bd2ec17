"""A Fourier-feature network fitted to the rays of a scan: the smallest method there can be.

theta* = argmin mean (sum_j w_j mu_theta(x_j) - y)^2        random rays
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scanfield.data.measurement import Measurement
from scanfield.fields.encodings.frequency import Frequency
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

render = render_field


@dataclass(frozen=True)
class Config:
    """A setting that was never published."""

    octaves: int = 6
    """frequencies per coordinate"""
    width: int = 64
    """width of the hidden layer"""
    steps: int = 2000
    """optimisation steps"""
    learning_rate: float = 3e-3
    """Adam's rate"""

    @staticmethod
    def fast() -> Config:
        """Half a minute."""
        return Config(steps=500)

    @staticmethod
    def tiny() -> Config:
        """Seconds."""
        return Config(octaves=4, width=32, steps=250, learning_rate=1e-2)


def build(config: Config, spec: Spec) -> nn.Module:
    """The field."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    encoding = Frequency(spec.domain.dims, config.octaves)
    network = MLP([encoding.out_dims, config.width, 1], generator=generator)
    return Field(spec.domain, encoding, network, SoftplusHead(spec.scale))


def fit(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    *,
    held_out: Measurement[ProjectionGeometry] | None = None,
    prior: None = None,
) -> Reconstruction:
    """Fits the field to the rays."""
    grid = data.acquisition.volume
    domain = Domain.of_grid(grid)
    scale = float(data.values.max()) / max(domain.spatial_extent_mm)
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    spec = Spec(domain, grid, "1/mm", scale, {"weights_seed": seed})
    field = build(config, spec).to(run.device)
    rays = LineIntegral(data.acquisition, domain, data.acquisition.shape[2])
    batches = random_views_and_bins(data, 4, 32, run)

    def loss(step: int, batch: MeasurementBatch) -> dict[str, Tensor]:
        return {"rays": l2(predict_rays(field, rays, batch.index, run.generator("jitter")), batch.value)}

    check = None
    if held_out is not None:
        unseen = LineIntegral(held_out.acquisition, domain, held_out.acquisition.shape[2])
        check = held_out_residual(field, unseen, held_out.values, run)
    groups = [ParameterGroup("field", list(field.parameters()), config.learning_rate)]
    log = minimise("fit", groups, loss, batches, FitConfig(config.steps), run, held_out=check)
    return Reconstruction("toy", config, spec, field, logs=[log])


def predict(result: Reconstruction, data: Measurement[ProjectionGeometry]) -> Tensor:
    """Line integrals of the field."""
    return predict_all(result.field, LineIntegral(data.acquisition, result.spec.domain, data.acquisition.shape[2]))
