"""Sound from a point-like source in an unbounded medium: a sine network solves the Helmholtz equation.

Notation: u complex pressure (two channels), k wavenumber in rad/mm, f a Gaussian source of unit strength, width sigma.

    (laplacian + k^2) u = f          in the plane, waves leaving it (time factor exp(i omega t))

The plane is cut off by a perfectly matched layer (PML, Berenger 1994) of thickness L: coordinates are stretched by
e(x) = 1 - i a0 (l / L)^2, l the depth inside the layer, so that leaving waves decay before they reach the border:

    d/dx (e_y / e_x du/dx) + d/dy (e_x / e_y du/dy) + e_x e_y k^2 u = f

Outside the source the solution is known: u = (i / 4) exp(-k^2 sigma^2 / 2) H0^(2)(k r), which gives the printed error.
Published (Sitzmann et al. 2020, section 4.3): k = 20, a source of width 1e-4, 50,000 steps. The defaults here take a
minute or two on two CPU cores: a lower k and a wider source. In water, k = 8 rad/mm is ultrasound of 1.9 MHz.

    python examples/helmholtz.py [--steps N] [--wavenumber K]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from scipy.special import hankel2
from torch import Tensor

from scanfield.fields.calculus import jacobian
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.run import Run
from scanfield.space.domain import Axis, Domain
from scanfield.space.samples import random_points

DOMAIN = Domain((Axis("x", "mm", -1.0, 1.0), Axis("y", "mm", -1.0, 1.0)))
LAYER_MM, STRETCH = 0.5, 5.0
SIGMA_MM = 0.08


def stretch(x: Float[Tensor, " n"]) -> Complex[Tensor, " n"]:
    """e(x) = 1 - i a0 (l / L)^2; one outside the layer."""
    depth = (x.abs() - (1.0 - LAYER_MM)).clamp_min(0)
    return torch.complex(torch.ones_like(x), -STRETCH * (depth / LAYER_MM).square())


def source(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Gaussian of unit strength at the origin, 1/mm^2."""
    r2 = x[:, :2].square().sum(-1)
    return torch.exp(-r2 / (2 * SIGMA_MM**2)) / (2 * math.pi * SIGMA_MM**2)


def residual(u: Callable[[Tensor], Tensor], x: Float[Tensor, "n 3"], wavenumber: float) -> Float[Tensor, "n 2"]:
    """Left minus right side of the stretched equation, real and imaginary part."""
    ex, ey = stretch(x[:, 0]), stretch(x[:, 1])

    def flux(p: Tensor) -> Float[Tensor, "n 4"]:
        """(e_y / e_x du/dx, e_x / e_y du/dy), real parts then imaginary parts."""
        _, slope = jacobian(u, p, axes=(0, 1))
        slope = torch.complex(slope[:, 0], slope[:, 1])
        sx, sy = stretch(p[:, 0]), stretch(p[:, 1])
        along = torch.stack([sy / sx * slope[:, 0], sx / sy * slope[:, 1]], dim=-1)
        return torch.cat([along.real, along.imag], dim=-1)

    value = u(x)
    _, second = jacobian(flux, x, axes=(0, 1))
    divergence = torch.stack([second[:, 0, 0] + second[:, 1, 1], second[:, 2, 0] + second[:, 3, 1]], dim=-1)
    wave = ex * ey * wavenumber**2 * torch.complex(value[:, 0], value[:, 1])
    return divergence + torch.stack([wave.real - source(x), wave.imag], dim=-1)


def solve(wavenumber: float, steps: int, width: int, points: int, run: Run) -> Field:
    """Minimises the mean absolute residual at random points, a quarter of them near the source."""
    generator = run.generator("weights")
    network = Siren([2, width, width, width, 2], omegas=[1.5 * wavenumber, 10.0, 10.0], generator=generator)
    field = Field(DOMAIN, Identity(2), network, LinearHead()).to(run.device)
    scale = wavenumber**2

    def batches(step: int) -> Tensor:
        everywhere = random_points(DOMAIN, points - points // 4, run.generator("points"))
        near = 2 * SIGMA_MM * torch.randn(points // 4, 3, generator=run.generator("points"))
        near[:, 2] = 0.0
        return torch.cat([everywhere, near]).to(run.device)

    def loss(step: int, x: Tensor) -> dict[str, Tensor]:
        return {"equation": residual(field, x, wavenumber).abs().mean() / scale}

    groups = [ParameterGroup("field", list(field.parameters()), 2e-3, cosine(0.01))]
    minimise("helmholtz", groups, loss, batches, FitConfig(steps, clip_norm=1.0), run)
    return field


def relative_error(field: Field, wavenumber: float) -> float:
    """||u - closed form|| / ||closed form|| outside the source and the layer."""
    axis = torch.linspace(-(1 - LAYER_MM), 1 - LAYER_MM, 81)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)
    radius = points.norm(dim=-1)
    points, radius = points[radius > 4 * SIGMA_MM], radius[radius > 4 * SIGMA_MM].double()
    strength = math.exp(-((wavenumber * SIGMA_MM) ** 2) / 2)
    exact = 0.25j * strength * torch.from_numpy(hankel2(0, (wavenumber * radius).numpy()))
    with torch.no_grad():
        value = field(points.to(next(field.parameters()).device)).cpu().double()
    found = torch.complex(value[:, 0], value[:, 1])
    return float((found - exact).abs().square().sum().sqrt() / exact.abs().square().sum().sqrt())


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Helmholtz equation with a sine network, against its closed form.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--wavenumber", type=float, default=8.0, help="rad/mm")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--points", type=int, default=1024, help="random points per step")
    options = parser.parse_args(arguments)
    run = Run(observers=(lambda e: print(f"step {e['step']:5d}  residual {e['loss']['equation']:.5f}"),))
    field = solve(options.wavenumber, options.steps, options.width, options.points, run)
    error = relative_error(field, options.wavenumber)
    print(f"relative error against the closed form: {100 * error:.2f} %")
    return error


if __name__ == "__main__":
    main()
