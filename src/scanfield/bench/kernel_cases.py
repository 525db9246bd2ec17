"""The work the kernels are measured on: each case in plain torch, compiled, and as this package does it.

Shapes: SIREN 3 -> W x 4 -> 1; a hash grid of 16 levels (16 to 512 cells, 2^19 rows, 2 features) with a rectifier
network 32 -> 64 x 2 -> 1; a registration step of 10,000 points with a SIREN 3 -> 256 x 3 -> 3 and the Jacobian penalty
mean |det(I + du/dx) - 1| beside a similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scanfield.bench.timing import Variant
from scanfield.fields import calculus
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.mlp import MLP, RELU
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import adam, visited_adam
from scanfield.kernels import hashgrid
from scanfield.kernels.backend import using
from scanfield.kernels.mlp import regression_loss
from scanfield.losses.values import value_loss
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

OMEGA = 30.0
REGISTRATION_POINTS = 10_000


@dataclass(frozen=True)
class Case:
    """Variants of one piece of work.

    Args:
        points: points per call.
        flops: multiplications and additions per point (0: not counted).
        variants: name -> the work; 'plain torch' is what ratios refer to.
    """

    points: int
    flops: float
    variants: dict[str, Variant]


def on(backend: str, work: Variant) -> Variant:
    """The work on a backend."""

    def run() -> object:
        with using(backend):
            return work()

    return run


def draw(seed: int = 0) -> torch.Generator:
    """A generator of its own for every use."""
    return torch.Generator().manual_seed(seed)


def siren_field(width: int, hidden: int, outputs: int, device: torch.device) -> Field:
    """A sine network over the cube [-64, 64]^3 mm."""
    grid = Grid((128, 128, 128), Grid.centred((128, 128, 128), (1.0, 1.0, 1.0)).affine)
    network = Siren([3, *[width] * hidden, outputs], omegas=[OMEGA] * hidden, generator=draw())
    return Field(Domain.of_grid(grid), Identity(3), network, LinearHead()).to(device)


def siren_macs(width: int, hidden: int, outputs: int) -> int:
    """Multiplications of one evaluation of `siren_field`."""
    return 3 * width + (hidden - 1) * width * width + width * outputs


def siren_training(width: int, points: int, device: torch.device, *, compiled: bool) -> Case:
    """One step of a fit: value, mean squared error, gradients, Adam. 2 (3 MACs - 3 W) operations a point."""
    x = ((2 * torch.rand(points, 3, generator=draw()) - 1) * 64).to(device)
    target = torch.rand(points, 1, generator=draw(1)).to(device)

    def plain(field: Field) -> Tensor:
        return (field(x) - target).square().mean()

    variants = {
        "plain torch": on("reference", _step(siren_field(width, 4, 1, device), plain)),
        "ours": _step(siren_field(width, 4, 1, device), lambda field: value_loss(field, x, target)),
        "ours, any loss": _step(siren_field(width, 4, 1, device), plain),
    }
    if compiled:
        variants["torch.compile"] = on("reference", _step(siren_field(width, 4, 1, device), _compiled(plain)))
    return Case(points, 2 * (3 * siren_macs(width, 4, 1) - 3 * width), variants)


def decode(width: int, side: int, device: torch.device) -> Case:
    """The values of a sine network on a lattice of side^3 points, in chunks of 65,536."""
    field = siren_field(width, 4, 1, device)
    grid = Grid.centred((side, side, side), (128 / side,) * 3)

    def work() -> object:
        return read_out(field, grid, device=device)

    return Case(side**3, 2 * siren_macs(width, 4, 1), {"plain torch": on("reference", work), "ours": work})


class _PlainGrid(torch.nn.Module):
    """A hash grid as one writes it in plain torch: index the table, weigh, add."""

    def __init__(self, grid: MultiresolutionGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, u: Tensor) -> Tensor:
        rows, weights = hashgrid.corners(u, self.grid.level_weight, self.grid.levels)
        return (self.grid.table[rows] * weights[..., None]).sum(2).flatten(1)


def hash_grid(device: torch.device) -> MultiresolutionGrid:
    """The grid of the module's docstring."""
    grid = MultiresolutionGrid(
        3, levels=16, features=2, base=16, growth=32 ** (1 / 15), log2_table=19, generator=draw(), init=1e-1
    )
    return grid.to(device)


