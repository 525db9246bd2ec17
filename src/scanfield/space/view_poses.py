"""Where an object was in every view of a scan: rigid motion as parameters, to be fitted with the field.

Notation: T_v takes a point x of the object at rest to where it was in view v,

    T_v x = R_v (x - c) + c + B t_v,     R_v = exp(w_v) (`space.pose.rotation_matrix`),  B the directions of t

A common motion of all views is not determined by a scan: poses are known up to that gauge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scanfield.space.pose import rotation_matrix


class ViewPoses(nn.Module):
    """One rigid motion for every view, or for every group of views; at first none.

    Args:
        views: how many views.
        centre_mm: c, the world point that rotations keep; best the middle of the object.
        directions: (k, 3) orthonormal world directions. Two for motion within a slice (SE(2), `space.pose.
            spatial_directions` of its domain): an angle about their normal and two shifts. Three, by default x, y, z,
            for SE(3).
        group: (views,) which pose a view has, for views that share one; by default each its own.

    Attributes:
        rotation: (n, 1) angles, or (n, 3) rotation vectors along `directions`; rad.
        translation: (n, k) mm.

    Raises:
        ValueError: directions that are not orthonormal, or groups that are not 0 .. n - 1 for every view.
    """

    centre: Tensor
    basis: Tensor
    axes: Tensor
    group: Tensor

    def __init__(
        self,
        views: int,
        *,
        centre_mm: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
        directions: np.ndarray | None = None,
        group: Int[Tensor, " views"] | None = None,
    ) -> None:
        super().__init__()
        rows = np.eye(3) if directions is None else np.asarray(directions, dtype=np.float64)
        if rows.shape not in ((2, 3), (3, 3)) or not np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5):
            raise ValueError(f"motion needs two or three orthonormal directions in the world, got {rows.tolist()}")
        group = torch.arange(views) if group is None else group.long()
        count = int(group.max()) + 1 if len(group) else 0
        if group.shape != (views,) or not torch.equal(group.unique(), torch.arange(count)):
            raise ValueError(f"{views} views need as many groups, numbered from 0 without a gap")
        axes = rows if len(rows) == 3 else np.cross(rows[0], rows[1])[None]
        self.register_buffer("centre", torch.tensor(np.asarray(centre_mm), dtype=torch.float32))
        self.register_buffer("basis", torch.tensor(rows, dtype=torch.float32))
        self.register_buffer("axes", torch.tensor(axes, dtype=torch.float32))
        self.register_buffer("group", group)
        self.rotation = nn.Parameter(torch.zeros(count, len(axes)))
        self.translation = nn.Parameter(torch.zeros(count, len(rows)))

    def forward(self) -> Float[Tensor, "views 4 4"]:
        """T_v as world matrices."""
        turn = rotation_matrix(self.rotation @ self.axes)
        shift = self.centre + self.translation @ self.basis - turn @ self.centre
        last = shift.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(shift), 1, 4)
        return torch.cat([torch.cat([turn, shift[..., None]], dim=-1), last], dim=1)[self.group]
