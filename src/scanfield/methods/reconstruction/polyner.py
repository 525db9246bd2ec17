"""Polyner: unsupervised polychromatic neural representation for CT metal artifact reduction (Wu et al., NeurIPS 2023).

Notation: mu_k(x) attenuation at energy E_k (1/mm), s_k share of the spectrum, p measured projection of ray r, M metal.

    p_hat(r) = -log sum_k s_k exp(-sum_j w_j mu_k(x_j))                              x_j, w_j points and steps of r
    L        = mean_r |p_hat(r) - p(r)|  +  lambda mean_{x_j not in M} sum_k |mu_{k+1}(x_j) - mu_k(x_j)|

One field has all energies as channels. Outside the metal the second term (EAS) lets them agree; inside they are free,
and explain what beam hardening made of the rays through it. The image is mu at a reference energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.materials import attenuation_per_mm
from scanfield.data.measurement import Measurement
from scanfield.data.spectra import REFERENCE_KEV, Spectrum, rebinned, rebinning_error
from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.field import Field
from scanfield.fields.heads import SquareplusHead
from scanfield.fields.image import ImageField
from scanfield.fields.networks.init import set_output_bias
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.spectral import SpectralField
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.scan import MeasurementBatch, held_out_residual, random_views_and_bins
from scanfield.fitting.schedules import milestones
from scanfield.losses.data import l1
from scanfield.losses.spectral import energy_smoothness
from scanfield.operators.base import predict_all
from scanfield.operators.metal import METAL_PER_MM, segment_metal, starved_rays
from scanfield.operators.rays import LineIntegral
from scanfield.operators.spectral import SpectralLineIntegral, log_shares
from scanfield.operators.stored_rays import StoredLineIntegral
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction, Spec, render_field, show_field

__all__ = ["Config", "build", "energy_curves", "fit", "predict", "prepare", "render"]

UNIT_PER_MM = 0.1
"""What the network calls 1: 1/cm, as published."""

render = render_field


@dataclass(frozen=True)
class Config:
    """The published setting (released configuration: 360 fan views of 611 bins, 101 energies)."""

    levels: int = 16
    """levels of the grid encoding"""
    features: int = 8
    """features per grid vertex"""
    base_cells: int = 2
    """cells per axis of the coarsest level"""
    growth: float = 2.0
    """ratio of cells per axis between neighbouring levels"""
    log2_table: int = 19
    """largest number of vertices stored per level, as a power of two"""
    width: int = 128
    """width of the two hidden layers"""
    energies: int = 101
    """energies that the spectrum is rebinned to at most, and channels of the field; 1 is a monochromatic fit"""
    reference_kev: float = REFERENCE_KEV
    """energy of the image"""
    tissue: Literal["flat", "water"] = "flat"
    """what the smoothness over energies prefers outside metal: the same attenuation at all energies, for projections
    that were corrected for the hardening by water (published), or that of water at every energy, for raw ones (ours)"""
    smoothness: float = 0.2
    """weight lambda of the smoothness over energies, with attenuation in 1/cm"""
    metal_per_mm: float = METAL_PER_MM
    """attenuation above which a first filtered backprojection shows metal, where no mask is given"""
    steps: int = 36_000
    """optimisation steps (published: 4000 epochs of a ninth of the views)"""
    views_per_step: int = 40
    """views drawn per step"""
    bins_per_view: int = 2
    """detector bins drawn from each of them (published: neighbours)"""
    samples_per_ray: int | None = None
    """points per ray (published and unset: one per pixel)"""
    output_bias: float = 0.0
    """start of the network's output; 0 is 1 per cm at all energies"""
    learning_rate: float = 1e-3
    """Adam's rate for the network"""
    table_learning_rate: float = 1e-3
    """Adam's rate for the grid features (published: the network's)"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours): 12 energies, fewer, coarser levels, a smaller network, faster features."""
        return Config(
            levels=9,
            base_cells=4,
            growth=1.65,
            width=64,
            energies=12,
            tissue="water",
            steps=4000,
            output_bias=-3.0,
            learning_rate=3e-3,
            table_learning_rate=3e-2,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            levels=5,
            features=4,
            growth=1.8,
            width=32,
            energies=4,
            steps=500,
            views_per_step=24,
            bins_per_view=4,
            samples_per_ray=32,
            output_bias=-3.0,
            learning_rate=3e-3,
            table_learning_rate=3e-2,
        )


