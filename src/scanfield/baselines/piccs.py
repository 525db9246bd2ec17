"""Prior image constrained compressed sensing: the classical rival of methods that take a prior image.

    x = argmin_{x >= 0}  1/2 ||A x - y||^2 + weight [alpha TV(x - p) + (1 - alpha) TV(x)]

p is the prior; A, y, TV and their units as in `baselines.tv`. After G.-H. Chen, J. Tang, S. Leng, Med. Phys.
35:660-663, 2008, with the data as a term instead of a constraint.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scanfield.baselines.tv import TvSolution, TvTerm, choose, solve_terms
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.operators.resample import resample
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

ALPHAS = (0.5, 0.9)
"""Shares of the prior that are tried: half and half, and the published emphasis on the prior (0.91)."""


def reconstruct(
    measurement: Measurement[ProjectionGeometry], grid: Grid, prior: Scan, *, iterations: int = 200
) -> Float[Tensor, "n0 n1 n2"]:
    """Attenuation in 1/mm; weight and alpha are those that predict held-out views best.

    Args:
        prior: attenuation in 1/mm, resampled onto `grid`.
    """
    image = resample(prior.values, prior.grid, grid).to(measurement.values.device)
    weight, alpha = choose_setting(measurement, grid, image)
    return solve(measurement, grid, image, weight, alpha, iterations=iterations).volume


def choose_setting(
    measurement: Measurement[ProjectionGeometry], grid: Grid, image: Float[Tensor, "n0 n1 n2"], *, iterations: int = 100
) -> tuple[float, float]:
    """(weight in mm, alpha) whose reconstruction from nine tenths of the views predicts the remaining views best."""

    def settings(weights: tuple[float, ...]) -> list[tuple[float, float]]:
        return [(weight, alpha) for weight in weights for alpha in ALPHAS]

    return choose(settings, lambda setting: _terms(image, *setting), measurement, grid, iterations=iterations)


def solve(
    measurement: Measurement[ProjectionGeometry],
    grid: Grid,
    image: Float[Tensor, "n0 n1 n2"],
    weight: float,
    alpha: float,
    *,
    iterations: int = 200,
) -> TvSolution:
    """Minimises the objective of the module's docstring for a prior `image` on `grid`, from x = 0.

    Args:
        alpha: share of the prior, at least 0 and below 1.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is at least 0 and below 1, got {alpha}")
    projector = VoxelProjector(measurement.acquisition, grid, device=measurement.values.device)
    return solve_terms(projector, measurement.values, _terms(image, weight, alpha), iterations)


def _terms(image: Tensor, weight: float, alpha: float) -> list[TvTerm]:
    own = TvTerm((1 - alpha) * weight)
    return [own] if alpha == 0 else [own, TvTerm(alpha * weight, image)]
