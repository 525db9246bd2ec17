"""The box a field lives on, and the only place where world coordinates become the network's unit coordinates.

Notation: x world point (x, y, z in mm RAS+, then any further axes such as time in s), b = F x box coordinates in the
box's own orthogonal frame, u in [-1, 1]^d what encodings and networks see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid

SPATIAL = ("x", "y", "z")
Scaling = Literal["isotropic", "per-axis"]


@dataclass(frozen=True)
class Axis:
    """One axis of a domain: a box axis ('x', 'y', 'z', in mm along the frame) or a further one ('t' in s, ...)."""

    name: str
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.high > self.low):
            raise InputError(f"axis '{self.name}' needs finite low < high, got {self.low}..{self.high} {self.unit}")


@dataclass(frozen=True, eq=False)
class Domain:
    """A box in millimetres (and seconds, degrees, ...) mapped to [-1, 1]^d.

    Args:
        axes: the axes the field depends on, spatial ones first. A slice has only 'x' and 'y'.
        scaling: 'isotropic' divides all spatial axes by the largest half extent (shapes keep their proportions);
            'per-axis' stretches every axis to [-1, 1]. Non-spatial axes always fill [-1, 1].
        frame: 4x4 orthogonal transform, world mm -> box mm.
    """

    axes: tuple[Axis, ...]
    scaling: Scaling = "isotropic"
    frame: np.ndarray | None = None

    def __post_init__(self) -> None:
        frame = np.eye(4) if self.frame is None else np.array(self.frame, dtype=np.float64)
        if (
            frame.shape != (4, 4)
            or not np.isfinite(frame).all()
            or not np.allclose(frame[:3, :3] @ frame[:3, :3].T, np.eye(3), atol=1e-5)
            or not np.allclose(frame[3], [0, 0, 0, 1])
        ):
            raise InputError("a domain's frame must be a finite 4x4 orthogonal transform (no scale, no shear)")
        if not self.axes:
            raise InputError("a domain needs at least one axis")
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names) or names != sorted(names, key=lambda n: n not in SPATIAL):
            raise InputError(f"domain axes must be distinct, spatial ones first, got {names}")
        frame.flags.writeable = False
        object.__setattr__(self, "frame", frame)

    @staticmethod
    def of_grid(grid: Grid, *, margin_mm: float = 0.0, scaling: Scaling = "isotropic") -> Domain:
        """The box of a grid, aligned with its voxel axes and centred at zero; axes of one voxel are dropped."""
        rotation = grid.directions
        frame = np.eye(4)
        frame[:3, :3] = rotation.T
        frame[:3, 3] = -rotation.T @ grid.centre_mm
        corners = grid.corners_mm() @ frame[:3, :3].T + frame[:3, 3]
        low, high = corners.min(axis=0) - margin_mm, corners.max(axis=0) + margin_mm
        axes = tuple(
            Axis(name, "mm", float(low[k]), float(high[k])) for k, name in enumerate(SPATIAL) if grid.shape[k] > 1
        )
        if not axes:
            raise InputError(f"a field needs a grid with more than one voxel, got shape {grid.shape}")
        return Domain(axes, scaling, frame)

    def with_axis(self, axis: Axis) -> Domain:
        """This domain with one more (non-spatial) axis."""
        return Domain((*self.axes, axis), self.scaling, self.frame)

    @property
    def dims(self) -> int:
        return len(self.axes)

    @property
    def extent(self) -> tuple[float, ...]:
        """Length of every axis in its own unit."""
        return tuple(axis.high - axis.low for axis in self.axes)

    @property
    def spatial_extent_mm(self) -> tuple[float, ...]:
        return tuple(axis.high - axis.low for axis in self.axes if axis.name in SPATIAL)

    def half_scale(self) -> np.ndarray:
        """Per axis, how many of its units (mm, s) make one unit of network coordinate."""
        half = np.asarray(self.extent) / 2
        if self.scaling == "isotropic":
            spatial = [axis.name in SPATIAL for axis in self.axes]
            if any(spatial):
                half = np.where(spatial, half[spatial].max(), half)
        return half

    def matrix(self) -> np.ndarray:
        """(d, w + 1) affine map from world columns (x, y, z, further axes..., 1) to unit coordinates."""
        assert self.frame is not None
        extra = [axis.name for axis in self.axes if axis.name not in SPATIAL]
        width = 3 + len(extra)
        rows = np.zeros((self.dims, width + 1))
        scale = self.half_scale()
        for k, axis in enumerate(self.axes):
            if axis.name in SPATIAL:
                row = SPATIAL.index(axis.name)
                rows[k, :3], rows[k, -1] = self.frame[row, :3], self.frame[row, 3]
            else:
                rows[k, 3 + extra.index(axis.name)] = 1.0
            rows[k, -1] -= (axis.low + axis.high) / 2
            rows[k] /= scale[k]
        return rows

    def to_unit(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n d"]:
        """World coordinates -> unit coordinates."""
        matrix = torch.tensor(self.matrix(), dtype=x.dtype, device=x.device)
        return x @ matrix[:, :-1].T + matrix[:, -1]

    def from_unit(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n w"]:
        """Unit coordinates -> world; a domain without some spatial axis lies in the frame's zero plane along it."""
        assert self.frame is not None
        scale = torch.tensor(self.half_scale(), dtype=u.dtype, device=u.device)
        middle = torch.tensor([(a.low + a.high) / 2 for a in self.axes], dtype=u.dtype, device=u.device)
        own = u * scale + middle
        box = u.new_zeros((*u.shape[:-1], 3))
        extra = []
        for k, axis in enumerate(self.axes):
            if axis.name in SPATIAL:
                box[..., SPATIAL.index(axis.name)] = own[..., k]
            else:
                extra.append(own[..., k : k + 1])
        rotation = torch.tensor(self.frame[:3, :3], dtype=u.dtype, device=u.device)
        shift = torch.tensor(self.frame[:3, 3], dtype=u.dtype, device=u.device)
        return torch.cat([(box - shift) @ rotation, *extra], dim=-1)

    def inside(self, x: Float[Tensor, "*n w"]) -> Tensor:
        """Whether world points lie in the box (along the axes the domain has)."""
        limit = torch.tensor(np.asarray(self.extent) / 2 / self.half_scale(), dtype=x.dtype, device=x.device)
        return (self.to_unit(x).abs() <= limit * (1 + 1e-6)).all(dim=-1)

    def clamp(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n w"]:
        """The nearest points of the box; along a spatial axis the domain does not have, nothing changes."""
        limit = torch.tensor(np.asarray(self.extent) / 2 / self.half_scale(), dtype=x.dtype, device=x.device)
        u = self.to_unit(x)
        return x + self.from_unit(torch.minimum(torch.maximum(u, -limit), limit)) - self.from_unit(u)

    def to_json(self) -> dict[str, Any]:
        assert self.frame is not None
        return {
            "axes": [[a.name, a.unit, a.low, a.high] for a in self.axes],
            "scaling": self.scaling,
            "frame": self.frame.tolist(),
        }

    @staticmethod
    def from_json(facts: Any) -> Domain:
        try:
            axes = tuple(Axis(str(n), str(unit), float(low), float(high)) for n, unit, low, high in facts["axes"])
            scaling, frame = facts["scaling"], np.asarray(facts["frame"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a domain needs 'axes', 'scaling' and 'frame': {error}") from None
        if scaling not in get_args(Scaling):
            raise InputError(f"a domain's scaling is 'isotropic' or 'per-axis', got '{scaling}'")
        return Domain(axes, scaling, frame)