def hash_training(points: int, device: torch.device, *, compiled: bool) -> Case:
    """One step of a fit of a hash grid and a 64 x 2 network: value, mean squared error, gradients, Adam.

    In plain torch Adam is dense; ours is `VisitedAdam` for the table.
    """
    u = (2 * torch.rand(points, 3, generator=draw()) - 1).to(device)
    target = torch.rand(points, 1, generator=draw(1)).to(device)

    def training(plain: bool, compiled: bool = False) -> Variant:
        grid = hash_grid(device)
        network = MLP([32, 64, 64, 1], generator=draw()).to(device)
        encoding = _PlainGrid(grid) if plain else grid
        optimisers = [
            (adam() if plain else visited_adam())([grid.table], 1e-6),
            adam()(list(network.parameters()), 1e-6),
        ]

        def loss() -> Tensor:
            if plain:
                return (network(encoding(u)) - target).square().mean()
            return regression_loss(encoding(u), target, network.weights, network.biases, RELU)

        value = torch.compile(loss) if compiled else loss

        def step() -> Tensor:
            for optimiser in optimisers:
                optimiser.zero_grad()
            total = value()
            total.backward()
            for optimiser in optimisers:
                optimiser.step()
            return total

        return step

    variants = {
        "plain torch": on("reference", training(True)),
        "reference": on("reference", training(False)),
        "ours": training(False),
    }
    if compiled:
        variants["torch.compile"] = on("reference", training(True, True))
    return Case(points, 0.0, variants)


def hash_slope(points: int, device: torch.device) -> Case:
    """A penalty on the gradient of a hash grid's features: the derivative to the table of derivatives to the points."""
    u = (2 * torch.rand(points, 3, generator=draw()) - 1).to(device).requires_grad_()

    def work(encoding: torch.nn.Module) -> Variant:
        parameters = list(encoding.parameters())

        def run() -> object:
            (slope,) = torch.autograd.grad(encoding(u).sum(), u, create_graph=True)
            return torch.autograd.grad(slope.square().mean(), parameters)

        return run

    variants = {"plain torch": on("reference", work(_PlainGrid(hash_grid(device)))), "ours": work(hash_grid(device))}
    return Case(points, 0.0, variants)


def registration(device: torch.device) -> Case:
    """A step with the Jacobian at every point, and with the penalty on a quarter of the points."""
    n = REGISTRATION_POINTS
    x = ((2 * torch.rand(n, 3, generator=draw()) - 1) * 64).to(device)

    def energy(value: Tensor, matrix: Tensor) -> Tensor:
        determinant = calculus.determinant(matrix + torch.eye(3, device=device))
        return value.square().mean() + 0.05 * (determinant - 1).abs().mean()

    def by_reverse_passes(field: Field) -> Tensor:
        inputs = x.clone().requires_grad_()
        value = field(inputs)
        rows = [torch.autograd.grad(value[:, i].sum(), inputs, create_graph=True)[0] for i in range(3)]
        return energy(value, torch.stack(rows, dim=1))

    def in_one_pass(field: Field) -> Tensor:
        return energy(*calculus.jacobian(field, x))

    def on_a_quarter(field: Field) -> Tensor:
        value, matrix = calculus.jacobian(field, x[: n // 4])
        return energy(torch.cat([value, field(x[n // 4 :])]), matrix)

    variants = {
        "plain torch": on("reference", _step(siren_field(256, 3, 3, device), by_reverse_passes)),
        "ours": _step(siren_field(256, 3, 3, device), in_one_pass),
        "ours, penalty on a quarter": _step(siren_field(256, 3, 3, device), on_a_quarter),
    }
    # Value and three tangents, forward and twice backward: 12 passes through the matrices.
    return Case(n, 2 * 12 * siren_macs(256, 3, 3), variants)


def cone_beam(device: torch.device) -> Case:
    """A cone-beam scan projected and backprojected: 64^3 voxels, 4 views of 128 x 128 pixels; points are rays."""
    grid = Grid.centred((64, 64, 64), 3.0)
    detector = Detector("flat", (128, 128), (3.0, 3.0))
    geometry = ProjectionGeometry(
        "cone", 22.0 + 90.0 * np.arange(4), detector, grid, source_to_axis_mm=600.0, source_to_detector_mm=1000.0
    )
    volume = torch.rand(grid.shape, generator=draw()).to(device)
    projector = VoxelProjector(geometry, grid, device=device)

    def work() -> object:
        return projector.backproject(projector.project(volume))

    return Case(geometry.count, 0.0, {"plain torch": on("reference", work), "ours": work})


def _step(field: Field, loss: Callable[[Field], Tensor]) -> Variant:
    """One optimisation step of a field's parameters."""
    parameters = list(field.parameters())
    optimiser = adam()(parameters, 1e-6)

    def run() -> Tensor:
        optimiser.zero_grad()
        value = loss(field)
        value.backward()
        optimiser.step()
        return value

    return run


def _compiled(loss: Callable[[Field], Tensor]) -> Callable[[Field], Tensor]:
    compiled: Callable[[Field], Tensor] = torch.compile(loss)
    return compiled
