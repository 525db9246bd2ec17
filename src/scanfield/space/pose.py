"""Rigid, similarity and affine maps of world points, as modules with parameters.

Notation: x world point (mm, RAS+), c a fixed centre (mm), t translation (mm), and

    x' = A (x - c) + c + t,    A = R S K

with R the rotation by a rotation vector (axis times angle, rad), S = diag(exp(log_scale)), and K = 1 + shear above the
diagonal. All parameters zero is the identity. Scale and shear act first, then the rotation about c, then t. On a slice
R, S, K and t act along two directions of the slice and leave its normal alone: SE(2) and its kin, in the world.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.kernels.jvp import Streams
from scanfield.space.domain import SPATIAL, Domain
from scanfield.space.grid import Grid

Kind = Literal["rigid", "similarity", "affine"]
UPPER = (np.array([0, 0, 1]), np.array([1, 2, 2]))  # where K holds its three shears


def spatial_directions(domain: Domain) -> np.ndarray:
    """(k, 3) unit vectors of a domain's spatial axes in the world: three for a volume, two for a slice."""
    assert domain.frame is not None
    return np.array([domain.frame[SPATIAL.index(axis.name), :3] for axis in domain.axes if axis.name in SPATIAL])


def rotation_matrix(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rotations by rotation vectors (rad): R = 1 + a V + b V^2, V x = v x x (Rodrigues), a = sin r / r, b = (1 - cos r)
    / r^2, r = |v|. Near r = 0 both are power series in r^2, so all derivatives exist there too."""
    square = vector.square().sum(-1)
    small = square < 1e-2
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    a = torch.where(small, _series(square, (6, 20, 42, 72)), angle.sin() / angle)
    b = torch.where(small, _series(square, (12, 30, 56, 90)) / 2, 2 * ((angle / 2).sin() / angle).square())
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    one = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return one + a[..., None, None] * cross + b[..., None, None] * (cross @ cross)


class Pose(nn.Module):
    """A rigid, similarity or affine map of world points, the identity at first.

    Args:
        kind: 'rigid' (rotation, translation), 'similarity' (one log-scale more), or 'affine' (a log-scale per
            direction and shears).
        centre_mm: c, the point that rotation, scale and shear keep; best the middle of the object.
        directions: (k, 3) orthonormal world directions along which the parameters are counted: two for a slice
            (`spatial_directions` of its domain), by default x, y, z.

    Attributes:
        rotation: (3,) rotation vector, or (1,) angle about the normal of a slice; rad.
        translation: (k,) mm.
        log_scale: (1,) or (k,), or None for a rigid map.
        shear: (3,): xy, xz, yz, or (1,) on a slice; None unless affine.

    Raises:
        InputError: a centre that is not finite, or directions that are not orthonormal.
    """

    centre: Tensor
    basis: Tensor

    def __init__(
        self,
        kind: Kind = "rigid",
        *,
        centre_mm: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
        directions: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        centre = np.asarray(centre_mm, dtype=np.float64)
        if centre.shape != (3,) or not np.isfinite(centre).all():
            raise InputError(f"the centre of a pose must be three finite coordinates in mm, got {centre.tolist()}")
        basis = _basis(np.eye(3) if directions is None else np.asarray(directions, dtype=np.float64))
        self.kind = kind
        self.planar = directions is not None and len(directions) == 2
        self.register_buffer("centre", torch.tensor(centre, dtype=torch.float32))
        self.register_buffer("basis", torch.tensor(basis, dtype=torch.float32))
        k = 2 if self.planar else 3
        self.rotation = nn.Parameter(torch.zeros(1 if self.planar else 3))
        self.translation = nn.Parameter(torch.zeros(k))
        scales = {"rigid": 0, "similarity": 1, "affine": k}[kind]
        self.log_scale = nn.Parameter(torch.zeros(scales)) if scales else None
        self.shear = nn.Parameter(torch.zeros(1 if self.planar else 3)) if kind == "affine" else None

    @staticmethod
    def of_matrix(
        matrix: np.ndarray,
        kind: Kind = "affine",
        *,
        centre_mm: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
        directions: np.ndarray | None = None,
        tolerance: float = 1e-4,
    ) -> Pose:
        """The pose that a 4x4 world matrix (mm to mm, RAS+) is, to continue from it.

        Raises:
            InputError: not a finite 4x4 affine matrix, a mirroring or singular one, or one that a pose of this kind
                (or of a slice) cannot be; `tolerance` is relative for the linear part, in mm for the translation.
        """
        pose = Pose(kind, centre_mm=centre_mm, directions=directions)
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise InputError("a transform must be a finite 4x4 matrix with last row 0 0 0 1")
        basis, centre = pose.basis.double().numpy(), np.asarray(centre_mm, dtype=np.float64)
        linear = basis.T @ matrix[:3, :3] @ basis
        shift = basis.T @ (matrix[:3, :3] @ centre + matrix[:3, 3] - centre)
        if np.linalg.det(linear) <= 1e-12:
            raise InputError("the transform mirrors or flattens space: its determinant must be positive")
        rotation, upper = np.linalg.qr(linear)
        sign = np.sign(np.diag(upper))
        rotation, upper = rotation * sign, upper * sign[:, None]
        scale = np.diag(upper)
        shear = (upper / scale[:, None])[UPPER]
        vector = Rotation.from_matrix(rotation).as_rotvec()
        wanted = [(pose.rotation, vector), (pose.translation, shift), (pose.shear, shear)]
        if kind == "similarity":
            k = 2 if pose.planar else 3
            wanted.append((pose.log_scale, np.full(1, np.log(scale[:k]).mean())))
        else:
            wanted.append((pose.log_scale, np.log(scale)))
        with torch.no_grad():
            for parameter, values in wanted:
                if parameter is not None:
                    own = values[2:] if pose.planar and parameter is pose.rotation else values[: len(parameter)]
                    parameter.copy_(torch.from_numpy(own))
            same = copy.deepcopy(pose).double().matrix().numpy()
        linear_error = np.abs(same[:3, :3] - matrix[:3, :3]).max() / max(1.0, np.abs(matrix[:3, :3]).max())
        shift_error = np.abs((same - matrix) @ [*centre, 1.0]).max()
        if linear_error > tolerance or shift_error > tolerance * max(1.0, np.abs(shift).max()):
            where = " within the slice" if pose.planar else ""
            raise InputError(f"the transform is not {'an' if kind == 'affine' else 'a'} {kind} one{where}")
        return pose

    def linear(self) -> Float[Tensor, "3 3"]:
        """A."""
        local = self.rotation
        vector = torch.cat([local.new_zeros(2), local]) if self.planar else local
        a = rotation_matrix(vector)
        if self.log_scale is not None:
            k = len(self.translation)
            a = a * torch.cat([self.log_scale.expand(k).exp(), a.new_ones(3 - k)])
        if self.shear is not None:
            unit = torch.eye(3, dtype=a.dtype, device=a.device)
            where = tuple(torch.from_numpy(index[: len(self.shear)]).to(a.device) for index in UPPER)
            a = a @ unit.index_put(where, self.shear)
        return self.basis @ a @ self.basis.T

    def shift(self) -> Float[Tensor, " 3"]:
        """t, as a world vector."""
        return self.basis[:, : len(self.translation)] @ self.translation

    def matrix(self) -> Float[Tensor, "4 4"]:
        """x -> x' as a 4x4 world matrix, on the CPU or wherever the parameters are."""
        a = self.linear()
        offset = self.centre + self.shift() - a @ self.centre
        last = offset.new_tensor([[0, 0, 0, 1]])
        return torch.cat([torch.cat([a, offset[:, None]], dim=1), last])

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        centre = self.centre.to(x.dtype)
        return (x - centre) @ self.linear().T.to(x.dtype) + (centre + self.shift().to(x.dtype))

    jet_order = 2

    def jets(self, x: Float[Tensor, "s n 3"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `kernels.jvp`."""
        return torch.cat([self(x[:1]), x[1:] @ self.linear().T.to(x.dtype)])

    def inverse(self) -> InversePose:
        """x' -> x, with the same parameters: it follows them when they change."""
        return InversePose(self)

    def align(self, fixed_mm: Float[Tensor, " 3"], moving_mm: Float[Tensor, " 3"]) -> None:
        """Sets the translation such that the point `fixed_mm` goes to `moving_mm`, such as two centres of mass; on a
        slice, as near to it as a shift within the slice can."""
        with torch.no_grad():
            centre = self.centre.double()
            turned = self.linear().double() @ (fixed_mm.to(centre) - centre) + centre
            local = self.basis.double().T @ (moving_mm.to(centre) - turned)
            self.translation.copy_(local[: len(self.translation)])


class InversePose(nn.Module):
    """The inverse of a pose; made by `Pose.inverse`."""

    def __init__(self, pose: Pose) -> None:
        super().__init__()
        self.pose = pose

    def matrix(self) -> Float[Tensor, "4 4"]:
        """x' -> x as a 4x4 world matrix."""
        return torch.linalg.inv(self.pose.matrix())

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        centre = self.pose.centre.to(x.dtype)
        return (x - (centre + self.pose.shift().to(x.dtype))) @ self._linear(x).T + centre

    jet_order = 2

    def jets(self, x: Float[Tensor, "s n 3"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `kernels.jvp`."""
        return torch.cat([self(x[:1]), x[1:] @ self._linear(x).T])

    def inverse(self) -> Pose:
        """The pose itself."""
        return self.pose

    def _linear(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(self.pose.linear()).to(x.dtype)


def centre_of_mass(
    values: Float[Tensor, "n0 n1 n2"], grid: Grid, mask: Bool[Tensor, "n0 n1 n2"] | None = None
) -> Float[Tensor, " 3"]:
    """World position (mm, float64) of the mean of voxel centres, weighted by how far values exceed their minimum.

    Args:
        mask: only voxels inside count, and the minimum is theirs.

    Raises:
        InputError: an empty mask, a shape that does not fit the grid, or a constant image.
    """
    if values.shape != grid.shape or (mask is not None and mask.shape != grid.shape):
        raise InputError(f"values and mask must have the grid's shape {grid.shape}, got {tuple(values.shape)}")
    inside = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    if not bool(inside.any()):
        raise InputError("the mask is empty: there is no centre of mass", fix="give a mask with at least one voxel")
    weight = torch.where(inside, values.double() - values[inside].min().double(), 0.0)
    if not float(weight.sum()) > 0:
        raise InputError("the image is constant: it has no centre of mass", fix="align by the centres of the grids")
    middle = [
        (weight.sum(dim=[other for other in range(3) if other != k]) * torch.arange(n, device=weight.device)).sum()
        for k, n in enumerate(grid.shape)
    ]
    index = torch.stack(middle) / weight.sum()
    affine = torch.tensor(grid.affine, device=weight.device)
    return affine[:3, :3] @ index + affine[:3, 3]


def _series(square: Tensor, divisors: Sequence[int]) -> Tensor:
    """1 - s/d0 (1 - s/d1 (1 - ...)): a power series in s = r^2, nested."""
    total = torch.ones_like(square)
    for divisor in reversed(divisors):
        total = 1 - square / divisor * total
    return total


def _basis(directions: np.ndarray) -> np.ndarray:
    """(3, 3) with the directions as columns; two are completed by their normal."""
    count = len(directions)
    if (
        directions.shape not in ((2, 3), (3, 3))
        or not np.isfinite(directions).all()
        or not np.allclose(directions @ directions.T, np.eye(count), atol=1e-5)
    ):
        raise InputError(f"a pose needs two or three orthonormal directions in the world, got {directions.tolist()}")
    rows = directions if count == 3 else np.vstack([directions, np.cross(directions[0], directions[1])])
    return np.ascontiguousarray(rows.T)
