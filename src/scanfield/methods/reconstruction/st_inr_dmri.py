"""ST-INR for dynamic MRI: a space-time image field behind the coils' Fourier transform (Feng et al., arXiv 2301.00127).

Notation: I_t(x) complex image of frame t, y its measured k-space, A_t coil sensitivities and Fourier transform along
the frame's trajectory (`operators.encoding`), all in units of the largest |I|; sg stops the gradient; T frames of N
voxels.

    1. field       f(x, t) -> (Re I, Im I): one hash grid over space and time, rectifier network
    2. data        D = mean (Re r)^2 / (sg(Re A I)^2 + epsilon) + (Im r)^2 / (sg(Im A I)^2 + epsilon),  r = A I - y
    3. fit         min D + lambda_TV mean (|Re I_t+1 - Re I_t| + |Im I_t+1 - Im I_t|) + lambda_LR ||(I_t(x))_t,x||_* / T
    4. annealing   the levels of the grid come in one after the other, from coarse to fine

Every step renders whole frames. The image is the field, at any place and moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.mlp import MLP
from scanfield.fitting.groups import ParameterGroup, adam
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import milestones
from scanfield.operators.calibration import mean_image, sensitivities_on
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction, Spec
from scanfield.tasks.series import middle, moments, series_spec

CHUNK = 2**18
_TINY = 1e-10  # of a squared singular value, where the largest |I| is 1


@dataclass(frozen=True)
class Config:
    """The published setting (released script)."""

    levels: int = 16
    """levels of the grid encoding"""
    features: int = 2
    """features per grid vertex"""
    base_cells: int = 16
    """cells per axis of the coarsest level"""
    growth: float = 2.0
    """ratio of cells per axis between neighbouring levels"""
    log2_table: int = 24
    """largest number of vertices stored per level, as a power of two"""
    width: int = 128
    """width of the hidden layers"""
    layers: int = 5
    """hidden layers"""
    time_scale: float = 1.0
    """step from frame to frame, in voxels of the encoding's coordinates: larger gives frames more freedom;
    all frames together are at most as long as the field of view"""
    loss: Literal["relative", "l2"] = "relative"
    """errors relative to the size of the prediction (published), or 100 times plain squares"""
    epsilon: float = 1e-4
    """floor of that squared size, where the largest image value is 1"""
    temporal_weight: float = 0.02
    """weight lambda_TV of the variation from frame to frame"""
    low_rank_weight: float = 2e-4
    """weight lambda_LR of the nuclear norm of the series"""
    coarse_to_fine: bool = True
    """let the levels of the grid come in one after the other, the last for the last steps / levels"""
    steps: int = 1600
    """optimisation steps; each renders every frame"""
    learning_rate: float = 1e-3
    """Adam's rate for network and grid, halved after half of the steps"""
    weight_decay: float = 1e-6
    """of the network"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours): smaller grid and network, plain squares, a temporal weight for noise."""
        return Config(
            levels=12,
            growth=1.3,
            log2_table=18,
            width=64,
            layers=2,
            loss="l2",
            temporal_weight=1.5,
            steps=1500,
            learning_rate=1e-2,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            levels=4, base_cells=6, growth=1.6, log2_table=13, width=32, layers=1, steps=200, learning_rate=1e-2
        )


class ScaledTime(nn.Module):
    """A grid encoding whose last coordinate covers only the first `share` of its axis: (*n, d) -> (*n, e)."""

    def __init__(self, grid: MultiresolutionGrid, share: float) -> None:
        super().__init__()
        self.grid, self.share = grid, share
        self.out_dims = grid.out_dims

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        scaled: Tensor = self.grid(torch.cat([u[..., :-1], (u[..., -1:] + 1) * self.share - 1], dim=-1))
        return scaled


