"""SCOPE: self-supervised coordinate projection network for sparse-view CT (Wu et al., IEEE TCI 9:517-529, 2023).

Notation: mu(x) attenuation field (1/mm), y(phi, s) measured line integral of view phi and detector bin s.

    1. fit             theta* = argmin mean |sum_j w_j mu_theta(x_j) - y(phi, s)|       random rays, L1
    2. re-project      Y(phi', s) = sum_j w_j mu_theta*(x_j)                           K times as many views
    3. data fidelity   Y(phi, s) <- y(phi, s)                                          measured views put back
    4. reconstruct     x = FBP(Y)

Every detector row is a slice with a two-dimensional field of its own, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import SigmoidHead
from scanfield.fields.image import ImageField
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.stack import SliceStack
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.scan import MeasurementBatch, held_out_residual, random_views_and_bins
from scanfield.fitting.schedules import halve_every
from scanfield.losses.data import l1
from scanfield.operators.base import predict as predict_rays
from scanfield.operators.base import predict_all
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.rays import LineIntegral
from scanfield.operators.views import dense_geometry
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction, Spec, show_field


@dataclass(frozen=True)
class Config:
    """The published setting (released configuration, 90 views of 367 bins)."""

    levels: int = 8
    """levels of the grid encoding"""
    features: int = 8
    """features per grid vertex"""
    base_cells: int = 2
    """cells per axis of the coarsest level"""
    growth: float = 1.95
    """ratio of cells per axis between neighbouring levels"""
    log2_table: int = 24
    """largest number of vertices stored per level, as a power of two"""
    width: int = 64
    """width of the two hidden layers"""
    steps: int = 150_000
    """optimisation steps per slice (published: 5000 epochs of a third of the views)"""
    views_per_step: int = 3
    """views drawn per step"""
    bins_per_view: int = 10
    """detector bins drawn from each of them"""
    samples_per_ray: int | None = None
    """points per ray during the fit (published and unset: one per detector bin)"""
    learning_rate: float = 1e-3
    """Adam's rate for the network"""
    table_learning_rate: float = 1e-3
    """Adam's rate for the grid features (published: the network's)"""
    halvings: int = 9
    """how often both rates are halved during the fit (published: every 500 of 5000 epochs)"""
    dense_factor: int = 8
    """re-projected views per measured view"""
    reprojection_oversampling: float | None = None
    """re-project an image of the field with voxels this many times finer than the volume's, within 0.03 dB of the
    published way at a fraction of the time; unset: the field along every ray, as published"""

    @staticmethod
    def fast() -> Config:
        """About two minutes a slice on two CPU cores (ours): fewer steps, more and coarser rays, faster features."""
        return Config(
            steps=6000,
            views_per_step=22,
            bins_per_view=4,
            samples_per_ray=160,
            table_learning_rate=1e-2,
            halvings=5,
            reprojection_oversampling=2.0,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            levels=5,
            features=4,
            width=32,
            steps=80,
            samples_per_ray=32,
            table_learning_rate=1e-2,
            halvings=2,
            dense_factor=2,
            reprojection_oversampling=1.0,
        )


