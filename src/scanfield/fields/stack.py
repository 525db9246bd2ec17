"""Independent two-dimensional fields, one per slice of a volume."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from scanfield.fields.field import Field
from scanfield.space.grid import Grid


class SliceStack(nn.Module):
    """A volume whose slices along the grid's third axis are fields of their own; a point asks the nearest one."""

    def __init__(self, fields: Sequence[Field], grid: Grid) -> None:
        super().__init__()
        if len(fields) != grid.shape[2]:
            raise ValueError(f"{grid.shape[2]} slices need as many fields, got {len(fields)}")
        self.slices = nn.ModuleList(fields)
        self.grid = grid

    @property
    def fields(self) -> list[Field]:
        """The fields in the order of the slices."""
        return [field for field in self.slices if isinstance(field, Field)]

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n c"]:
        if len(self.slices) == 1:
            only: Tensor = self.slices[0](x)
            return only
        flat = x.reshape(-1, 3)
        index = self.grid.to_voxel(flat)[:, 2].round().clamp(0, len(self.slices) - 1).long()
        out: Tensor | None = None
        for k in index.unique().tolist():
            chosen = index == k
            values = self.slices[k](flat[chosen])
            if out is None:
                out = values.new_zeros(len(flat), values.shape[-1])
            out = out.index_put((chosen.nonzero().squeeze(1),), values)
        if out is None:
            out = self.slices[0](flat)
        return out.reshape(*x.shape[:-1], out.shape[-1])
