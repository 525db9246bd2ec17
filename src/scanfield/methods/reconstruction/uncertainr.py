"""UncertaINR: uncertainty of end-to-end implicit neural representations for CT (Vasconcelos et al., TMLR 2023).

Notation: f(x) attenuation (1/mm), v = f / scale in [0, 1]; A line integrals of the image of f on the scan's grid, zero
outside of it; y_k measured with noise sigma_k; M their number; gamma Fourier features; W the weights.

    f(x) = scale * sigmoid(network_W(gamma(x))),   gamma(x) = [sin Bx, cos Bx],   B ~ N(0, omega^2)
    L(W) = 1/M sum (A f - y)_k^2 / (2 sigma_k^2) + lambda (sum |D_0 v| + sum |D_1 v|) / width

The result is a set of fields that explain the data, not one:

    dropout    L over networks with dropped units; more of them, drawn afterwards
    ensemble   minima of L from several seeds
    sgld       exp(-U) by Langevin dynamics from a minimum of L:  U = M L + 1/2 tau sum fan_in W^2
    hmc        exp(-U) by Hamiltonian Monte Carlo

Every step sees all views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.fields.field import Field
from scanfield.fields.heads import SigmoidHead
from scanfield.fields.networks.dropout import Dropout
from scanfield.fields.networks.init import normal_weights
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.voxels import VoxelField
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.ensemble import fit_members
from scanfield.fitting.regimes.hmc import HmcConfig, hmc
from scanfield.fitting.regimes.sampling import Langevin, Thinning, polynomial_decay, set_parameters
from scanfield.fitting.schedules import constant, cosine
from scanfield.losses.smoothness import anisotropic_tv
from scanfield.operators.noise import deviation_of, gaussian_nll
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction, Spec, render_field, show_field

LARGEST_CHAIN = 20_000  # parameters that Hamiltonian Monte Carlo still mixes


@dataclass(frozen=True)
class Config:
    """The published setting of Monte-Carlo dropout (512 x 512 pixels, 60 views)."""

    posterior: Literal["dropout", "ensemble", "sgld", "hmc"] = "dropout"
    """what makes the set of fields: dropped units, several seeds, Langevin dynamics (ours), Hamiltonian Monte Carlo"""
    representation: Literal["fourier", "pixels"] = "fourier"
    """Fourier features and a network, or (the control) one free parameter per pixel"""
    frequencies: int = 363
    """number of random frequencies"""
    omega: float = 40.0
    """their standard deviation, in radians per half of the longest side (published: 48 for ensembles, 60 for HMC)"""
    width: int = 280
    """width of the hidden layers (published: 200 for ensembles and HMC)"""
    hidden_layers: int = 6
    """number of hidden layers (published: 5 for ensembles and HMC)"""
    dropout: float = 0.2
    """probability of dropping a hidden unit"""
    tv_weight: float = 0.008
    """lambda, weight of the total variation (published: 0.05 for ensembles, 0.03 for HMC, 0.1 to 0.5 for pixels)"""
    noise_sigma: float | None = None
    """standard deviation of the noise in a line integral; unset: what the scan states, or an estimate from it"""
    steps: int = 15_000
    """optimisation steps"""
    learning_rate: float = 3e-4
    """Adam's rate (published: 0.01 for pixels)"""
    final_rate: float = 1.0
    """part of the rate that is left at the end of a half cosine (published: constant)"""
    samples: int = 50
    """fields drawn of a posterior (of an ensemble, see members)"""
    members: int = 10
    """fits of an ensemble"""
    prior_precision: float = 0.2
    """tau: a weight is N(0, 1 / (tau fan_in)) before the data are seen; only for sgld and hmc"""
    burn_in: int = 500
    """steps or proposals of a chain that are thrown away"""
    thinning: int = 5
    """steps or proposals between two samples of a chain"""
    langevin_rate: float = 1e-3
    """rate of Langevin dynamics in units of the preconditioned gradient (ours)"""
    leapfrog: int = 64
    """most steps of a proposal of Hamiltonian Monte Carlo (published: NUTS up to depth 8)"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores for a slice of 128 x 128 pixels (ours): a smaller network, a higher rate."""
        return Config(
            frequencies=96,
            omega=20.0,
            width=96,
            hidden_layers=3,
            steps=2000,
            learning_rate=1e-2,
            final_rate=0.05,
            members=5,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            frequencies=24,
            omega=5.0,
            width=48,
            hidden_layers=2,
            dropout=0.1,
            steps=400,
            learning_rate=1e-2,
            final_rate=0.05,
            samples=8,
            members=2,
            burn_in=10,
            thinning=2,
            leapfrog=4,
        )