def build(config: Config, spec: Spec) -> SliceStack:
    """One field per slice: grid encoding, ReLU network, sigmoid scaled to the largest attenuation expected."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    fields = []
    for index in range(spec.grid.shape[2]):
        encoding = MultiresolutionGrid(
            2,
            levels=config.levels,
            features=config.features,
            base=config.base_cells,
            growth=config.growth,
            log2_table=config.log2_table,
            generator=generator,
        )
        network = MLP([encoding.out_dims, config.width, config.width, 1], generator=generator)
        fields.append(Field(Domain.of_grid(spec.grid.slice(index)), encoding, network, SigmoidHead(spec.scale)))
    return SliceStack(fields, spec.grid)


def fit(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    *,
    held_out: Measurement[ProjectionGeometry] | None = None,
    prior: None = None,
) -> Reconstruction:
    """Fits every slice to its rays (step 1), then builds the dense sinogram (steps 2 and 3)."""
    slices = _slice_of_every_row(data.acquisition)
    spec = _spec(data, run)
    stack = build(config, spec).to(run.device)
    result = Reconstruction("scope", config, spec, stack)
    show_field(stack, spec, run)
    for row, index in enumerate(slices):
        unseen = None if held_out is None else _row(held_out, row)
        result.logs.append(_fit_slice(config, stack.fields[index], _row(data, row), unseen, run, f"slice-{index:03d}"))
    with run.timed("re-projection"):
        dense = _reproject(result, _dense(config, data.acquisition), run)
    dense[:: config.dense_factor] = data.values
    result.tensors["sinogram"] = dense
    return result


def _fit_slice(
    config: Config,
    field: Field,
    data: Measurement[ProjectionGeometry],
    held_out: Measurement[ProjectionGeometry] | None,
    run: Run,
    stage: str,
) -> FitLog:
    rays = LineIntegral(data.acquisition, field.domain, config.samples_per_ray or data.acquisition.shape[2])

    def loss(step: int, batch: MeasurementBatch) -> dict[str, Tensor]:
        return {"projection": l1(predict_rays(field, rays, batch.index), batch.value)}

    schedule = halve_every(max(1, config.steps // (config.halvings + 1)))
    groups = [
        ParameterGroup("table", list(field.encoding.parameters()), config.table_learning_rate, schedule),
        ParameterGroup("network", list(field.network.parameters()), config.learning_rate, schedule),
    ]
    check = None
    if held_out is not None:
        check = held_out_residual(field, _line_integral(held_out.acquisition, field.domain), held_out.values, run)
    batches = random_views_and_bins(data, config.views_per_step, config.bins_per_view, run)
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    return minimise(stage, groups, loss, batches, plan, run, held_out=check)


def render(result: Reconstruction, grid: Grid) -> Tensor:
    """FBP of the dense sinogram on any grid (step 4)."""
    acquisition = ProjectionGeometry.from_json(result.spec.facts["acquisition"])
    return filtered_backprojection(result.tensors["sinogram"], _dense(result.config, acquisition), grid)


def predict(result: Reconstruction, data: Measurement[ProjectionGeometry]) -> Tensor:
    """Line integrals of the field along the rays of `data`."""
    device = next(result.field.parameters()).device
    return predict_all(result.field, _line_integral(data.acquisition, result.spec.domain), device=device)


def _dense(config: Config, acquisition: ProjectionGeometry) -> ProjectionGeometry:
    return dense_geometry(acquisition, config.dense_factor)


def _reproject(result: Reconstruction, dense: ProjectionGeometry, run: Run) -> Tensor:
    field: nn.Module = result.field
    if result.config.reprojection_oversampling is not None:
        grid = result.spec.grid
        in_plane = [s / result.config.reprojection_oversampling for s in grid.spacing_mm[:2]]
        fine = grid.resampled((in_plane[0], in_plane[1], grid.spacing_mm[2]))
        field = ImageField(read_out(field, fine, device=run.device), fine).to(run.device)
    return predict_all(field, _line_integral(dense, result.spec.domain), device=run.device)


def _line_integral(acquisition: ProjectionGeometry, domain: Domain) -> LineIntegral:
    return LineIntegral(acquisition, domain, acquisition.shape[2])


def _spec(data: Measurement[ProjectionGeometry], run: Run) -> Spec:
    """The head's scale is the largest value of a smooth FBP of the data itself."""
    grid = data.acquisition.volume
    scale = float(filtered_backprojection(data.values, data.acquisition, grid, window="hann").max())
    if scale <= 0:
        raise InputError("the projections show no attenuation at all", where=data.source)
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    facts = {"acquisition": data.acquisition.to_json(), "weights_seed": seed}
    return Spec(Domain.of_grid(grid), grid, "1/mm", 1.2 * scale, facts)


def _row(data: Measurement[ProjectionGeometry], row: int) -> Measurement[ProjectionGeometry]:
    return replace(data, values=data.values[:, row : row + 1], acquisition=data.acquisition.row(row))


def _slice_of_every_row(acquisition: ProjectionGeometry) -> list[int]:
    """Which slice of the volume each detector row measures."""
    _, rows, columns = acquisition.shape
    middle = torch.full((rows,), (columns - 1) / 2, dtype=torch.float64)
    rays = acquisition.rays_at(torch.zeros(rows, dtype=torch.long), torch.arange(rows).double(), middle)
    place = acquisition.volume.to_voxel(rays.origin)[:, 2]
    tilt = acquisition.volume.to_voxel(rays.origin + 100 * rays.direction)[:, 2] - place
    slices = [int(k) for k in place.round()]
    if (
        (place - place.round()).abs().max() > 0.05
        or tilt.abs().max() > 0.05
        or sorted(slices) != list(range(acquisition.volume.shape[2]))
    ):
        raise InputError(
            f"SCOPE needs one detector row per slice: {rows} rows do not fall on {acquisition.volume.shape[2]} slices",
            fix="give the volume one slice per detector row, in the plane of its rays",
        )
    return slices
