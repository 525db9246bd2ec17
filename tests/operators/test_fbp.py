"""Filtered backprojection of discs with exact line integrals, in absolute units, and against other libraries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.operators.fbp import coverage, filtered_backprojection
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors

GRID = Grid.centred((128, 128, 1), 2.0)
DISCS = [  # x, y, radius in mm, attenuation in 1/mm added
    (0.0, 0.0, 105.0, 0.02),
    (45.0, 12.0, 20.0, 0.01),
    (-50.0, 30.0, 18.0, -0.015),
    (10.0, -60.0, 14.0, 0.02),
]
FAN = {"source_to_axis_mm": 500.0, "source_to_detector_mm": 900.0}
TILT = np.eye(4)
TILT[:3, :3] = Rotation.from_euler("xyz", [25, -40, 65], degrees=True).as_matrix()
TILT[:3, 3] = [40.0, -70.0, 110.0]


def flat(columns: int, pitch_mm: float, offset_mm: float = 0.0) -> Detector:
    return Detector("flat", (1, columns), (2.0, pitch_mm), (0.0, offset_mm))


def arc(columns: int, offset_deg: float = 0.0) -> Detector:
    return Detector("arc", (1, columns), (2.0, 0.2), (0.0, offset_deg))


def parallel(angles_deg: np.ndarray, detector: Detector, grid: Grid = GRID, **more: Any) -> ProjectionGeometry:
    return ProjectionGeometry("parallel", angles_deg, detector, grid, **more)


def fan(angles_deg: np.ndarray, detector: Detector, grid: Grid = GRID, **more: Any) -> ProjectionGeometry:
    return ProjectionGeometry("fan", angles_deg, detector, grid, **FAN, **more)


def vectors_of(geometry: ProjectionGeometry) -> ProjectionGeometry:
    """The same detector plane, shifted along itself by a millimetre or two from view to view."""
    v = geometry.view_vectors()
    jitter = np.random.default_rng(0).uniform(-2, 2, (geometry.views, 1)) * v.u / np.linalg.norm(v.u, axis=1)[:, None]
    return replace(geometry, vectors=ViewVectors(v.source, v.centre + jitter, v.u, v.v))


HALF, TURN = np.arange(0, 180, 0.5), np.arange(0, 360, 0.5)
SCANS = {
    "parallel, half turn": parallel(HALF, flat(129, 2.0)),
    "parallel, full turn, odd start": parallel(TURN - 77.3, flat(129, 2.0)),
    "parallel, falling angles, offset": parallel(-HALF, flat(129, 2.0, 3.1)),
    "parallel, golden angles": parallel(np.arange(360) * 111.246, flat(129, 2.0)),
    "parallel, two densities": parallel(
        np.concatenate([np.arange(0, 90, 0.3), np.arange(90, 180, 0.7)]), flat(129, 2.0)
    ),
    "parallel, 220 degrees": parallel(np.arange(0, 220, 0.5), flat(129, 2.0)),
    "parallel, displaced detector": parallel(TURN, flat(72, 2.0, 45.0)),
    "parallel, vectors": vectors_of(parallel(HALF, flat(133, 2.0))),
    "fan flat, full turn": fan(TURN, flat(129, 3.6)),
    "fan flat, quarter-pixel offset": fan(TURN, flat(129, 3.6, 0.9)),
    "fan flat, short scan": fan(np.arange(20, 20 + 180 + 29, 0.5), flat(129, 3.6)),
    "fan flat, 270 degrees": fan(np.arange(0, 270, 0.5), flat(129, 3.6)),
    "fan flat, displaced detector": fan(TURN, flat(72, 3.6, -80.0)),
    "fan flat, vectors": vectors_of(fan(TURN, flat(133, 3.6))),
    "fan arc, full turn": fan(TURN, arc(141)),
    "fan arc, short scan, falling": fan(-np.arange(0, 180 + 31, 0.5), arc(141, 0.3)),
    "fan arc, displaced detector": fan(TURN, arc(80, 4.8)),
}


def disc_integrals(geometry: ProjectionGeometry) -> torch.Tensor:
    """Exact chords, averaged over five rays per bin; discs extend along the gantry's axis."""
    total = torch.zeros(geometry.count, dtype=torch.float64)
    back = torch.tensor(np.linalg.inv(geometry.frame))
    for shift in np.linspace(-0.4, 0.4, 5):
        rays = geometry.rays(torch.arange(geometry.count), column_shift=shift, dtype=torch.float64)
        origin, direction = rays.origin @ back[:3, :3].T + back[:3, 3], rays.direction @ back[:3, :3].T
        for x, y, radius, mu in DISCS:
            s = (x - origin[:, 0]) * direction[:, 1] - (y - origin[:, 1]) * direction[:, 0]
            total += 2 * mu * (radius**2 - s**2).clamp(min=0).sqrt() / 5
    return total.reshape(geometry.shape).float()