def build(config: Config, spec: Spec) -> nn.Module:
    """Fourier features, a SiLU network and a sigmoid scaled to the largest attenuation expected; or pixels."""
    generator, head = torch.Generator().manual_seed(spec.facts["weights_seed"]), SigmoidHead(spec.scale)
    if config.representation == "pixels":
        return VoxelField(spec.grid, head)
    encoding = GaussianFourier(spec.domain.dims, config.frequencies, config.omega, generator=generator, factor="1")
    widths = [encoding.out_dims, *[config.width] * config.hidden_layers, 1]
    network = MLP(widths, generator=generator, activation=silu)
    normal_weights(network, generator)
    dropped = Dropout(network, config.dropout) if config.posterior == "dropout" else network
    return Field(spec.domain, encoding, dropped, head)


def fit(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    *,
    held_out: Measurement[ProjectionGeometry] | None = None,
    prior: None = None,
) -> Reconstruction:
    """Fits one field, or those of an ensemble, to all line integrals; then draws the chain, if there is one.

    Raises:
        InputError: the settings contradict each other, or the scan holds no attenuation.
    """
    if config.representation == "pixels" and config.posterior == "dropout":
        raise InputError("a grid of pixels has no units to drop", fix="--posterior ensemble, sgld or hmc")
    if config.posterior != "ensemble":
        return _fit_one(config, data, run, held_out)
    return Reconstruction.ensemble(fit_members(lambda one: _fit_one(config, data, one, held_out), config.members, run))