def build(config: Config, spec: Spec) -> Field:
    """The image: grid over space and time, rectifier network, real and imaginary part in the unit of the data."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    grid = MultiresolutionGrid(
        spec.domain.dims,
        levels=config.levels,
        features=config.features,
        base=config.base_cells,
        growth=config.growth,
        log2_table=config.log2_table,
        generator=generator,
    )
    length = np.asarray(spec.grid.shape) * np.asarray(spec.grid.spacing_mm)
    voxels = float(length.max()) / min(s for s, n in zip(spec.grid.spacing_mm, spec.grid.shape, strict=True) if n > 1)
    share = min(1.0, config.time_scale * len(moments(spec)) / voxels)
    network = MLP([grid.out_dims, *[config.width] * config.layers, 2], generator=generator)
    return Field(spec.domain, ScaledTime(grid, share), network, LinearHead(spec.scale))


def fit(
    config: Config, data: KSpace, run: Run, *, held_out: KSpace | None = None, prior: None = None
) -> Reconstruction:
    """Fits the field to the k-space of all frames at once (steps 2 to 4)."""
    geometry = data.acquisition
    maps = sensitivities_on(data, geometry.volume)
    scale = float(mean_image(data, geometry.volume, maps).abs().max())
    if not scale > 0:
        raise InputError("k-space is zero everywhere", where=data.source)
    spec = series_spec(data, scale, run)
    field = build(config, spec).to(run.device)
    operator = KSpaceEncoding(geometry, geometry.volume, maps, device=run.device)
    y = data.values.to(run.device) / scale
    x = _points(geometry.volume, geometry.frame_moments(), run.device)
    grid = field.encoding.grid
    assert isinstance(grid, MultiresolutionGrid)

    def loss(step: int, batch: None) -> dict[str, Tensor]:
        if config.coarse_to_fine:
            grid.show_levels(1 + step * config.levels // config.steps)
        image = torch.view_as_complex(field(x)) / scale  # (frames, voxels)
        predicted = operator.apply(image.reshape(operator.series_shape))
        terms = {"k-space": _data_term(config, predicted, y)}
        if config.temporal_weight:
            after = image.roll(-1, dims=0) if geometry.when.periodic else image[1:]
            change = torch.view_as_real(after - image[: len(after)]).abs()
            terms["temporal"] = change.sum() / image.numel()
        if config.low_rank_weight:
            terms["low-rank"] = nuclear_norm(image) / len(image)
        return terms

    result = Reconstruction("st_inr_dmri", config, spec, field, {"sensitivities": maps.cpu()})
    run.show(lambda grid: render(result, grid), spec.grid, spec.unit)
    rate, schedule = config.learning_rate, milestones((0.5,), 0.5)
    groups = [
        ParameterGroup("grid", list(field.encoding.parameters()), rate, schedule),
        ParameterGroup(
            "network", list(field.network.parameters()), rate, schedule, adam(weight_decay=config.weight_decay)
        ),
    ]
    weights = {"temporal": config.temporal_weight, "low-rank": config.low_rank_weight}
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    log = minimise(
        "fit",
        groups,
        loss,
        lambda step: None,
        plan,
        run,
        weights={name: weight for name, weight in weights.items() if weight},
        held_out=None if held_out is None else _relative_residual(field, held_out, maps, run.device),
    )
    result.logs.append(log)
    grid.show_levels(config.levels)
    return result


def nuclear_norm(series: Complex[Tensor, "frames voxels"]) -> Float[Tensor, ""]:
    """The sum of the singular values, by the eigenvalues of the small matrix (frames, frames)."""
    return (torch.linalg.eigvalsh(series @ series.mH).clamp(min=0) + _TINY).sqrt().sum()


def series(result: Reconstruction, grid: Grid, moments: np.ndarray) -> Complex[Tensor, "t n0 n1 n2"]:
    """The field on any grid at any moments, zero outside the field of view."""
    device = next(result.field.parameters()).device
    x = _points(grid, np.asarray(moments, dtype=np.float64).reshape(-1), torch.device("cpu"))
    inside = result.spec.domain.inside(x)
    with torch.no_grad():
        parts = [result.field(part.to(device)).cpu() for part in x.flatten(0, 1).split(CHUNK)]
    values = torch.view_as_complex(torch.cat(parts)).reshape(inside.shape) * inside
    return values.reshape(len(x), *grid.shape)


def render(result: Reconstruction, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The magnitude at the middle of the time axis."""
    return series(result, grid, middle(result.spec))[0].abs()


def predict(result: Reconstruction, data: KSpace) -> Complex[Tensor, "views coils samples"]:
    """k-space of the field along the trajectory of `data`, every view at the moment of its frame."""
    geometry = data.acquisition
    operator = KSpaceEncoding(geometry, result.spec.grid, result.tensors["sensitivities"])
    return operator.apply(series(result, result.spec.grid, geometry.frame_moments()))


def _data_term(config: Config, predicted: Tensor, measured: Tensor) -> Float[Tensor, ""]:
    error = torch.view_as_real(predicted - measured).square()
    if config.loss == "l2":
        return 100 * error.sum(dim=-1).mean()
    size = torch.view_as_real(predicted.detach()).square() + config.epsilon
    return (error / size).sum(dim=-1).mean()


def _points(grid: Grid, moments: np.ndarray, device: torch.device) -> Float[Tensor, "frames voxels 4"]:
    """World coordinates (mm) and place on the axis 't' of every voxel of every frame."""
    x, t = grid.points(device=device), torch.tensor(moments, dtype=torch.float32, device=device)
    return torch.cat([x.expand(len(t), -1, -1), t[:, None, None].expand(-1, len(x), 1)], dim=-1)


def _relative_residual(field: Field, held_out: KSpace, maps: Tensor, device: torch.device) -> Callable[[], float]:
    """A function: the relative RMS of the field's k-space on views that the fit does not see."""
    geometry = held_out.acquisition
    operator = KSpaceEncoding(geometry, geometry.volume, maps, device=device)
    x, y = _points(geometry.volume, geometry.frame_moments(), device), held_out.values.to(device)

    def residual() -> float:
        image = torch.view_as_complex(field(x)).reshape(operator.series_shape)
        return float((operator.apply(image) - y).norm() / y.norm())

    return residual