def prepare(config: Config, data: Measurement[ProjectionGeometry], run: Run) -> Measurement[ProjectionGeometry]:
    """The scan with its metal segmented, where no mask came with it.

    Raises:
        InputError: the rays through the metal counted no photons.
    """
    metal = data.metal
    if metal is None:
        found = segment_metal(data, config.metal_per_mm)
        if bool(found.values.any()):
            metal = found
            run.note(f"No mask was given: metal is what a first image shows above {config.metal_per_mm:g} 1/mm.")
        else:
            run.note(f"No mask was given, and a first image shows nothing above {config.metal_per_mm:g} 1/mm.")
    starved = starved_rays(data, metal)
    if starved:
        run.warn(
            f"{starved} of {data.values.numel()} rays counted one photon or none; they only say 'at least so much'"
        )
    return replace(data, metal=metal)


def build(config: Config, spec: Spec) -> SpectralField:
    """One field with a channel per energy: grid encoding, ReLU network, Squareplus."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    spectrum = Spectrum.of_table(np.asarray(spec.facts["spectrum"]))
    encoding = MultiresolutionGrid(
        spec.domain.dims,
        levels=config.levels,
        features=config.features,
        base=config.base_cells,
        growth=config.growth,
        log2_table=config.log2_table,
        generator=generator,
    )
    channels = len(spectrum.energies_kev)
    network = MLP([encoding.out_dims, config.width, config.width, channels], generator=generator)
    set_output_bias(network, config.output_bias)
    field = Field(spec.domain, encoding, network, SquareplusHead(spec.scale))
    curve = np.asarray(spec.facts["curve"])
    return SpectralField(field, spectrum.energies_kev, curve, spec.facts["reference_kev"])


def fit(
    config: Config,
    data: Measurement[ProjectionGeometry],
    run: Run,
    *,
    held_out: Measurement[ProjectionGeometry] | None = None,
    prior: None = None,
) -> Reconstruction:
    """Fits the field to the projections through the spectrum."""
    spec = _spec(config, data, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    log_share = log_shares(Spectrum.of_table(np.asarray(spec.facts["spectrum"]))).to(run.device)
    lines = LineIntegral(data.acquisition, spec.domain, _points_per_ray(config, data.acquisition))
    rays = SpectralLineIntegral(StoredLineIntegral.make(lines, run.device), log_share)
    metal = None
    if data.metal is not None:
        metal = ImageField(data.metal.values.float(), data.metal.grid).to(run.device)

    def loss(step: int, batch: MeasurementBatch) -> dict[str, Tensor]:
        samples = rays.samples(batch.index)
        values = field.normalised(samples.x)
        terms = {"projection": l1(rays.reduce(values * field.curve, samples), batch.value)}
        if len(log_share) > 1:
            # Interpolation reaches one voxel beyond the mask: its rim may be metal, too.
            outside = torch.ones_like(values[..., 0]) if metal is None else metal(samples.x)[..., 0] == 0
            terms["energies"] = energy_smoothness(values, outside)
        return terms

    schedule = milestones((0.5,), 0.1)
    groups = [
        ParameterGroup("table", list(field.field.encoding.parameters()), config.table_learning_rate, schedule),
        ParameterGroup("network", list(field.field.network.parameters()), config.learning_rate, schedule),
    ]
    check = None
    if held_out is not None:
        unseen = SpectralLineIntegral(replace(lines, geometry=held_out.acquisition), log_share)
        check = held_out_residual(field.every, unseen, held_out.values, run)
    batches = random_views_and_bins(data, config.views_per_step, config.bins_per_view, run)
    result = Reconstruction("polyner", config, spec, field)
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    weights = {"energies": config.smoothness / UNIT_PER_MM} if len(log_share) > 1 else {}
    result.logs.append(minimise("fit", groups, loss, batches, plan, run, weights=weights, held_out=check))
    return result


def predict(result: Reconstruction, data: Measurement[ProjectionGeometry]) -> Tensor:
    """Polychromatic projections of the field along the rays of `data`."""
    field = _field(result)
    device = field.curve.device
    log_share = log_shares(Spectrum.of_table(np.asarray(result.spec.facts["spectrum"]))).to(device)
    lines = LineIntegral(data.acquisition, result.spec.domain, _points_per_ray(result.config, data.acquisition))
    return predict_all(field.every, SpectralLineIntegral(lines, log_share), device=device)


def energy_curves(
    result: Reconstruction, points: Float[Tensor, "n 3"]
) -> tuple[Float[np.ndarray, " e"], Float[Tensor, "n e"]]:
    """The field's energies (keV) and its attenuation (1/mm) at world points at each of them."""
    field = _field(result)
    with torch.no_grad():
        values = field.every(points.float().to(field.curve.device))
    return field.energies_kev, values.cpu()


