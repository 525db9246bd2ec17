"""Shapes that change: a signed distance in space and time, and what it is at one moment.

Points are (x, y, z, t) in mm and s, in the frame of the shape: its sequences are centred at x = y = z = 0 and begin at
t = 0. Distances are in mm, negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scanfield.fields.field import read_out
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid

CPU_CHUNK, GPU_CHUNK = 2**14, 2**18  # points: a layer's values stay in the cache, or fill the device


def space_time_domain(edge_mm: float, duration_s: float, *, unit_time: float = 1.0) -> Domain:
    """A cube centred at the origin that fills [-1, 1]^3, and times from 0 on that fill [-unit_time, unit_time]."""
    spatial = (Axis(name, "mm", -edge_mm / 2, edge_mm / 2) for name in ("x", "y", "z"))
    middle, half = duration_s / 2, duration_s / 2 / unit_time
    return Domain((*spatial, Axis("t", "s", middle - half, middle + half)))


class SpaceTimeShape(nn.Module):
    """d(x, t) = unit_mm * network(u(x, t), code): the shape that one code stands for.

    Args:
        domain: of x, y, z, t.
        network: unit coordinates and a code, (*n, 4) and (k,) -> (*n, 1).
        code: (k,).
        unit_mm: of the network's values.
    """

    code: Tensor

    def __init__(self, domain: Domain, network: nn.Module, code: Float[Tensor, " k"], unit_mm: float) -> None:
        super().__init__()
        self.domain, self.network, self.unit_mm = domain, network, unit_mm
        self.register_buffer("code", code.detach().clone())

    def forward(self, x: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 1"]:
        value: Tensor = self.network(self.domain.to_unit(x), self.code)
        return self.unit_mm * value


class AtMoment(nn.Module):
    """A shape at one moment, as a field in space: what `read_out` and `field_mesh` take."""

    def __init__(self, shape: nn.Module, time_s: float) -> None:
        super().__init__()
        self.shape, self.time_s = shape, time_s

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        value: Tensor = self.shape(torch.cat([x, torch.full_like(x[..., :1], self.time_s)], dim=-1))
        return value


def distance_at(
    shape: nn.Module, grid: Grid, time_s: float, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "n0 n1 n2"]:
    """The signed distance (mm) of a shape at one moment, on the CPU; evaluated in chunks that suit the device."""
    chunk = CPU_CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK
    return read_out(AtMoment(shape, time_s), grid, chunk=chunk, device=device)


def frames_of(
    shape: nn.Module, grid: Grid, times_s: Sequence[float], *, device: torch.device | str = "cpu"
) -> Bool[Tensor, "t n0 n1 n2"]:
    """The masks of a shape at some moments, on the CPU: where its distance is negative."""
    return torch.stack([distance_at(shape, grid, float(t), device=device) < 0 for t in times_s])
