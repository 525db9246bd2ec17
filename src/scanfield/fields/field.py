"""The continuous function: encoding, network and head over a domain.

f(x) = head(network(encoding(u(x)))): world coordinates in (mm, s, ...), physical units out. The unit cube exists only
in here.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.fields.jets import HasJets, order_of
from scanfield.kernels.jvp import Streams
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid


@runtime_checkable
class Condition(Protocol):
    """What a field depends on besides x (latent code, image features): sampled at x like everything else."""

    def at(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n k"]: ...


class Field(nn.Module):
    """A neural field over `domain`.

    Args:
        domain: the box the field lives on.
        encoding: unit coordinates (*n, d) -> features (*n, e).
        network: features (plus condition features, appended) -> (*n, c).
        head: network output -> physical units.
    """

    world_to_unit: Tensor

    def __init__(self, domain: Domain, encoding: nn.Module, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.domain = domain
        matrix = torch.tensor(domain.matrix(), dtype=torch.float32)
        self.register_buffer("world_to_unit", matrix, persistent=False)
        self.encoding = encoding
        self.network = network
        self.head = head

    def forward(self, x: Float[Tensor, "*n w"], condition: Condition | None = None) -> Float[Tensor, "*n c"]:
        out: Tensor = self.head(self.network(self.features(x, condition)))
        return out

    def features(self, x: Float[Tensor, "*n w"], condition: Condition | None = None) -> Float[Tensor, "*n e"]:
        """What the network sees: the encoded coordinates, then the condition's features."""
        matrix = self.world_to_unit.to(x.dtype)
        features: Tensor = self.encoding(x @ matrix[:, :-1].T + matrix[:, -1])
        return features if condition is None else torch.cat([features, condition.at(x)], dim=-1)

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return order_of(self.encoding, self.network, self.head)

    def jets(self, x: Float[Tensor, "s n w"], streams: Streams) -> Float[Tensor, "s n c"]:
        """See `fields.jets`."""
        matrix = self.world_to_unit.to(x.dtype)
        u = x @ matrix[:, :-1].T
        u = torch.cat([u[:1] + matrix[:, -1], u[1:]])
        for part in (self.encoding, self.network, self.head):
            assert isinstance(part, HasJets)
            u = part.jets(u, streams)
        return u


def read_out(
    field: nn.Module,
    grid: Grid,
    *,
    domain: Domain | None = None,
    chunk: int = 65536,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The field's values at the voxel centres of a grid, in chunks without gradients.

    Args:
        domain: where given, voxels outside it become zero (a field says nothing there).

    Returns:
        (n0, n1, n2) for one channel, else (n0, n1, n2, c), on the CPU.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, grid.size, chunk):
            x = grid.points(start, start + chunk, device=device)
            values = field(x)
            if domain is not None:
                values = values * domain.inside(x)[:, None]
            parts.append(values.cpu())
    out = torch.cat(parts)
    return out.reshape(grid.shape) if out.shape[-1] == 1 else out.reshape(*grid.shape, -1)
