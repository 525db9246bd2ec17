"""Voxel lattices in the world.

Notation: i = (i0, i1, i2) is a voxel index, x a world point in millimetres (RAS+), A the 4x4 affine with x = A [i, 1].
Voxel centres sit at integer indices; a grid's box reaches half a voxel beyond its outermost centres.
A two-dimensional image is a grid with one voxel along its third axis: world points always have three coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.errors import InputError


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of `shape` voxels placed in the world by `affine` (voxel index -> mm, RAS+)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"a grid needs three positive sizes, got {self.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(f"a grid's affine must be a finite 4x4 matrix, got shape {affine.shape}")
        if not np.allclose(affine[3], [0, 0, 0, 1]):
            raise InputError(f"the last row of an affine must be 0 0 0 1, got {affine[3].tolist()}")
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if not norms.all() or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6:  # relative: voxels may be nanometres
            raise InputError("the affine is singular: two voxel axes coincide or a spacing is zero")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @staticmethod
    def centred(shape: tuple[int, int, int], spacing_mm: float | tuple[float, float, float]) -> Grid:
        """An axis-aligned grid whose box is centred at the world origin."""
        spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
        if (spacing <= 0).any() or not np.isfinite(spacing).all():
            raise InputError(f"spacing must be positive, got {spacing.tolist()} mm", fix="give the voxel size in mm")
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -spacing * (np.asarray(shape) - 1) / 2
        return Grid(shape, affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each voxel axis: the column norms of the affine."""
        a, b, c = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return a, b, c

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def centre_mm(self) -> np.ndarray:
        """World position of the middle of the grid's box."""
        middle = (np.asarray(self.shape) - 1) / 2
        return np.asarray(self.affine[:3, :3] @ middle + self.affine[:3, 3])

    @property
    def directions(self) -> np.ndarray:
        """3x3 orthogonal matrix nearest to the voxel axes' unit directions (columns); reflections are kept."""
        unit = self.affine[:3, :3] / np.asarray(self.spacing_mm)
        left, _, right = np.linalg.svd(unit)
        return np.asarray(left @ right)

    def corners_mm(self) -> np.ndarray:
        """The eight corners of the box, (8, 3) mm."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        index = np.array([[a, b, c] for a in ends[0] for b in ends[1] for c in ends[2]])
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    def points(
        self, start: int = 0, stop: int | None = None, *, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n 3"]:
        """World positions (mm) of the voxel centres `start:stop` in C order (the last index runs fastest)."""
        flat = torch.arange(start, self.size if stop is None else min(stop, self.size), device=device)
        return self.to_world(self.voxels(flat).double()).float()

    def voxels(self, flat: Int[Tensor, " n"]) -> Int[Tensor, "n 3"]:
        """Voxel indices from positions in C order."""
        _, n1, n2 = self.shape
        return torch.stack([flat // (n1 * n2), flat // n2 % n1, flat % n2], dim=-1)

    def to_world(self, voxel: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """World positions (mm) of continuous voxel indices."""
        affine = torch.tensor(self.affine, dtype=voxel.dtype, device=voxel.device)
        return voxel @ affine[:3, :3].T + affine[:3, 3]

    def to_voxel(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Continuous voxel index of world points."""
        inverse = torch.tensor(np.linalg.inv(self.affine), dtype=x.dtype, device=x.device)
        return x @ inverse[:3, :3].T + inverse[:3, 3]

    def resampled(self, spacing_mm: float | tuple[float, float, float]) -> Grid:
        """A grid over the same box with another voxel size; axes of one voxel keep their size.

        The number of voxels is rounded up, so the new box covers the old one and shares its centre.
        """
        wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
        if (wanted <= 0).any() or not np.isfinite(wanted).all():
            raise InputError(f"spacing must be positive, got {wanted.tolist()} mm")
        old, sizes = np.asarray(self.spacing_mm), np.asarray(self.shape)
        spacing = np.where(sizes == 1, old, wanted)
        with np.errstate(over="ignore"):
            counts = np.maximum(1, np.ceil(sizes * old / spacing - 1e-6))
            if np.prod(counts) > 2**31:
                raise InputError(
                    f"a grid of {' x '.join(f'{n:.6g}' for n in counts)} voxels is too large",
                    fix="choose a larger spacing",
                )
        shape = counts.astype(int)
        linear = self.affine[:3, :3] / old * spacing
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = self.centre_mm - linear @ ((shape - 1) / 2)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def slice(self, index: int) -> Grid:
        """The one-voxel-thick grid of slice `index` along the third voxel axis."""
        if not 0 <= index < self.shape[2]:
            raise InputError(f"slice {index} does not exist: the volume has slices 0..{self.shape[2] - 1}")
        return self.part((0, 0, index), (*self.shape[:2], 1))

    def part(
        self,
        first: Sequence[float] | np.ndarray,
        shape: Sequence[int] | np.ndarray,
        step: float | Sequence[float] | np.ndarray = 1.0,
    ) -> Grid:
        """The lattice of voxels first + step k, 0 <= k < shape; it may lie between voxels, and reach beyond them.

        Args:
            step: voxels from one to the next, one number or one for each axis.
        """
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ np.asarray(first, dtype=np.float64)
        affine[:3, :3] *= np.asarray(step, dtype=np.float64)
        n0, n1, n2 = (int(n) for n in shape)
        return Grid((n0, n1, n2), affine)

    def coarsened(self, factors: Sequence[int]) -> Grid:
        """The grid of blocks of so many voxels along each axis; voxels that fill no block are left out."""
        step = np.asarray(factors, dtype=np.float64)
        return self.part((step - 1) / 2, np.asarray(self.shape) // np.asarray(factors), step)

    def moved(self, transform: np.ndarray) -> Grid:
        """The same lattice after a 4x4 world transform."""
        return Grid(self.shape, transform @ self.affine)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same voxels: equal shape, and corners that agree within `tolerance_mm`."""
        return self.shape == other.shape and bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)

    def check_same(self, other: Grid, *, mine: str = "image", theirs: str = "reference", fix: str = "") -> None:
        """Raises `InputError` naming the part (shape, spacing, direction, origin) in which the grids differ."""
        if self.same_as(other):
            return
        if self.shape != other.shape:
            part = f"shapes differ: {mine} {self.shape}, {theirs} {other.shape}"
        elif not np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-4):
            part = f"spacings differ: {mine} {_mm(self.spacing_mm)}, {theirs} {_mm(other.spacing_mm)}"
        elif not np.allclose(self.directions, other.directions, atol=1e-3):
            part = f"orientations differ between {mine} and {theirs}"
        else:
            part = f"origins differ: {mine} {_mm(self.affine[:3, 3])}, {theirs} {_mm(other.affine[:3, 3])}"
        raise InputError(f"{mine} and {theirs} are not on the same grid: {part}", fix=fix)

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @staticmethod
    def from_json(facts: Any) -> Grid:
        try:
            n0, n1, n2 = (int(n) for n in facts["shape"])
            affine = np.asarray(facts["affine"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"a grid needs 'shape' (three sizes) and 'affine' (4x4): {error}") from None
        return Grid((n0, n1, n2), affine)


def _mm(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.4g}" for v in values) + ") mm"
