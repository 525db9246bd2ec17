"""Inverses of maps that do not know theirs, with their residual.

Notation: phi maps world points to world points (mm), x* solves phi(x*) = y, r = y - phi(x) is the residual of x in mm,
J = d phi / d x.

    fixed point:  x <- x + r          (Chen et al. 2008; converges where the displacement's gradient is below 1 in norm)
    Newton:       x <- x + s J^-1 r   (s = 1, 1/2, ... until |r| falls; converges quadratically near x*)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scanfield.fields import calculus

Solver = Literal["newton", "fixed-point"]
HALVINGS = 8
# Newton steps that carry the graph, from a solution: after m of them derivatives up to order 2^m - 1 are right.
GRAPH_STEPS = 2


@dataclass(frozen=True, eq=False)
class Inversion:
    """Solutions of phi(x) = y.

    Args:
        x: (*n, 3) mm, the best found for every point.
        residual_mm: (*n), |phi(x) - y|.
        converged: (*n), where the residual is within the tolerance. Elsewhere phi may never reach y.
        iterations: how many were made.
    """

    x: Float[Tensor, "*n 3"]
    residual_mm: Float[Tensor, "*n"]
    converged: Bool[Tensor, "*n"]
    iterations: int


def invert(
    phi: nn.Module,
    y: Float[Tensor, "*n 3"],
    *,
    start: Float[Tensor, "*n 3"] | None = None,
    solver: Solver = "newton",
    tolerance_mm: float = 1e-3,
    iterations: int = 50,
) -> Inversion:
    """For every y a point x with phi(x) = y; without gradients (`Inverse` has them).

    Where phi folds there are several such points, and which one is found depends on `start`.

    Args:
        start: first guess, by default y itself.
        tolerance_mm: residual at which a point is done. Coordinates of some 100 mm in float32 allow about 1e-4.
        iterations: at most. Newton's method gives a point up earlier when no shorter step brings it closer.
    """
    if not tolerance_mm > 0 or iterations < 0:
        raise ValueError(f"cannot invert to {tolerance_mm} mm in {iterations} iterations")
    with torch.no_grad():
        target = y.reshape(-1, 3)
        x = (y if start is None else start).reshape(-1, 3).clone()
        residual = target - phi(x)
        done = 0
        if solver == "newton":
            size = _size(residual)
            todo = (size > tolerance_mm).nonzero()[:, 0]
            while len(todo) and done < iterations:
                x[todo], size[todo], moved = _newton(phi, x[todo], target[todo], size[todo])
                todo = todo[moved & (size[todo] > tolerance_mm)]
                done += 1
        else:
            size, best = _size(residual), x.clone()
            todo = (size > tolerance_mm).nonzero()[:, 0]
            while len(todo) and done < iterations:
                x[todo] += residual[todo]
                residual[todo] = target[todo] - phi(x[todo])
                new = _size(residual[todo])
                closer = new < size[todo]
                best[todo[closer]], size[todo[closer]] = x[todo[closer]], new[closer]
                todo = todo[(new > tolerance_mm) & new.isfinite()]
                done += 1
            x = best
    shape = y.shape[:-1]
    return Inversion(x.reshape(y.shape), size.reshape(shape), (size <= tolerance_mm).reshape(shape), done)


class Inverse(nn.Module):
    """The inverse of a map as a map, with derivatives in its points and in the map's parameters, up to the third order.

    Points that do not converge keep their best guess and get no gradient; `invert` says which they are.

    Args:
        phi: the map to invert.
        solver, tolerance_mm, iterations: see `invert`.
    """

    def __init__(
        self, phi: nn.Module, *, solver: Solver = "newton", tolerance_mm: float = 1e-3, iterations: int = 50
    ) -> None:
        super().__init__()
        self.phi = phi
        self.solver, self.tolerance_mm, self.iterations = solver, tolerance_mm, iterations

    def forward(self, y: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        found = invert(self.phi, y, solver=self.solver, tolerance_mm=self.tolerance_mm, iterations=self.iterations)
        if not torch.is_grad_enabled() or not bool(found.converged.any()):
            return found.x
        # Implicit differentiation: Newton steps from the solution hardly move it, but carry its derivatives.
        x = found.x[found.converged]
        for _ in range(GRAPH_STEPS):
            value, matrix = calculus.jacobian(self.phi, x)
            x = x + torch.linalg.solve(matrix, y[found.converged] - value)
        return found.x.index_put((found.converged,), x)

    def inverse(self) -> nn.Module:
        """The map itself."""
        return self.phi


def _size(residual: Tensor) -> Tensor:
    """Length of residuals (mm), infinite where a map gave no finite point."""
    return residual.norm(dim=-1).nan_to_num(nan=torch.inf)


def _newton(phi: nn.Module, x: Tensor, target: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step with backtracking: new points, their residuals (mm), and which points moved."""
    value, matrix = calculus.jacobian(phi, x)
    residual = target - value
    step = torch.linalg.solve_ex(matrix, residual)[0]
    # A singular Jacobian gives no direction; the residual itself is one.
    step = torch.where(step.isfinite().all(-1, keepdim=True), step, residual)
    moved = torch.zeros_like(size, dtype=torch.bool)
    todo = torch.arange(len(x), device=x.device)
    for k in range(HALVINGS):
        trial = x[todo] + 0.5**k * step[todo]
        new = _size(target[todo] - phi(trial))
        closer = new < size[todo]
        taken = todo[closer]
        x[taken], size[taken], moved[taken] = trial[closer], new[closer], True
        todo = todo[~closer]
        if not len(todo):
            break
    return x, size, moved
