"""How a map of points deforms what it maps. Means over points, without weights.

Notation: phi(x) = x + u(x) maps world points in mm; J = d phi / d x and grad u = J - 1 are (*n, k, k) with
J[..., i, j] = d phi_i / d x_j, in mm per mm, so dimensionless; H is (*n, k, k, k) with H[..., c, i, j] =
d^2 u_c / d x_i d x_j in 1/mm. `fields.calculus` gives them. k = 3 in a volume.

A slice has k = 2: its map leaves the normal alone, and what counts happens in the plane. `in_plane` takes derivatives
of world coordinates there. Determinants are the same before and after; areas and means over directions are not.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scanfield.fields.calculus import determinant

NEAR_FOLD = 1e-3  # determinants nearer to zero than this count as this far from it where they stand in a denominator


def in_plane(derivative: Float[Tensor, "*n"], directions: Float[Tensor, "k 3"], order: int) -> Float[Tensor, "*m"]:
    """Derivatives of a vector field in world axes (..., 3, 3) or (..., 3, 3, 3), along orthonormal `directions`.

    Args:
        directions: (k, 3), the axes of a slice (`space.pose.spatial_directions`).
        order: 1 for Jacobians -> (..., k, k), 2 for Hessians -> (..., k, k, k).
    """
    if order not in (1, 2) or derivative.ndim <= order or any(n != 3 for n in derivative.shape[-order - 1 :]):
        raise ValueError(f"expected {order + 1} trailing axes of 3 world coordinates, got {tuple(derivative.shape)}")
    p = directions.to(derivative)
    if order == 1:
        return p @ derivative @ p.T
    return torch.einsum("ac,...cij,di,ej->...ade", p, derivative, p, p)


def volume_change(jacobian: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean |det J - 1| (IDIR, Wolterink et al. 2022): tissue keeps its volume. Dimensionless."""
    return (_determinant(jacobian) - 1).abs().mean()


def folding(jacobian: Float[Tensor, "*n k k"], least: float = 0.0) -> Float[Tensor, ""]:
    """mean max(0, least - det J): nothing is turned inside out (Mok & Chung 2020, with `least` = 0).

    Dimensionless. `least` > 0 also costs what is compressed to less than that part of its volume.
    """
    return functional.relu(least - _determinant(jacobian)).mean()


def length_change(displacement_gradient: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean |grad u|_F^2 / 2, the length term of the hyperelastic energy (Burger et al. 2013). Dimensionless."""
    return diffusion(displacement_gradient) / 2


def area_change(jacobian: Float[Tensor, "*n 3 3"]) -> Float[Tensor, ""]:
    """mean of sum_j max(0, sum_i (cof J)_ij^2 - 1)^2: no surface grows (Burger et al. 2013, the convex phi_c).

    Column j of cof J is the normal of an image of a unit square perpendicular to x_j, its length the square's new area.
    Dimensionless. A slice has no such term: its areas are its volumes.
    """
    _square(jacobian, sizes=(3,))
    growth = functional.relu(_cofactor(jacobian).square().sum(-2) - 1)
    return growth.square().sum(-1).mean()


def volume_barrier(jacobian: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean ((v - 1)^2 / v)^2, v = det J: symmetric in v and 1/v, infinite at zero (Burger et al. 2013, phi_v).

    Dimensionless. The paper sets it to infinity for v <= 0. Here, as in IDIR, the formula goes on there, so that a fold
    costs but can be undone; |v| < 1e-3 in the denominator counts as 1e-3.
    """
    v = _determinant(jacobian)
    return ((v - 1).square().square() / v.square().clamp_min(NEAR_FOLD**2)).mean()


def hyperelastic(
    jacobian: Float[Tensor, "*n k k"], *, length: float = 1.0, area: float = 1.0, volume: float = 1.0
) -> Float[Tensor, ""]:
    """length |grad u|^2 / 2 + area phi_c(cof J) + volume phi_v(det J) (Burger, Modersitzki & Ruthotto 2013, SIAM J.
    Sci. Comput. 35, B132). Dimensionless; in a plane without the area term, as there. The length term is not invariant
    under rotations, the other two are."""
    k = _square(jacobian)
    one = torch.eye(k, dtype=jacobian.dtype, device=jacobian.device)
    total = length * length_change(jacobian - one) + volume * volume_barrier(jacobian)
    return total + area * area_change(jacobian) if k == 3 else total


def bending(hessian: Float[Tensor, "*n k k k"]) -> Float[Tensor, ""]:
    """mean over points of sum_c sum_ij (d^2 u_c / d x_i d x_j)^2, in 1/mm^2: mixed derivatives count twice (Rueckert et
    al. 1999). Affine maps cost nothing, and rotating the world changes nothing."""
    return hessian.square().sum(dim=(-1, -2, -3)).mean()


def near_isometry(jacobian: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean |J^T J - 1|_F^2: as rigid as possible. Zero exactly for (proper or mirrored) local rotations; four times the
    square of the Green-St. Venant strain (Ciarlet 1988). Dimensionless."""
    k = _square(jacobian)
    one = torch.eye(k, dtype=jacobian.dtype, device=jacobian.device)
    return (jacobian.mT @ jacobian - one).square().sum(dim=(-1, -2)).mean()


def diffusion(gradient: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean |grad u|_F^2 (Fischer & Modersitzki 2002), dimensionless; of a velocity in mm/s: 1/s^2."""
    return gradient.square().sum(dim=(-1, -2)).mean()


def divergence(gradient: Float[Tensor, "*n k k"]) -> Float[Tensor, ""]:
    """mean (div u)^2, div u = trace of grad u: a velocity without it moves matter and neither makes nor destroys any
    (Mansi et al. 2011). Dimensionless; of a velocity in mm/s: 1/s^2."""
    _square(gradient)
    return gradient.diagonal(dim1=-2, dim2=-1).sum(-1).square().mean()


def _square(matrix: Tensor, sizes: tuple[int, ...] = (2, 3)) -> int:
    """k of k x k matrices."""
    k = matrix.shape[-1] if matrix.ndim >= 2 else 0
    if k not in sizes or matrix.shape[-2] != k:
        wanted = " or ".join(f"{n}x{n}" for n in sizes)
        raise ValueError(f"expected {wanted} matrices, got shape {tuple(matrix.shape)}")
    return k


def _determinant(matrix: Tensor) -> Tensor:
    _square(matrix)
    return determinant(matrix)


def _cofactor(matrix: Tensor) -> Tensor:
    """cof J = det(J) J^-T of 3x3 matrices: its columns are cross products of the other two columns."""
    a, b, c = matrix.unbind(-1)
    return torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