def discs(grid: Grid, frame: np.ndarray) -> torch.Tensor:
    """Attenuation at voxel centres, averaged over 5 x 5 points per voxel."""
    back = np.linalg.inv(frame) @ grid.affine
    steps = [(a, b, 0.0) for a in np.linspace(-0.4, 0.4, 5) for b in np.linspace(-0.4, 0.4, 5)]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    total = np.zeros(grid.shape)
    for step in steps:
        x = (index + step) @ back[:3, :3].T + back[:3, 3]
        for cx, cy, radius, mu in DISCS:
            total += mu * (np.hypot(x[..., 0] - cx, x[..., 1] - cy) < radius) / len(steps)
    return torch.tensor(total).float()


def regions(grid: Grid, frame: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """(true attenuation, mask) well inside each small disc and of a ring of the large one."""
    x = (np.linalg.inv(frame) @ grid.affine @ np.vstack([np.indices(grid.shape).reshape(3, -1), np.ones(grid.size)]))[
        :2
    ]
    reach = [np.hypot(x[0] - cx, x[1] - cy).reshape(grid.shape) for cx, cy, *_ in DISCS]
    found = [(DISCS[0][3] + d[3], r < d[2] - 6) for d, r in zip(DISCS[1:], reach[1:], strict=True)]
    return [*found, (DISCS[0][3], (reach[0] > 85) & (reach[0] < 97))]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    return 10 * math.log10(float(reference.max()) ** 2 / float(((image - reference) ** 2).mean()))


@pytest.mark.parametrize("name", SCANS)
def test_recovers_attenuation_in_absolute_units(name):
    geometry = SCANS[name]
    image = filtered_backprojection(disc_integrals(geometry), geometry, GRID)
    for mu, mask in regions(GRID, np.eye(4)):
        assert float(image[mask].mean()) == pytest.approx(mu, abs=0.005 * 0.02)
        assert float(image[mask].std()) < 0.02 * 0.02
    assert psnr(image, discs(GRID, np.eye(4))) > 33  # a shift by one pixel gives 21


@pytest.mark.parametrize("beam", [parallel, fan])
def test_several_rows_oblique_left_handed_and_off_centre_grids(beam):
    """Three rows 4 mm apart, slices 5 mm: one volume in its own gantry, one mirrored, shifted and resampled."""
    views = TURN[::2]
    for frame in (np.eye(4), TILT):
        box = Grid.centred((90, 100, 3), (2.5, 2.2, 4.0))
        mirrored = box.affine @ np.array([[-1.0, 0, 0, 80], [0, 1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]])
        grid = Grid(box.shape, frame @ mirrored)
        detector = Detector("flat", (3, 129), (4.0, 2.0 if beam is parallel else 3.6))
        geometry = beam(views, detector, grid, frame=frame)
        image = filtered_backprojection(disc_integrals(geometry), geometry, grid)
        for mu, mask in regions(grid, frame):
            assert float(image[mask].mean()) == pytest.approx(mu, abs=0.005 * 0.02)
        assert psnr(image, discs(grid, frame)) > 29


def test_a_grid_tilted_against_the_slices():
    """Twenty rows; the grid is rotated about an axis across them, and leaves their range in its corners."""
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("x", 8, degrees=True).as_matrix()
    grid = Grid.centred((100, 100, 2), (2.2, 2.2, 3.0)).moved(tilt)
    geometry = parallel(TURN[::2], Detector("flat", (20, 129), (2.0, 2.0)), grid)
    image = filtered_backprojection(disc_integrals(geometry), geometry, grid)
    height = grid.points()[:, 2].reshape(grid.shape).abs().numpy()
    for mu, mask in regions(grid, np.eye(4)):
        seen = mask & (height < 19)
        if seen.any():
            assert float(image[seen].mean()) == pytest.approx(mu, abs=0.005 * 0.02)
    assert not bool(image[height > 20.1].any())


def test_rows_are_read_at_their_height():
    """Row r scales the scan by r + 1; slices between rows get the mean of both."""
    rows = parallel(HALF, Detector("flat", (3, 129), (4.0, 2.0)))
    single = disc_integrals(parallel(HALF, flat(129, 2.0)))
    grid = Grid.centred((128, 128, 5), 2.0)
    image = filtered_backprojection(single * torch.tensor([1.0, 2.0, 3.0])[:, None], rows, grid)
    one = filtered_backprojection(single, parallel(HALF, flat(129, 2.0)), GRID)
    for k, factor in enumerate([1.0, 1.5, 2.0, 2.5, 3.0]):
        assert torch.allclose(image[..., k : k + 1], factor * one, atol=1e-6)


def test_windows_damp_the_finest_detail_only():
    geometry = SCANS["parallel, half turn"]
    sinogram = disc_integrals(geometry)
    noisy = sinogram + 0.02 * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0))
    spread = []
    for window in ("ram-lak", "shepp-logan", "cosine", "hann"):
        image = filtered_backprojection(noisy, geometry, GRID, window=window)
        mu, mask = regions(GRID, np.eye(4))[-1]
        assert float(image[mask].mean()) == pytest.approx(mu, rel=0.01)
        spread.append(float(image[mask].std()))
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.6 * spread[0]


