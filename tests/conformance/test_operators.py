"""What every operator promises: right units, exact adjoint or gradient, any frame. The tables name them all."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import scanfield.operators
from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.operators.base import GridOperator, SampledOperator, predict
from scanfield.operators.coils import analytic_sensitivities
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.operators.fourier import MaskedFourier
from scanfield.operators.rays import LineIntegral
from scanfield.operators.slices import SliceOperator
from scanfield.operators.spectral import SpectralLineIntegral
from scanfield.operators.stored_rays import StoredLineIntegral
from scanfield.operators.trajectories import golden_angle_radial
from scanfield.operators.voxel import VoxelProjector
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry
from scanfield.space.projection import Detector, ProjectionGeometry


def frame() -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    out = np.eye(4)
    out[:3, :3] = matrix if np.linalg.det(matrix) > 0 else -matrix
    out[:3, 3] = (30.0, -80.0, 55.0)
    return out


def geometry(beam: str = "parallel", kind: str = "flat", rows: int = 1, slices: int = 1) -> ProjectionGeometry:
    """A few views of a left-handed, anisotropic, oblique volume."""
    lattice = np.diag([-1.5, 1.0, 2.0, 1.0])
    shape = (16, 24, slices)
    lattice[:3, 3] = -lattice[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    volume = Grid(shape, frame() @ lattice)
    sizes = {} if beam == "parallel" else {"source_to_axis_mm": 80.0, "source_to_detector_mm": 130.0}
    pitch = 1.1 if kind == "arc" else 1.5
    detector = Detector(kind, (rows, 29), (2.0, pitch), (0.0, 0.3))
    return ProjectionGeometry(beam, np.array([0.0, 20.0, 75.0, 130.0, 290.0]), detector, volume, frame=frame(), **sizes)


SYSTEMS = {
    "parallel": lambda: geometry(),
    "fan, flat": lambda: geometry("fan"),
    "fan, arc": lambda: geometry("fan", "arc"),
    "parallel stack": lambda: geometry(rows=3, slices=3),
    "cone": lambda: geometry("cone", rows=4, slices=3),
    "cone, arc": lambda: geometry("cone", "arc", rows=4, slices=3),
}


def line_integral(of: ProjectionGeometry, count: int = 300) -> LineIntegral:
    return LineIntegral(of, Domain.of_grid(of.volume), count)


SAMPLED: dict[type, Callable[..., SampledOperator]] = {
    LineIntegral: line_integral,
    StoredLineIntegral: lambda *a: StoredLineIntegral.make(line_integral(*a)),
    SpectralLineIntegral: lambda *a: SpectralLineIntegral(line_integral(*a), torch.zeros(1)),  # of one energy: plain
}
GRID: dict[type, Callable[[ProjectionGeometry], GridOperator]] = {
    VoxelProjector: lambda g: VoxelProjector(g, g.volume),
}


def spokes() -> KSpaceEncoding:
    """Two frames of three spokes, three coils, on a grid finer than the scan's."""
    volume = geometry().volume
    fine = volume.resampled((0.7, 0.6, 2.0))
    scan = KSpaceGeometry(golden_angle_radial(volume, 6), 3, volume, frame=np.array([0, 0, 0, 1, 1, 1]))
    return KSpaceEncoding(scan, fine, analytic_sensitivities(fine, 3))


def thick_slices() -> SliceOperator:
    """Twelve pixels of two oblique slices."""
    turn = torch.tensor(frame()[:3, :3], dtype=torch.float32)
    poses = torch.stack([torch.cat([a, torch.tensor([[5.0], [-8.0], [20.0]])], 1) for a in (turn, turn.T)])
    local = torch.cat([8 * torch.rand(12, 2, generator=torch.Generator().manual_seed(1)) - 4, torch.zeros(12, 1)], 1)
    sigma = torch.tensor([[0.6, 0.6, 1.7], [0.5, 0.5, 1.5]])
    return SliceOperator(torch.arange(12) % 2, local, sigma, lambda: poses, 32)