def _fit_one(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    held_out: Measurement[ProjectionGeometry] | None,
) -> Reconstruction:
    grid = data.acquisition.volume
    projector = VoxelProjector(data.acquisition, grid, device=run.device)
    measured = data.values.to(run.device)
    sigma = _sigma(config, data).to(run.device)
    spec = _spec(data, projector, measured, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    value, masks = _on_points(field, grid.points(device=run.device)), run.generator("dropout")
    dropout = field.network if isinstance(field, Field) and isinstance(field.network, Dropout) else None

    def terms() -> dict[str, Tensor]:
        image = value().reshape(grid.shape)
        tv = anisotropic_tv(image / spec.scale)
        return {"projection": gaussian_nll(projector.apply(image), measured, sigma), "tv": tv}

    def loss(step: int, batch: None) -> dict[str, Tensor]:
        if dropout is not None:
            dropout.scatter(masks)
        return terms()

    check = None
    if held_out is not None:
        unseen = VoxelProjector(held_out.acquisition, grid, device=run.device)
        truth = held_out.values.to(run.device)

        @torch.no_grad()
        def check() -> float:
            if dropout is not None:
                dropout.clear()
            return float((unseen.apply(value().reshape(grid.shape)) - truth).square().mean().sqrt())

    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    schedule = constant if config.final_rate == 1 else cosine(config.final_rate)
    groups = [ParameterGroup("field", list(field.parameters()), config.learning_rate, schedule)]
    weights = {"tv": config.tv_weight}
    log = minimise("fit", groups, loss, lambda step: None, plan, run, weights=weights, held_out=check)
    if dropout is not None:
        dropout.clear()
    result = Reconstruction("uncertainr", config, spec, field, logs=[log])
    if config.posterior in ("sgld", "hmc") and log.stopped != "interrupted":
        draws, chain = _sample(config, field, terms, measured.numel(), run, check)
        result.tensors["draws"] = draws
        result.logs.append(chain)
    return result


def _on_points(field: nn.Module, x: Float[Tensor, "n 3"]) -> Callable[[], Float[Tensor, "n 1"]]:
    """The field at points that stay: their Fourier features are computed once."""
    if not isinstance(field, Field):
        return lambda: field(x)
    features = field.features(x)

    def value() -> Tensor:
        out: Tensor = field.head(field.network(features))
        return out

    return value


def _sample(
    config: Config,
    field: nn.Module,
    terms: Callable[[], dict[str, Tensor]],
    count: int,
    run: Run,
    check: Callable[[], float] | None,
) -> tuple[Float[Tensor, "s p"], FitLog]:
    """A chain of all parameters from where they are: U(W) = M L(W) + 1/2 tau sum fan_in W^2."""
    parameters, precisions = list(field.parameters()), _prior_precisions(config, field)
    thinning = Thinning(config.burn_in, config.thinning, config.samples)

    def energy() -> dict[str, Tensor]:
        found = terms()
        squares = [k / 2 * p.square().sum() for p, k in zip(parameters, precisions, strict=True)]
        return {
            "data": count * found["projection"],
            "tv": count * config.tv_weight * found["tv"],
            "prior": torch.stack(squares).sum(),
        }

    if config.posterior == "hmc":
        size = sum(p.numel() for p in parameters)
        if size > LARGEST_CHAIN:
            run.warn(f"A chain of {size} parameters hardly moves: Hamiltonian Monte Carlo is for small fields.")
        scales = [torch.full_like(p, k**-0.5) for p, k in zip(parameters, precisions, strict=True)]
        settings = HmcConfig(thinning, leapfrog=config.leapfrog, first_step=1e-3)
        return hmc(
            "hmc",
            parameters,
            lambda: torch.stack(list(energy().values())).sum(),
            settings,
            run,
            scales=scales,
            held_out=check,
        )
    sampler = Langevin(thinning, run.generator("langevin"))
    decay = polynomial_decay(max(1.0, thinning.steps / 4), 0.55)
    group = ParameterGroup("field", parameters, config.langevin_rate, decay, sampler)
    plan = FitConfig(thinning.steps, check_every=max(1, thinning.steps // 10))
    log = minimise("sgld", [group], lambda step, batch: energy(), lambda step: None, plan, run, held_out=check)
    return sampler.draws(), log


def _prior_precisions(config: Config, field: nn.Module) -> list[float]:
    """tau * fan_in of every parameter; a pixel's fan-in is one."""
    layers = [m for m in field.modules() if isinstance(m, nn.Linear)]
    fan_in = {id(p): layer.in_features for layer in layers for p in layer.parameters()}
    return [config.prior_precision * fan_in.get(id(p), 1) for p in field.parameters()]


def samples(result: Reconstruction) -> Iterator[nn.Module]:
    """The fields of the posterior one by one, the same at every call: thinned networks, or states of the chain."""
    config, field, chain = result.config, result.field, result.tensors.get("draws", torch.empty(0))
    device = next(field.parameters()).device
    if isinstance(field, Field) and isinstance(field.network, Dropout):
        for k in range(config.samples):
            draws = torch.Generator().manual_seed(result.spec.facts["samples_seed"] + k)
            yield Field(field.domain, field.encoding, field.network.thinned(draws), field.head).to(device)
    elif len(chain) > 0:
        for parameters in chain:
            drawn = deepcopy(field)
            set_parameters(list(drawn.parameters()), parameters)
            yield drawn
    else:
        yield field


render = render_field


def predict(result: Reconstruction, data: Measurement[ProjectionGeometry]) -> Tensor:
    """Line integrals of the field's image on the scan's grid, as in the fit."""
    return next(predictions([result], data))


def predictions(results: Iterable[Reconstruction], data: Measurement[ProjectionGeometry]) -> Iterator[Tensor]:
    """`predict` for several fields of one scan, which share the projector."""
    projector = None
    for result in results:
        if projector is None:
            projector = VoxelProjector(data.acquisition, result.spec.grid)
        yield projector.project(render_field(result, result.spec.grid))


def _sigma(config: Config, data: Measurement[ProjectionGeometry]) -> Float[Tensor, "views rows columns"]:
    if config.noise_sigma is None:
        return deviation_of(data)
    if config.noise_sigma <= 0:
        raise InputError(f"the noise's standard deviation must be positive, got {config.noise_sigma}")
    return torch.full_like(data.values, config.noise_sigma)


def _spec(data: Measurement[ProjectionGeometry], projector: VoxelProjector, measured: Tensor, run: Run) -> Spec:
    """The sigmoid's scale is 1.5 times the largest value after 20 simultaneous iterations, which are smooth."""
    rows, columns = (1 / s.clamp(min=1e-3 * float(s.max())) for s in projector.sums())
    image = torch.zeros(projector.grid.shape, device=measured.device)
    for _ in range(20):
        change = projector.backproject(rows * (measured - projector.project(image)))
        image = (image + columns * change).clamp(min=0)
    if not float(image.max()) > 0:
        raise InputError("the scan shows no attenuation: all line integrals are zero or negative", where=data.source)
    draws = run.generator("weights")
    facts = {"weights_seed": int(torch.randint(2**62, (), generator=draws))}
    facts["samples_seed"] = int(torch.randint(2**62, (), generator=draws))
    grid = data.acquisition.volume
    return Spec(Domain.of_grid(grid), grid, "1/mm", 1.5 * float(image.max()), facts)
