"""A voxel projector with its exact adjoint, for methods and rivals that reconstruct a volume.

Joseph's method (P. M. Joseph, IEEE Trans. Med. Imaging 1:192-196, 1982): along the voxel axis a in which the ray
advances fastest, the volume is interpolated linearly in every plane i_a = p and weighted with the path between planes,

    y = 1/|d_a| sum_p x(i(t_p)),    t_p = (p - o_a) / d_a        (notation of `voxel_rays`),

x being zero outside the lattice. An axis with a single voxel is not interpolated: the slice fills its thickness.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

from scanfield.errors import InputError
from scanfield.operators.voxel_rays import VoxelRays, first_row, stacked_rows, voxel_rays
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

TAPS_PER_CHUNK = 2**22


def joseph_taps(
    rays: VoxelRays, shape: tuple[int, ...], *, forward_only: bool
) -> tuple[Int[Tensor, "m taps"], Float[Tensor, "m taps"]]:
    """Flat voxel indices and weights (mm) of every ray in a lattice of two or three axes; unused taps weigh zero.

    Args:
        rays: the rays in voxel indices.
        shape: voxels per axis, C order.
        forward_only: leave out what lies behind the ray's origin (a point source).
    """
    device = rays.origin.device
    sizes = torch.tensor(shape, device=device)
    strides = torch.tensor([int(np.prod(shape[a + 1 :])) for a in range(len(shape))], device=device)
    order = torch.argsort(rays.direction.abs(), dim=1, descending=True, stable=True)
    o, d = rays.origin.gather(1, order), rays.direction.gather(1, order)
    size, stride = sizes[order], strides[order]

    plane = torch.arange(max(shape), device=device)
    t = (plane - o[:, :1]) / d[:, :1]
    valid = plane < size[:, :1]
    if forward_only:
        valid = valid & (t > 0)
    index = [plane * stride[:, :1]]
    weight = [valid / d[:, :1].abs()]
    for a in range(1, len(shape)):
        place = o[:, a : a + 1] + t * d[:, a : a + 1]
        n, step, single = size[:, a : a + 1], stride[:, a : a + 1], size[:, a : a + 1] == 1
        low = torch.where(single, 0, place.floor())
        upper = torch.where(single, 0, place - low)
        lower = torch.where(single, (place.abs() <= 0.5).double(), 1 - upper)
        low = low.clamp(-2, max(shape)).long()
        taps = []
        for base, path in zip(index, weight, strict=True):
            for voxel, share in ((low, lower), (low + 1, upper)):
                inside = (voxel >= 0) & (voxel < n)
                taps.append((torch.where(inside, base + voxel * step, 0), torch.where(inside, path * share, 0)))
        index, weight = [i for i, _ in taps], [w for _, w in taps]
    weights = torch.stack(weight, dim=-1).flatten(1)
    return torch.where(weights > 0, torch.stack(index, dim=-1).flatten(1), 0), weights.float()


@final
class VoxelProjector:
    """Line integrals of a voxel volume (1/mm -> dimensionless) and the exact transpose of that map.

    If parallel or fan rays run within the grid's slices, one two-dimensional system serves all slices. The system is
    stored as a sparse matrix and its transpose when both fit into `memory_gib` (16 bytes per non-zero, at most
    2 non-zeros per ray and plane in two dimensions, 4 in three); otherwise the taps are computed anew, in chunks of
    rays, at every call. Both maps are each other's autograd backward, to any order.

    Args:
        geometry: the scan.
        grid: the voxels, with any affine.
        device: where the matrix lives and the products run.
        memory_gib: bound on the stored matrices; 0 never stores any.
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
        self._matrices: tuple[Tensor, Tensor] | None = None
        if taps * 16 <= memory_gib * 2**30 and taps < 2**31:
            self._matrices = self._assemble()

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
        parts = [embedding_bag(i, x, per_sample_weights=w.to(x.dtype), mode="sum") for _, i, w in self._chunks()]
        return torch.cat(parts)

    def _multiply_transposed(self, y: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        if self._matrices is not None:
            return self._matrices[1].to(y.dtype) @ y
        x = y.new_zeros(int(np.prod(self._plane)), y.shape[1])
        for start, index, weight in self._chunks():
            part = y[start : start + len(index)]
            x.index_add_(0, index.reshape(-1), (weight.to(y.dtype)[..., None] * part[:, None]).flatten(0, 1))
        return x

    def _chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first ray, voxel indices, weights) of chunks of rays, on the device."""
        size = max(1, TAPS_PER_CHUNK // (max(self._plane) * 2 ** (len(self._plane) - 1)))
        for start in range(0, len(self._index), size):
            rays = voxel_rays(self.geometry, self.grid, self._index[start : start + size].to(self._device))
            if self._stack is not None:
                rays = rays.without(self._stack.axis)
            yield start, *joseph_taps(rays, self._plane, forward_only=self.geometry.beam != "parallel")

    def _assemble(self) -> tuple[Tensor, Tensor]:
        """The system matrix and its transpose as CSR tensors with 32-bit indices (which the CPU product needs)."""
        counts, columns, weights = [], [], []
        for _, index, weight in self._chunks():
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