def _field(result: Reconstruction) -> SpectralField:
    assert isinstance(result.field, SpectralField)
    return result.field


def _points_per_ray(config: Config, acquisition: ProjectionGeometry) -> int:
    """One point per pixel of the image's diagonal, where the configuration does not say."""
    if config.samples_per_ray is not None:
        return config.samples_per_ray
    grid = acquisition.volume
    diagonal = math.dist(*(grid.corners_mm()[corner] for corner in (0, -1)))
    return math.ceil(diagonal / min(grid.spacing_mm[:2]))


def _spec(config: Config, data: Measurement[ProjectionGeometry], run: Run) -> Spec:
    spectrum = _energies(config, data, run)
    curve = np.ones(len(spectrum.energies_kev))
    reference_kev = config.reference_kev if len(curve) > 1 else float(spectrum.energies_kev[0])
    if config.tissue == "water" and len(curve) > 1:
        water = attenuation_per_mm("water", np.append(spectrum.energies_kev, reference_kev))
        curve = water[:-1] / water[-1]
    facts = {
        "acquisition": data.acquisition.to_json(),
        "spectrum": spectrum.table().tolist(),
        "curve": curve.tolist(),
        "reference_kev": reference_kev,
        "weights_seed": int(torch.randint(2**62, (), generator=run.generator("weights"))),
    }
    grid = data.acquisition.volume
    return Spec(Domain.of_grid(grid), grid, "1/mm", UNIT_PER_MM, facts)


def _energies(config: Config, data: Measurement[ProjectionGeometry], run: Run) -> Spectrum:
    """The few energies of the fit, with a note of what they cost."""
    if config.energies < 1:
        raise InputError(f"a field needs at least one energy, got {config.energies}", where="energies")
    if data.spectrum is None:
        run.warn(
            "the scan states no spectrum, so it is fitted as if its X-rays had one energy; give one with --spectrum"
        )
        return Spectrum(np.array([config.reference_kev]), np.ones(1))
    data.spectrum.check_covers(config.reference_kev, config.reference_kev)
    full = data.spectrum.trimmed()
    few = rebinned(full, config.energies)
    if 1 < len(few.energies_kev) < len(full.energies_kev):
        largest = float(data.values.max())
        error = rebinning_error(full, few, largest)
        run.note(
            f"{len(few.energies_kev)} energies stand for {len(full.energies_kev)}: projections up to {largest:.3g} "
            f"change by at most {error:.2g}."
        )
    return few
