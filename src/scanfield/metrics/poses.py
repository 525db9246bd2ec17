"""How far estimated poses of slices are from the true ones, but for the rigid motion that no data can determine.

Notation: T_i true and E_i estimated pose of slice i (slice frame -> world, 4x4); p_ij the middle and the four ends of
two perpendicular lines of half-length r in slice i. A reconstruction may lie anywhere in the world: if every pose and
the volume move together, the slices stay the same. The gauge

    G = argmin over rigid G of  sum_ij |G T_i p_ij - E_i p_ij|^2           (Kabsch 1976, in closed form)

is removed first. Then, of every slice,

    rotation        angle of (G R_i)^T Q_i, R_i and Q_i the rotations of T_i and E_i          degrees
    translation     |G T_i 0 - E_i 0|, of the middle of the slice                             mm
    displacement    root mean square over j of |G T_i p_ij - E_i p_ij|                        mm
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError

RADIUS_MM = 40.0  # of the points, about that of a fetal brain


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of n slices.

    Args:
        rotation_deg, translation_mm, displacement_mm: (n,) see the module.
        gauge: (4, 4) G, world of the true poses -> world of the estimated ones.
    """

    rotation_deg: Float[Tensor, " n"]
    translation_mm: Float[Tensor, " n"]
    displacement_mm: Float[Tensor, " n"]
    gauge: Float[Tensor, "4 4"]

    def summary(self) -> dict[str, float]:
        """Means over the slices."""
        names = ("rotation_deg", "translation_mm", "displacement_mm")
        return {name: float(vars(self)[name].mean()) for name in names}


def pose_errors(
    estimated: Float[Tensor, "n 4 4"], truth: Float[Tensor, "n 4 4"], *, radius_mm: float = RADIUS_MM
) -> PoseErrors:
    """Errors of poses; the gauge is that of all slices given.

    Args:
        radius_mm: r, about that of what the slices show.

    Raises:
        InputError: see `gauge`.
    """
    g = gauge(estimated, truth, radius_mm=radius_mm)
    e, t = estimated.double().cpu(), g @ truth.double().cpu()
    p = _points(radius_mm)
    gap = _apply(t, p) - _apply(e, p)
    turn = t[:, :3, :3].transpose(1, 2) @ e[:, :3, :3]
    # From sine and cosine: the arc cosine alone knows no angle below a hundredth of a degree.
    axial = torch.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]])
    angle = torch.atan2(axial.norm(dim=0), turn.diagonal(dim1=1, dim2=2).sum(-1) - 1)
    return PoseErrors(angle.rad2deg(), gap[:, 0].norm(dim=-1), gap.square().sum(-1).mean(-1).sqrt(), g)


def gauge(
    estimated: Float[Tensor, "n 4 4"], truth: Float[Tensor, "n 4 4"], *, radius_mm: float = RADIUS_MM
) -> Float[Tensor, "4 4"]:
    """G, the rigid motion (float64) that brings the world of the true poses to that of the estimated ones.

    Raises:
        InputError: there is no pose, not as many of both kinds, or the points' radius is not positive.
    """
    if estimated.shape != truth.shape or len(truth) == 0:
        raise InputError(f"as many estimated as true poses are needed, got {len(estimated)} and {len(truth)}")
    if not 0 < radius_mm < float("inf"):
        raise InputError(f"the radius of the points must be a positive number of mm, got {radius_mm}")
    p = _points(radius_mm)
    source, target = (_apply(poses.double().cpu(), p).reshape(-1, 3).numpy() for poses in (truth, estimated))
    middle, goal = source.mean(axis=0), target.mean(axis=0)
    left, _, right = np.linalg.svd((source - middle).T @ (target - goal))
    turn = right.T @ np.diag([1.0, 1.0, np.sign(np.linalg.det(right.T @ left.T))]) @ left.T
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(turn)
    matrix[:3, 3] = torch.from_numpy(goal - turn @ middle)
    return matrix


def _points(radius_mm: float) -> Float[Tensor, "5 4"]:
    unit = [[0.0, 0, 0, 1], [1, 0, 0, 1], [-1, 0, 0, 1], [0, 1, 0, 1], [0, -1, 0, 1]]
    return torch.tensor(unit, dtype=torch.float64) * torch.tensor([radius_mm] * 3 + [1.0], dtype=torch.float64)


def _apply(poses: Float[Tensor, "n 4 4"], p: Float[Tensor, "k 4"]) -> Float[Tensor, "n k 3"]:
    return (p @ poses.transpose(1, 2))[..., :3]
