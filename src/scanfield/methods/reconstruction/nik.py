"""NIK: neural implicit k-space for binning-free non-Cartesian cardiac MR imaging (Huang et al., IPMI 2023).

Notation: y_j measured k-space at frequency k_j, moment t_j and coil c_j, all divided by max |y|; u = k / k_max; sg
stops the gradient.

    1. field     f(t, c, u) -> C: random Fourier features, sine network                 no images, no coil maps
    2. fit       min mean (|f_j - y_j| / (sg|f_j| + epsilon))^2                         every sample at its own moment
                     + lambda mean (|f_j - g(u_j) f_j| / (sg|f_j| + epsilon))^2,        g(u) = exp(-|u|^2 / (2 sigma^2))
    3. image     x_c = F^-1 f(t, c, .) on the volume's lattice of frequencies, zero beyond those measured
    4. coils     m = sum_c conj(S_c) x_c / sum_c |S_c|^2                                at any moment t
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import constant, cosine
from scanfield.operators.calibration import sensitivities_on
from scanfield.operators.coils import combine
from scanfield.operators.fourier import centred_ifft
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry
from scanfield.tasks.result import Reconstruction, Spec
from scanfield.tasks.series import middle, on_grid, series_spec, time_axis

CHUNK = 65536
CHECKED = 16384  # held-out samples in a check


@dataclass(frozen=True)
class Config:
    """The published setting (released configuration)."""

    features: int = 256
    """random frequencies of the encoding; each gives a sine and a cosine"""
    k_reach: float | None = None
    """standard deviation of the encoding's frequencies along k, as a share of what a point at the rim of the field of
    view needs (ours); unset: 1 radian per largest frequency, as published"""
    time_sigma: float = 1.0
    """standard deviation of the encoding's frequencies along time, radians per half of the time axis"""
    coil_sigma: float = 1.0
    """the same along the coils' numbers, which run from -1 to 1"""
    time: Literal["line", "circle"] = "line"
    """the phase of a cycle as a line (published) or as a circle, whose end is its beginning (ours); seconds are one"""
    coils: Literal["input", "output"] = "input"
    """a coil is a coordinate (published), or every coil an output of its own"""
    width: int = 512
    """width of the hidden layers"""
    layers: int = 8
    """hidden layers"""
    omega: float = 30.0
    """frequency of every sine layer"""
    loss: Literal["hdr", "l2"] = "hdr"
    """relative to the size of the prediction (published), or plain squares"""
    epsilon: float = 0.01
    """floor of that size, in parts of the largest sample"""
    filter_weight: float = 0.0
    """weight lambda of the frequency-domain regulariser (0 in the released configuration; the paper's is not known)"""
    filter_sigma: float = 1.0
    """width of its Gaussian, in parts of the largest frequency"""
    steps: int = 200_000
    """optimisation steps (published: until stopped, at most 50,000 passes over the data)"""
    samples_per_step: int = 30_000
    """samples of single coils drawn per step"""
    learning_rate: float = 3e-5
    """Adam's rate"""
    schedule: Literal["constant", "cosine"] = "constant"
    """the rate over the fit: constant (published), or half a cosine down to a hundredth"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours): a smaller network that is told how large the object is and how slow time."""
        return Config(
            k_reach=0.25,
            time_sigma=0.1,
            time="circle",
            coils="output",
            width=128,
            layers=4,
            omega=10.0,
            epsilon=0.1,
            steps=2000,
            samples_per_step=16_384,
            learning_rate=5e-4,
            schedule="cosine",
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds: for tests of the plumbing, not for images."""
        return Config(
            features=48,
            k_reach=0.4,
            time="circle",
            coils="output",
            width=64,
            layers=2,
            omega=5.0,
            loss="l2",
            steps=400,
            samples_per_step=4096,
            learning_rate=3e-3,
            schedule="cosine",
        )


class KSpaceField(nn.Module):
    """k-space of every coil as a function of moment and frequency, in the unit of the data.

    Args:
        config: encoding and network.
        spec: of the scan; `facts` hold the number of coils.
    """

    coil_place: Tensor

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
        axis, count = time_axis(spec), int(spec.facts["coils"])
        self.circle = config.time == "circle" and axis.unit == "cycle"
        self.low, self.high, self.scale = axis.low, axis.high, spec.scale
        self.coils, self.as_input = count, config.coils == "input"
        self.axes = [a for a in range(3) if spec.grid.shape[a] > 1]
        self.k_max = k_max(spec.grid)
        extent = np.asarray(spec.grid.shape) * np.asarray(spec.grid.spacing_mm)
        rim = [math.pi * self.k_max * float(extent[a]) for a in self.axes]  # radians per k_max of a point at the rim
        sigma = [config.time_sigma] * (2 if self.circle else 1)
        sigma += [config.coil_sigma] if self.as_input else []
        sigma += [1.0 if config.k_reach is None else config.k_reach * r for r in rim]
        self.encoding = GaussianFourier(len(sigma), config.features, 1.0, generator=generator, factor="1")
        self.encoding.frequencies *= torch.tensor(sigma)
        widths = [self.encoding.out_dims, *[config.width] * config.layers, 2 if self.as_input else 2 * count]
        self.network = Siren(widths, omegas=[config.omega] * config.layers, generator=generator)
        self.register_buffer(
            "coil_place", torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1), persistent=False
        )

    def forward(
        self, moment: Float[Tensor, " n"], k: Float[Tensor, "n 3"], coil: Int[Tensor, " n"] | None = None
    ) -> Complex[Tensor, "n c"]:
        """Values at moments (on the axis 't') and frequencies (cycles/mm along the voxel axes).

        Args:
            coil: one coil for each of the n, as a column; None: all coils.
        """
        if self.as_input and coil is None:
            every = torch.arange(self.coils, device=k.device)
            one_each = self(
                moment.repeat_interleave(self.coils), k.repeat_interleave(self.coils, 0), every.repeat(len(k))
            )
            return one_each.reshape(len(k), self.coils)
        t = 2 * (moment - self.low) / (self.high - self.low) - 1
        parts = [(math.pi * t).cos()[:, None], (math.pi * t).sin()[:, None]] if self.circle else [t[:, None]]
        if self.as_input:
            parts.append(self.coil_place[coil][:, None])
        out = self.network(self.encoding(torch.cat([*parts, k[:, self.axes] / self.k_max], dim=1)))
        values = self.scale * torch.view_as_complex(out.reshape(len(k), -1, 2))
        return values if self.as_input or coil is None else values.gather(1, coil[:, None])


def build(config: Config, spec: Spec) -> KSpaceField:
    """Encoding, sine network, one complex number for every coil asked."""
    return KSpaceField(config, spec)


def fit(
    config: Config, data: KSpace, run: Run, *, held_out: KSpace | None = None, prior: None = None
) -> Reconstruction:
    """Fits the field to the samples where and when they were taken (steps 1 and 2)."""
    scale = float(data.values.abs().max())
    if not scale > 0:
        raise InputError("k-space is zero everywhere", where=data.source)
    geometry = data.acquisition
    reach = float(np.linalg.norm(geometry.trajectory, axis=-1).max())
    spec = series_spec(data, scale, run, {"coils": geometry.coils, "reach_per_mm": reach})
    field = build(config, spec).to(run.device)
    moment, k, y = _samples(data, run.device)
    draws = run.generator("samples")

    def batches(step: int) -> tuple[Tensor, Tensor | None]:
        """Samples, and a coil for each where the coil is an input."""
        if config.coils == "output":
            count = max(1, config.samples_per_step // geometry.coils)
            return torch.randint(len(k), (count,), generator=draws).to(run.device), None
        flat = torch.randint(y.numel(), (config.samples_per_step,), generator=draws).to(run.device)
        return flat // geometry.coils, flat % geometry.coils

    def loss(step: int, batch: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        index, coil = batch
        f = field(moment[index], k[index], coil) / scale
        target = (y[index] if coil is None else y[index, coil][:, None]) / scale
        size = f.detach().abs() + config.epsilon if config.loss == "hdr" else torch.ones_like(f.real)
        terms = {"k-space": ((f - target).abs() / size).square().mean()}
        if config.filter_weight:
            gauss = torch.exp(-(k[index] / field.k_max).square().sum(dim=1) / (2 * config.filter_sigma**2))
            terms["filter"] = ((f - gauss[:, None] * f).abs() / size).square().mean()
        return terms

    check = None if held_out is None else _relative_residual(field, held_out, run.device)
    schedule = cosine(0.01) if config.schedule == "cosine" else constant
    group = ParameterGroup("network", list(field.network.parameters()), config.learning_rate, schedule)
    maps = sensitivities_on(data, geometry.volume).cpu()
    result = Reconstruction("nik", config, spec, field, {"sensitivities": maps})
    run.show(lambda grid: render(result, grid), spec.grid, spec.unit)
    plan = FitConfig(config.steps, check_every=max(1, config.steps // 10))
    weights = {"filter": config.filter_weight} if config.filter_weight else None
    result.logs.append(minimise("fit", [group], loss, batches, plan, run, weights=weights, held_out=check))
    return result


def series(result: Reconstruction, grid: Grid, moments: np.ndarray) -> Complex[Tensor, "t n0 n1 n2"]:
    """The images at some moments (steps 3 and 4), frame by frame."""
    spec, field = result.spec, result.field
    device = next(field.parameters()).device
    k = lattice(spec.grid)
    measured = (k.norm(dim=1) <= spec.facts["reach_per_mm"] * (1 + 1e-6)).nonzero()[:, 0]
    maps = result.tensors["sensitivities"].cpu()
    images = []
    with torch.no_grad():
        for moment in np.asarray(moments, dtype=np.float64).reshape(-1):
            kspace = torch.zeros(len(maps), spec.grid.size, dtype=torch.complex64)
            for index in measured.split(CHUNK):
                when = torch.full((len(index),), float(moment), device=device)
                kspace[:, index] = field(when, k[index].float().to(device)).T.cpu()
            images.append(combine(centred_ifft(kspace.reshape(maps.shape)), maps))
    return on_grid(torch.stack(images), spec.grid, grid)


def render(result: Reconstruction, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The magnitude at the middle of the time axis."""
    return series(result, grid, middle(result.spec))[0].abs()


def predict(result: Reconstruction, data: KSpace) -> Complex[Tensor, "views coils samples"]:
    """The field along the trajectory of `data`."""
    device = next(result.field.parameters()).device
    moment, k, _ = _samples(data, device)
    with torch.no_grad():
        parts = [result.field(m, q).cpu() for m, q in zip(moment.split(CHUNK), k.split(CHUNK), strict=True)]
    views, coils, samples = data.acquisition.shape
    return torch.cat(parts).reshape(views, samples, coils).transpose(1, 2).contiguous()


def k_max(grid: Grid) -> float:
    """The highest Nyquist frequency of the volume's axes, cycles/mm."""
    return max(0.5 / s for s, n in zip(grid.spacing_mm, grid.shape, strict=True) if n > 1)


def lattice(grid: Grid) -> Float[Tensor, "n 3"]:
    """The frequencies of the volume's discrete Fourier transform, cycles/mm, in the order of its voxels."""
    axes = [(torch.arange(n).double() - n // 2) / (n * s) for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    return torch.cartesian_prod(*axes)


def _samples(data: KSpace, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Moments (n,), frequencies (n, 3) and values (n, coils) of all samples."""
    geometry: KSpaceGeometry = data.acquisition
    moment = torch.from_numpy(np.repeat(geometry.when.view, geometry.shape[2])).float()
    k = torch.from_numpy(geometry.trajectory).float().flatten(0, 1)
    y = data.values.transpose(1, 2).flatten(0, 1)
    return moment.to(device), k.to(device), y.to(device)


def _relative_residual(field: KSpaceField, data: KSpace, device: torch.device) -> Any:
    """A function: the relative RMS of the field on data that the fit does not see."""
    moment, k, y = _samples(data, device)
    every = max(1, len(k) // CHECKED)
    moment, k, y = moment[::every], k[::every], y[::every]
    return lambda: float((field(moment, k) - y).norm() / y.norm())