def test_equals_scikit_image():
    iradon = pytest.importorskip("skimage.transform").iradon
    grid = Grid.centred((129, 129, 1), 2.0)
    angles = np.arange(0, 180, 1.0)
    geometry = parallel(angles, flat(129, 2.0), grid)
    sinogram = disc_integrals(geometry)
    ours = filtered_backprojection(sinogram, geometry, grid)[..., 0]
    # iradon has unit pixels, x along columns and y against rows
    theirs = iradon(sinogram[:, 0].numpy().T / 2.0, theta=angles, filter_name="ramp", circle=True).T[:, ::-1]
    inscribed = torch.hypot(*grid.points()[:, :2].T).reshape(129, 129) < 125
    assert psnr(torch.tensor(theirs.copy())[inscribed], ours[inscribed]) > 40


@pytest.mark.verify
def test_equals_astra():
    astra: Any = pytest.importorskip("astra", reason="needs the extra 'verify'")
    geometry = parallel(np.arange(0, 180, 1.0) + 7, flat(160, 2.0))
    sinogram = disc_integrals(geometry)
    n, half = 128, 128.0
    volume = astra.create_vol_geom(n, n, -half, half, -half, half)
    scan = astra.create_proj_geom("parallel", 2.0, 160, np.deg2rad(geometry.angles_deg))
    projector = astra.create_projector("linear", scan, volume)
    data = astra.data2d.create("-sino", scan, sinogram[:, 0].numpy())
    out = astra.data2d.create("-vol", volume)
    config = astra.astra_dict("FBP") | {"ProjectorId": projector, "ProjectionDataId": data, "ReconstructionDataId": out}
    algorithm = astra.algorithm.create(config)
    astra.algorithm.run(algorithm)
    theirs = torch.tensor(np.ascontiguousarray(astra.data2d.get(out)[::-1].T))
    astra.algorithm.delete(algorithm)
    astra.data2d.delete([data, out])
    astra.projector.delete(projector)
    ours = filtered_backprojection(sinogram, geometry, GRID)[..., 0]
    assert psnr(ours, theirs) > 38


def test_coverage_shares_the_circle():
    equal = coverage(np.arange(0, 360, 10.0), 360)
    assert equal.closed and np.allclose(equal.weight, np.deg2rad(10))
    doubled = coverage(np.repeat(np.arange(0, 360, 10.0), 2), 360)
    assert doubled.closed and np.allclose(doubled.weight, np.deg2rad(5))
    half = coverage(np.arange(0, 180, 2.0) + 300, 360)
    assert not half.closed and np.allclose(half.weight, np.deg2rad(2))
    assert (half.start_deg, half.extent_deg) == pytest.approx((299, 180))
    folded = coverage(np.arange(0, 360, 2.0), 180)
    assert folded.closed and np.allclose(folded.weight, np.deg2rad(1))
    wedge = coverage(np.arange(-60, 60, 2.0), 180)
    assert not wedge.closed and wedge.weight.sum() == pytest.approx(np.deg2rad(120))
    uneven = coverage(np.array([0.0, 20, 30, 60, 90, 110, 130, 160]), 180)
    assert uneven.closed and uneven.weight.sum() == pytest.approx(np.pi)
    assert coverage(np.array([5.0]), 180).weight == pytest.approx(np.pi)


def test_what_cannot_be_filtered_is_refused():
    cone = ProjectionGeometry("cone", HALF, flat(9, 2.0), GRID, **FAN)
    with pytest.raises(InputError, match="takes parallel and fan beams"):
        filtered_backprojection(torch.zeros(cone.shape), cone, GRID)
    good = fan(TURN, flat(129, 3.6))
    v, zeros = good.view_vectors(), torch.zeros(good.shape)
    climbing = np.linspace(0, 30, good.views)[:, None] * v.v / 2
    for change, words in (
        ({"centre": v.centre + climbing, "source": v.source + climbing}, "moves along the axis"),
        ({"v": v.v + 0.3 * v.u}, "tilted"),
        ({"source": v.source * np.linspace(0.8, 1.2, good.views)[:, None]}, "distances"),
        ({"source": v.source + 3 * v.u * 10}, "does not face"),
    ):
        with pytest.raises(InputError, match=words):
            filtered_backprojection(zeros, replace(good, vectors=replace(v, **change)), GRID)
    with pytest.raises(InputError, match="their geometry"):
        filtered_backprojection(zeros[:3], good, GRID)
    above = Grid(GRID.shape, GRID.affine + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 50.0], [0, 0, 0, 0]]))
    with pytest.raises(InputError, match="no slice"):
        filtered_backprojection(zeros, good, above)
