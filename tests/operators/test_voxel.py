"""The voxel projector against Joseph's sum written out with scipy, analytic integrals, and its own transpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.kernels import library
from scanfield.kernels.backend import using
from scanfield.operators import voxel
from scanfield.operators.rays import LineIntegral
from scanfield.operators.siddon import project_voxels
from scanfield.operators.voxel import VoxelProjector
from scanfield.operators.voxel_rays import stacked_rows
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

SYSTEMS = [("parallel", "flat"), ("fan", "flat"), ("fan", "arc"), ("cone", "flat"), ("cone", "arc")]

TILT = np.eye(4)
TILT[:3, :3] = Rotation.from_euler("xyz", [25, -40, 65], degrees=True).as_matrix()
TILT[:3, 3] = [4.0, -7.0, 11.0]
UPRIGHT = Grid.centred((11, 9, 4), (2.0, 2.5, 3.0))
FLIPPED = Grid((11, 9, 4), UPRIGHT.affine @ np.array([[-1.0, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
SIDEWAYS = Grid((4, 11, 9), UPRIGHT.affine[:, [2, 0, 1, 3]])  # slices along the first array axis
SHEARED = Grid((11, 9, 4), UPRIGHT.affine @ np.array([[1.0, 0.2, 0.1, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
GRIDS = {
    "upright": (UPRIGHT, np.eye(4)),
    "left-handed": (FLIPPED, np.eye(4)),
    "sideways": (SIDEWAYS, np.eye(4)),
    "oblique, gantry upright": (UPRIGHT.moved(TILT), np.eye(4)),
    "oblique with its gantry": (UPRIGHT.moved(TILT), TILT),
    "sheared": (SHEARED, np.eye(4)),
}


def scan(beam: str, kind: str, grid: Grid, frame: np.ndarray) -> ProjectionGeometry:
    column = 1.3 if kind == "arc" else 2.1
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        np.array([0.0, 30.0, 45.0, 111.0, 200.0]),
        Detector(kind, (3, 13), (2.7, column), (0.4, 0.3)),  # type: ignore[arg-type]
        grid,
        source_to_axis_mm=60.0,
        source_to_detector_mm=100.0,
        frame=frame,
    )


def joseph(volume: np.ndarray, grid: Grid, geometry: ProjectionGeometry) -> np.ndarray:
    """Planes crossed one by one, every value interpolated by scipy; zero outside the lattice."""
    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    inverse = np.linalg.inv(grid.affine)
    out = np.zeros(geometry.count)
    for k, (o, d) in enumerate(zip(rays.origin.numpy(), rays.direction.numpy(), strict=True)):
        o, d = inverse[:3, :3] @ o + inverse[:3, 3], inverse[:3, :3] @ d
        a = int(np.argmax(np.abs(d)))
        places = o[:, None] + d[:, None] * (np.arange(grid.shape[a]) - o[a]) / d[a]
        places[a] = np.arange(grid.shape[a])
        out[k] = map_coordinates(volume, places, order=1, mode="grid-constant").sum() / abs(d[a])
    return out.reshape(geometry.shape)


KERNEL = pytest.param("cpu", marks=pytest.mark.skipif(library.missing() is not None, reason="kernels not built"))


@pytest.fixture(params=["reference", KERNEL])
def backend(request):
    with using(request.param):
        yield request.param


@pytest.mark.parametrize("memory_gib", [1.0, 0.0], ids=["stored", "matrix-free"])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
def test_is_josephs_sum_and_its_transpose(beam, kind, name, memory_gib, backend):
    grid, frame = GRIDS[name]
    geometry = scan(beam, kind, grid, frame)
    projector = VoxelProjector(geometry, grid, memory_gib=memory_gib)
    in_slices = stacked_rows(geometry, grid) is not None
    assert projector.stored == (memory_gib > 0 and (in_slices or backend == "reference"))
    draw = torch.Generator().manual_seed(3)
    x, y = torch.rand(grid.shape, generator=draw), torch.rand(projector.shape, generator=draw)
    ax, aty = projector.apply(x), projector.adjoint(y)
    assert float(ax.max()) > 5
    np.testing.assert_allclose(ax.numpy(), joseph(x.double().numpy(), grid, projector.geometry), rtol=2e-4, atol=2e-4)
    left, right = float((ax.double() * y).sum()), float((x.double() * aty).sum())
    assert abs(left - right) < 1e-6 * abs(left)


@pytest.mark.parametrize("memory_gib", [1.0, 0.0], ids=["stored", "matrix-free"])
@pytest.mark.parametrize(("beam", "kind"), [("fan", "arc"), ("cone", "flat")])
def test_gradients_of_first_and_second_order(beam, kind, memory_gib, backend):
    grid = Grid.centred((4, 3, 2), (5.0, 6.0, 4.0))
    geometry = replace(scan(beam, kind, grid, np.eye(4)), angles_deg=np.array([20.0, 100.0]))
    projector = VoxelProjector(geometry, grid, memory_gib=memory_gib)
    x = torch.rand(grid.shape, dtype=torch.float64, requires_grad=True)
    y = torch.rand(projector.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(projector.apply, x)
    assert torch.autograd.gradcheck(projector.adjoint, y)
    assert torch.autograd.gradgradcheck(lambda v: projector.apply(v) ** 2, x)


def slice_scan(beam: str, grid: Grid, bin_mm: float = 1.0) -> ProjectionGeometry:
    """Fan bins are twice as wide on the detector, so both beams have the same bins at the axis."""
    bins = int(110 / bin_mm) | 1
    detector = Detector("flat", (1, bins), (1.0, bin_mm * (1 if beam == "parallel" else 2)))
    angles = np.array([0.0, 20.0, 45.0, 90.0, 137.0])
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        angles,
        detector,
        grid,
        source_to_axis_mm=300.0,
        source_to_detector_mm=600.0,
    )


def distance_to(geometry: ProjectionGeometry, x: float, y: float) -> torch.Tensor:
    """Of every ray from the point (x, y, 0)."""
    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    to_point = torch.tensor([x, y, 0.0], dtype=torch.float64) - rays.origin
    return torch.linalg.cross(to_point, rays.direction).norm(dim=1).reshape(geometry.shape)


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_a_disc_weighs_its_chord_whatever_the_voxel_size(beam, spacing_mm):
    n = round(100 / spacing_mm)
    grid = Grid.centred((n, n, 1), (spacing_mm, spacing_mm, 3.0))
    x = grid.points()
    radius, mu = 30.0, 0.02
    reach = torch.hypot(x[:, 0] - 8.0, x[:, 1] + 5.0)
    disc = (mu * ((radius - reach) / spacing_mm + 0.5).clamp(0, 1)).reshape(grid.shape)
    geometry = slice_scan(beam, grid)
    s = distance_to(geometry, 8.0, -5.0)
    chord = 2 * mu * (radius**2 - s**2).clamp(min=0).sqrt()
    assert float(chord.max()) == pytest.approx(2 * radius * mu, rel=1e-3)
    well_inside = s < 0.8 * radius
    assert torch.allclose(
        VoxelProjector(geometry, grid).apply(disc)[well_inside].double(), chord[well_inside], rtol=0.02
    )


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_three_operators_agree_with_the_integral_of_a_smooth_blob(beam):
    """A Gaussian of width w and peak a off the centre has the line integral a w sqrt(2 pi) exp(-s^2 / 2 w^2)."""
    grid = Grid.centred((100, 100, 1), (1.0, 1.0, 3.0))
    geometry = slice_scan(beam, grid)
    peak, width = 0.03, 7.0

    def blob(x: torch.Tensor) -> torch.Tensor:
        return peak * torch.exp(-((x[..., :1] - 12) ** 2 + (x[..., 1:2] + 9) ** 2) / (2 * width**2))

    exact = peak * width * np.sqrt(2 * np.pi) * torch.exp(-(distance_to(geometry, 12.0, -9.0) ** 2) / (2 * width**2))
    volume = blob(grid.points()).reshape(grid.shape)
    sampled = LineIntegral(geometry, Domain.of_grid(grid), 200)
    samples = sampled.samples(torch.arange(geometry.count))
    field = sampled.reduce(blob(samples.x), samples).reshape(geometry.shape)
    for values, tolerance in (
        (VoxelProjector(geometry, grid).apply(volume), 0.005),  # interpolation flattens the peak
        (project_voxels(volume, grid, geometry, subsamples=(1, 4)), 0.01),  # voxels of constant value
        (field, 0.0005),
    ):
        assert float((values - exact).abs().max()) < tolerance * float(exact.max())


@pytest.mark.parametrize("kind", ["flat", "arc"])
def test_three_operators_agree_with_the_integral_of_a_blob_in_a_cone_beam(kind):
    """The same Gaussian in three dimensions; the volume holds it to five widths on every side."""
    grid = Grid.centred((50, 50, 40), (1.5, 1.5, 2.0))
    detector = Detector(kind, (24, 30), (6.0, 0.6 if kind == "arc" else 6.0), (3.0, 1.0))
    geometry = ProjectionGeometry(
        "cone",
        np.array([0.0, 35.0, 160.0]),
        detector,
        grid,
        source_to_axis_mm=300.0,
        source_to_detector_mm=600.0,
    )
    centre, peak, width = torch.tensor([4.0, -5.0, 3.0], dtype=torch.float64), 0.03, 6.0

    def blob(x: torch.Tensor) -> torch.Tensor:
        return peak * torch.exp(-(x - centre.to(x)).square().sum(-1, keepdim=True) / (2 * width**2))

    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    distance = torch.linalg.cross(centre - rays.origin, rays.direction).norm(dim=1).reshape(geometry.shape)
    exact = peak * width * np.sqrt(2 * np.pi) * torch.exp(-(distance**2) / (2 * width**2))
    volume = blob(grid.points()).reshape(grid.shape)
    sampled = LineIntegral(geometry, Domain.of_grid(grid), 120)
    samples = sampled.samples(torch.arange(geometry.count))
    field = sampled.reduce(blob(samples.x), samples).reshape(geometry.shape)
    for values, tolerance in (
        (VoxelProjector(geometry, grid).apply(volume), 0.02),
        (project_voxels(volume, grid, geometry, subsamples=(2, 2)), 0.08),  # the blob is off by up to half a voxel
        (field, 0.001),
    ):
        assert float((values - exact).abs().max()) < tolerance * float(exact.max())


def test_a_single_slice_fills_its_thickness():
    thick = Grid.centred((10, 10, 1), (1.0, 1.0, 8.0))
    ones = torch.ones(thick.shape)
    for row_mm, seen in ((3.0, True), (5.0, False)):
        geometry = ProjectionGeometry(
            "parallel", np.zeros(1), Detector("flat", (1, 3), (1.0, 1.0), (row_mm, 0.0)), thick
        )
        assert float(VoxelProjector(geometry, thick).apply(ones)[0, 0, 1]) == pytest.approx(10.0 if seen else 0.0)


@pytest.mark.parametrize("beam", ["fan", "cone"])
def test_sums_and_norm(beam):
    geometry = scan(beam, "flat", UPRIGHT, np.eye(4))
    projector = VoxelProjector(geometry, UPRIGHT)
    matrix = torch.stack(
        [projector.apply(e.reshape(UPRIGHT.shape)).reshape(-1) for e in torch.eye(UPRIGHT.size)], dim=1
    )
    rows, columns = projector.sums()
    assert torch.allclose(rows.reshape(-1), matrix.sum(dim=1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(columns.reshape(-1), matrix.sum(dim=0), rtol=1e-4, atol=1e-4)
    assert projector.norm(200) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)


def test_wrong_shapes_are_refused():
    projector = VoxelProjector(scan("parallel", "flat", UPRIGHT, np.eye(4)), UPRIGHT)
    with pytest.raises(InputError, match="volume have shape"):
        projector.apply(torch.zeros(3, 3, 3))
    with pytest.raises(InputError, match="projections have shape"):
        projector.adjoint(torch.zeros(5, 3, 12))


def test_a_large_cone_scan_needs_no_matrix_and_gives_the_same_in_chunks(monkeypatch):
    """Rays computed anew in chunks of 50, against rays that are kept."""
    geometry = scan("cone", "flat", UPRIGHT, np.eye(4))
    kept, chunked = (VoxelProjector(geometry, UPRIGHT, memory_gib=g) for g in (1.0, 0.0))
    monkeypatch.setattr(voxel, "RAYS_PER_CHUNK", 50)
    draw = torch.Generator().manual_seed(4)
    x, y = torch.rand(UPRIGHT.shape, generator=draw), torch.rand(kept.shape, generator=draw)
    torch.testing.assert_close(chunked.apply(x), kept.apply(x))
    torch.testing.assert_close(chunked.adjoint(y), kept.adjoint(y))
