"""A pulse that spreads in the plane: a sine network solves the wave equation from its initial state.

Notation: p pressure, c speed of sound in mm/us, t time in us.

    d^2 p / dt^2 = c^2 laplacian p,      p(x, 0) = g(x) = exp(-|x|^2 / (2 sigma^2)),      dp/dt(x, 0) = 0

Published (Sitzmann et al. 2020, supplement): the time window grows during the fit, so that the initial state spreads
forwards in time. The solution is known as an integral over spatial frequencies q,

    p(r, t) = sigma^2 int_0^inf exp(-q^2 sigma^2 / 2) cos(c q t) J0(q r) q dq

which gives the printed error, over all places and times that the initial state of the box [-1, 1] mm determines
(|x| and |y| up to 1 - c t): nothing is said about what enters through its border. The defaults take a minute or two on
two CPU cores; c = 1.5 mm/us is water.

    python examples/wave.py [--steps N]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import j0
from torch import Tensor

from scanfield.fields.calculus import laplacian, value_and_gradient
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

SPEED_MM_PER_US, SIGMA_MM, END_US = 1.5, 0.12, 0.25
DOMAIN = Domain((Axis("x", "mm", -1.0, 1.0), Axis("y", "mm", -1.0, 1.0), Axis("t", "us", -END_US, END_US)))
SPACE, TIME = (0, 1), (3,)  # columns of a world point (x, y, z, t)


def initial(x: Float[Tensor, "n 4"]) -> Float[Tensor, "n 1"]:
    """g(x)."""
    return torch.exp(-x[:, :2].square().sum(-1, keepdim=True) / (2 * SIGMA_MM**2))


def exact(radius_mm: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """The solution by quadrature over spatial frequencies up to 9 / sigma."""
    q = np.linspace(0, 9 / SIGMA_MM, 2000)
    r, t = radius_mm[:, None], time_us[:, None]
    integrand = np.exp(-((q * SIGMA_MM) ** 2) / 2) * np.cos(SPEED_MM_PER_US * q * t) * j0(q * r) * q
    return np.asarray(SIGMA_MM**2 * np.trapezoid(integrand, q, axis=1))


def solve(steps: int, width: int, points: int, run: Run) -> Field:
    """Minimises the equation's residual at random points of a growing time window, and the initial state's at t = 0."""
    network = Siren([3, width, width, width, 1], omegas=[10.0] * 3, generator=run.generator("weights"))
    field = Field(DOMAIN, Identity(3), network, LinearHead()).to(run.device)
    rate = (SPEED_MM_PER_US / SIGMA_MM) ** 2  # order of magnitude of d^2 p / dt^2

    def batches(step: int) -> tuple[Tensor, Tensor]:
        window = END_US * min(1.0, (step + 1) / (0.6 * steps))
        inside = random_points(DOMAIN, points, run.generator("points"))
        inside[:, 3] = inside[:, 3].abs() * window / END_US
        start = random_points(DOMAIN, points // 2, run.generator("points"))
        start[: points // 4, :2] *= 3 * SIGMA_MM  # half of them where the pulse is
        start[:, 3] = 0.0
        return inside.to(run.device), start.to(run.device)

    def loss(step: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inside, start = batch
        in_space = laplacian(field, inside, axes=SPACE)[2]
        in_time = laplacian(field, inside, axes=TIME)[2]
        value, velocity = value_and_gradient(field, start, axes=TIME)
        return {
            "equation": (in_time - SPEED_MM_PER_US**2 * in_space).abs().mean() / rate,
            "value": (value - initial(start)).abs().mean(),
            "velocity": velocity.abs().mean() / rate**0.5,
        }

    groups = [ParameterGroup("field", list(field.parameters()), 2e-3, cosine(0.01))]
    weights = {"value": 10.0, "velocity": 1.0}
    minimise("wave", groups, loss, batches, FitConfig(steps, clip_norm=1.0), run, weights=weights)
    return field


def relative_error(field: Field) -> float:
    """||p - exact|| / ||exact|| over all points that the initial state determines."""
    generator = torch.Generator().manual_seed(1)
    x = random_points(DOMAIN, 4000, generator)
    x[:, 3] = x[:, 3].abs()
    x[:, :2] *= 1 - SPEED_MM_PER_US * x[:, 3:]
    truth = exact(x[:, :2].norm(dim=-1).double().numpy(), x[:, 3].double().numpy())
    with torch.no_grad():
        found = field(x.to(next(field.parameters()).device)).cpu()[:, 0].double().numpy()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Wave equation with a sine network, against its exact solution.")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--points", type=int, default=1024, help="random points per step")
    options = parser.parse_args(arguments)
    run = Run(observers=(lambda e: print(f"step {e['step']:5d}  residual {e['loss']['equation']:.5f}"),))
    field = solve(options.steps, options.width, options.points, run)
    error = relative_error(field)
    print(f"relative error against the exact solution: {100 * error:.2f} %")
    return error


if __name__ == "__main__":
    main()