# Of slices in place of rays.
SLICES: dict[type, Callable[[], SampledOperator]] = {SliceOperator: thick_slices}
# Of complex images: the operator, and the shape it acts on.
COMPLEX: dict[type, Callable[[], tuple[KSpaceEncoding | MaskedFourier, tuple[int, ...]]]] = {
    KSpaceEncoding: lambda: (spokes(), spokes().series_shape),
    MaskedFourier: lambda: (MaskedFourier(torch.arange(105).reshape(7, 5, 3) % 3 > 0), (2, 7, 5, 3)),
}


def operator_classes() -> tuple[set[type], set[type]]:
    """All concrete operator classes in `scanfield.operators`, by what they define."""
    sampled, grid = set(), set()
    for found in pkgutil.iter_modules(scanfield.operators.__path__):
        module = importlib.import_module(f"scanfield.operators.{found.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ != module.__name__ or cls in (SampledOperator, GridOperator):
                continue
            if {"samples", "reduce"} <= set(dir(cls)):
                sampled.add(cls)
            if {"apply", "adjoint"} <= set(dir(cls)) and not issubclass(cls, torch.autograd.Function):
                grid.add(cls)
    return sampled, grid


def test_the_tables_name_every_operator():
    assert operator_classes() == (set(SAMPLED) | set(SLICES), set(GRID) | set(COMPLEX))


def disc(of: ProjectionGeometry, radius: float = 9.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact line integrals of a cylinder of 0.02 per mm along the gantry's axis, and its values at the voxels."""
    phantom = Phantom((Ellipsoid((0.0, 0.0, 0.0), (radius, radius, math.inf), value=0.02),))
    inverse = np.linalg.inv(of.frame)
    gantry = replace(of, frame=np.eye(4), volume=of.volume.moved(inverse))
    exact = phantom.line_integrals(gantry.rays(torch.arange(of.count), dtype=torch.float64)).reshape(of.shape)
    parts = np.stack([(np.arange(6) + 0.5) / 6 - 0.5] * 2)
    offsets = np.array([[a, b, 0.0] for a in parts[0] for b in parts[1]]) @ gantry.volume.affine[:3, :3].T
    centres = gantry.volume.points().double()
    values = torch.stack([phantom.values(centres + torch.tensor(o)) for o in offsets]).mean(0)
    return exact, values.float().reshape(of.volume.shape)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("cls", GRID)
def test_dot_product(cls, system):
    """<A x, y> = <x, A* y>."""
    operator = GRID[cls](SYSTEMS[system]())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(operator.grid.shape, generator=generator)
    y = torch.randn(operator.shape, generator=generator)
    ax, aty = operator.apply(x), operator.adjoint(y)
    assert tuple(ax.shape) == tuple(operator.shape) and aty.shape == x.shape
    left, right = (ax.double() * y).sum().item(), (x.double() * aty).sum().item()
    assert left == pytest.approx(right, abs=1e-5 * ax.norm().item() * y.norm().item())


@pytest.mark.parametrize("cls", COMPLEX)
def test_complex_dot_product_linearity_and_gradient(cls):
    """<A x, y> = <x, A^H y>, and the gradient of Re <A x, y> is A^H y."""
    if cls is KSpaceEncoding:
        pytest.importorskip("finufft")
    operator, shape = COMPLEX[cls]()
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(shape, generator=generator, dtype=torch.complex64) for _ in range(2))
    ax = operator.apply(x)
    y = torch.randn(ax.shape, generator=generator, dtype=torch.complex64)
    ahy = operator.adjoint(y)
    left, right = torch.vdot(ax.flatten(), y.flatten()), torch.vdot(x.flatten(), ahy.flatten())
    assert abs(left - right) < 1e-5 * ax.norm() * y.norm()
    tolerance = {"atol": 1e-4 * float(ax.abs().max()), "rtol": 0.0}
    torch.testing.assert_close(operator.apply(2j * x - other), 2j * ax - operator.apply(other), **tolerance)
    x.requires_grad_()
    (operator.apply(x) * y.conj()).real.sum().backward()
    torch.testing.assert_close(x.grad, ahy, atol=1e-4 * float(ahy.abs().max()), rtol=0.0)


@pytest.mark.parametrize("cls", GRID)
def test_linear_and_differentiable(cls):
    operator = GRID[cls](SYSTEMS["fan, flat"]())
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(operator.grid.shape, generator=generator) for _ in range(2))
    torch.testing.assert_close(
        operator.apply(2 * one - two), 2 * operator.apply(one) - operator.apply(two), atol=1e-3, rtol=1e-4
    )
    one.requires_grad_()
    y = torch.randn(operator.shape, generator=generator)
    (operator.apply(one) * y).sum().backward()
    torch.testing.assert_close(one.grad, operator.adjoint(y), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("cls", GRID)
def test_grid_operators_measure_in_mm(cls, system):
    of = SYSTEMS[system]()
    exact, values = disc(of)
    found = GRID[cls](of).apply(values)
    # Rays that leave the volume through its top or bottom see less of the cylinder than the formula.
    level = exact if of.beam != "cone" else exact[:, 1:3]
    found = found if of.beam != "cone" else found[:, 1:3]
    assert (found - level).square().mean().sqrt() < 0.05 * level.max()
    assert found.sum() == pytest.approx(level.sum().item(), rel=0.03)


@pytest.mark.parametrize("system", [s for s in SYSTEMS if "cone" not in s])
@pytest.mark.parametrize("cls", SAMPLED)
def test_sampled_operators_measure_in_mm(cls, system):
    of = SYSTEMS[system]()
    exact, _ = disc(of)
    phantom = Phantom((Ellipsoid((0.0, 0.0, 0.0), (9.0, 9.0, math.inf), value=0.02),))
    inverse = torch.tensor(np.linalg.inv(of.frame))

    def field(x: torch.Tensor) -> torch.Tensor:
        return phantom.values(x.double() @ inverse[:3, :3].T + inverse[:3, 3]).float()[..., None]

    found = predict(field, SAMPLED[cls](of), torch.arange(of.count)).reshape(of.shape)
    # a disc's edge is hit to half a sample (0.1 mm) at either end
    torch.testing.assert_close(found.double(), exact, atol=0.02 * 0.2, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("cls", SAMPLED)
def test_sampled_operators_pass_exact_gradients_to_values(cls, system):
    of = SYSTEMS[system]()
    operator = SAMPLED[cls](replace(of, angles_deg=of.angles_deg[:2]), 5)
    index = torch.tensor([10, 14, 20, 40])
    samples = operator.samples(index)
    channels = 1 if cls is SpectralLineIntegral else 2  # as many as energies
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*samples.x.shape[:-1], channels, generator=generator, dtype=torch.float64)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: operator.reduce(v, samples), values, atol=1e-4, rtol=1e-3)
    assert torch.autograd.gradgradcheck(lambda v: operator.reduce(v, samples).sin(), values, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("cls", SAMPLED)
def test_sampled_operators_are_stratified_with_a_generator_and_agree_on_average(cls):
    of = SYSTEMS["fan, arc"]()
    operator = SAMPLED[cls](of)
    index = torch.arange(of.count)

    def smooth(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(x - torch.tensor(of.volume.centre_mm).float()).square().sum(-1, keepdim=True) / 50)

    plain = predict(smooth, operator, index)
    drawn = predict(smooth, operator, index, torch.Generator().manual_seed(0))
    assert not torch.equal(plain, drawn)
    torch.testing.assert_close(plain, drawn, atol=0.02, rtol=0)


@pytest.mark.parametrize("cls", SAMPLED)
def test_an_empty_index_is_an_empty_prediction(cls):
    operator = SAMPLED[cls](SYSTEMS["parallel"]())
    assert predict(lambda x: x[..., :1], operator, torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("cls", SLICES)
def test_slice_operators_are_means_with_exact_gradients(cls):
    """A constant is itself, whatever the point spread; values get exact gradients; nothing asked is nothing told."""
    operator = SLICES[cls]()
    index = torch.arange(math.prod(operator.shape))
    for generator in (None, torch.Generator().manual_seed(0)):
        told = predict(lambda x: torch.full_like(x[..., :1], 3.0), operator, index, generator)
        torch.testing.assert_close(told, torch.full((len(index),), 3.0))
    samples = operator.samples(index[:3])
    channels = 1 if cls is SpectralLineIntegral else 2  # as many as energies
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*samples.x.shape[:-1], channels, generator=generator, dtype=torch.float64)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: operator.reduce(v, samples), values)
    assert torch.autograd.gradgradcheck(lambda v: operator.reduce(v, samples).sin(), values)
    assert predict(lambda x: x[..., :1], operator, index[:0]).shape == (0,)
