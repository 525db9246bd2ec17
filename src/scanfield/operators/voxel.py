"""A voxel projector with its exact adjoint, for methods and rivals that reconstruct a volume.

The sum is Joseph's (`kernels.joseph`): linear interpolation in every voxel plane that a ray crosses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from scanfield.errors import InputError
from scanfield.kernels import joseph
from scanfield.operators.voxel_rays import VoxelRays, first_row, stacked_rows, voxel_rays
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

RAYS_PER_CHUNK = 2**20


@final
class VoxelProjector:
    """Line integrals of a voxel volume (1/mm -> dimensionless) and the exact transpose of that map.

    If parallel or fan rays run within the grid's slices, one two-dimensional system serves all slices. It is stored as
    a sparse matrix and its transpose when both fit into `memory_gib` (16 bytes per non-zero, at most 2 non-zeros per
    ray and plane). Where rays cross slices, as in a cone beam, only the rays are kept (48 bytes each, if they fit) and
    the sum is computed anew at every call; without the C++ kernel, a CPU stores this matrix too (4 non-zeros per ray
    and plane) where it fits. Both maps are each other's autograd backward, to any order.

    Args:
        geometry: the scan.
        grid: the voxels, with any affine.
        device: where the matrix lives and the products run.
        memory_gib: bound on what is stored between calls; 0 stores nothing.
    """

    def __init__(
        self,
        geometry: ProjectionGeometry,
        grid: Grid,
        *,
        device: torch.device | str = "cpu",
        memory_gib: float = 4.0,
    ) -> None:
        self.geometry, self.grid = geometry, grid
        self._device = torch.device(device)
        self._stack = stacked_rows(geometry, grid)
        self._plane: tuple[int, ...] = grid.shape
        self._index = torch.arange(geometry.count)
        if self._stack is not None:
            self._plane = tuple(n for a, n in enumerate(grid.shape) if a != self._stack.axis)
            self._index = first_row(geometry)
            self._rows = self._stack.linear_weights(grid.shape[self._stack.axis]).to(self._device)
        taps = len(self._index) * max(self._plane) * 2 ** (len(self._plane) - 1)
        self._forward_only = geometry.beam != "parallel"
        self._matrices: tuple[Tensor, Tensor] | None = None
        self._kept: VoxelRays | None = None
        anew = self._stack is None and (self._device.type != "cpu" or joseph.kernel_runs(self._device))
        if not anew and taps * 16 <= memory_gib * 2**30 and taps < 2**31:
            self._matrices = self._assemble()
        elif len(self._index) * 48 <= memory_gib * 2**30:
            self._kept = self._rays_of(self._index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the projections: (views, rows, columns)."""
        return self.geometry.shape

    @property
    def stored(self) -> bool:
        """Whether the system matrix is held in memory."""
        return self._matrices is not None

    def apply(self, volume: Float[Tensor, "n0 n1 n2"]) -> Float[Tensor, "views rows columns"]:
        """y = A x: line integrals of a volume."""
        _check("volume", volume, self.grid.shape)
        return _Project.apply(volume, self)

    def adjoint(self, values: Float[Tensor, "views rows columns"]) -> Float[Tensor, "n0 n1 n2"]:
        """x = A^T y, unfiltered backprojection: the transpose of `apply`, not its inverse."""
        _check("projections", values, self.shape)
        return _Backproject.apply(values, self)

    def sums(self) -> tuple[Float[Tensor, "views rows columns"], Float[Tensor, "n0 n1 n2"]]:
        """(row sums A 1, column sums A^T 1): path length of every ray, summed weight of every voxel, in mm."""
        rows = self.project(torch.ones(self.grid.shape, device=self._device))
        return rows, self.backproject(torch.ones(self.shape, device=self._device))

    def norm(self, iterations: int = 20) -> float:
        """Largest singular value (mm) by power iteration from the all-one volume.

        A has no negative entry, so its leading singular vector has none either (Perron-Frobenius) and the start
        needs no randomness; the estimate approaches the norm from below.
        """
        x = torch.ones(self.grid.shape, device=self._device)
        for _ in range(iterations):
            x = x / x.norm()
            x = self.backproject(self.project(x))
        return float(x.norm().sqrt())

    def project(self, volume: Tensor) -> Tensor:
        """`apply` without a gradient."""
        if self._stack is None:
            return self._multiply(volume.reshape(-1, 1)).reshape(self.shape)
        slices = volume.movedim(self._stack.axis, 2).reshape(-1, volume.shape[self._stack.axis])
        views, rows, columns = self.shape
        values = self._multiply(slices @ self._rows.to(volume.dtype).T)
        return values.reshape(views, columns, rows).transpose(1, 2).contiguous()

    def backproject(self, values: Tensor) -> Tensor:
        """`adjoint` without a gradient."""
        if self._stack is None:
            return self._multiply_transposed(values.reshape(-1, 1)).reshape(self.grid.shape)
        slices = self._multiply_transposed(values.transpose(1, 2).reshape(-1, self.shape[1]))
        volume = (slices @ self._rows.to(values.dtype)).reshape(*self._plane, -1)
        return volume.movedim(2, self._stack.axis).contiguous()

    def _multiply(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        if self._matrices is not None:
            return self._matrices[0].to(x.dtype) @ x
        parts = [
            joseph.project(x, rays.origin, rays.direction, self._plane, forward_only=self._forward_only)
            for _, rays in self._chunks()
        ]
        return torch.cat(parts)

    def _multiply_transposed(self, y: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        if self._matrices is not None:
            return self._matrices[1].to(y.dtype) @ y
        x = y.new_zeros(int(np.prod(self._plane)), y.shape[1])
        for start, rays in self._chunks():
            part = y[start : start + len(rays.origin)]
            x += joseph.backproject(part, rays.origin, rays.direction, self._plane, forward_only=self._forward_only)
        return x

    def _chunks(self, size: int = RAYS_PER_CHUNK) -> Iterator[tuple[int, VoxelRays]]:
        """(first ray, rays) of chunks of rays, on the device; all at once where they are kept."""
        if self._kept is not None:
            yield 0, self._kept
            return
        for start in range(0, len(self._index), size):
            yield start, self._rays_of(self._index[start : start + size])

    def _rays_of(self, index: Tensor) -> VoxelRays:
        rays = voxel_rays(self.geometry, self.grid, index.to(self._device))
        return rays if self._stack is None else rays.without(self._stack.axis)

    def _assemble(self) -> tuple[Tensor, Tensor]:
        """The system matrix and its transpose as CSR tensors with 32-bit indices (which the CPU product needs)."""
        counts, columns, weights = [], [], []
        size = max(1, joseph.TAPS_PER_CHUNK // (max(self._plane) * 2 ** (len(self._plane) - 1)))
        for _, rays in self._chunks(size):
            index, weight = joseph.taps(rays.origin, rays.direction, self._plane, forward_only=self._forward_only)
            used = weight > 0
            counts.append(used.sum(dim=1).cpu())
            columns.append(index[used].int().cpu())
            weights.append(weight[used].cpu())
        start = np.concatenate([[0], torch.cat(counts).numpy().cumsum()]).astype(np.int32)
        shape = (len(self._index), int(np.prod(self._plane)))
        matrix = sparse.csr_matrix((torch.cat(weights).numpy(), torch.cat(columns).numpy(), start), shape=shape)
        matrix.sum_duplicates()
        return _csr(matrix, self._device), _csr(matrix.T.tocsr(), self._device)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, projector: VoxelProjector) -> Tensor:
        ctx.projector = projector
        return projector.project(volume)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Backproject.apply(gradient, ctx.projector), None


class _Backproject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, projector: VoxelProjector) -> Tensor:
        ctx.projector = projector
        return projector.backproject(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Project.apply(gradient, ctx.projector), None


def _csr(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=False,
        ).to(device)


def _check(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != tuple(shape):
        raise InputError(f"the {name} have shape {tuple(values.shape)}, the projector expects {tuple(shape)}")
