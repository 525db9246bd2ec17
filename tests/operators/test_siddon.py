"""The simulator against Siddon's sorted crossings, ray by ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.errors import InputError
from scanfield.kernels import library
from scanfield.kernels.backend import using
from scanfield.operators.siddon import project_voxels
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

KERNEL = pytest.param("cpu", marks=pytest.mark.skipif(library.missing() is not None, reason="kernels not built"))
TILT = np.eye(4)
TILT[:3, :3] = Rotation.from_euler("xyz", [25, -40, 65], degrees=True).as_matrix()
UPRIGHT = Grid.centred((9, 7, 4), (2.0, 2.5, 3.0))
FLIPPED = Grid((9, 7, 4), UPRIGHT.affine @ np.array([[1.0, 0, 0, 0], [0, -1, 0, 6], [0, 0, 1, 0], [0, 0, 0, 1]]))
SYSTEMS = [("parallel", "flat"), ("fan", "flat"), ("fan", "arc"), ("cone", "flat"), ("cone", "arc")]


def scan(beam: str, kind: str, grid: Grid, frame: np.ndarray | None = None) -> ProjectionGeometry:
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        np.array([0.0, 33.0, 45.0, 111.0, 250.0]),
        Detector(kind, (3, 9), (2.7, 1.3 if kind == "arc" else 2.1), (0.4, 0.31)),  # type: ignore[arg-type]
        grid,
        source_to_axis_mm=60.0,
        source_to_detector_mm=100.0,
        frame=np.eye(4) if frame is None else frame,
    )


def sorted_crossings(volume: np.ndarray, grid: Grid, geometry: ProjectionGeometry) -> np.ndarray:
    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    inverse = np.linalg.inv(grid.affine)
    out = np.zeros(geometry.count)
    for k, (o, d) in enumerate(zip(rays.origin.numpy(), rays.direction.numpy(), strict=True)):
        o, d = inverse[:3, :3] @ o + inverse[:3, 3], inverse[:3, :3] @ d
        times = [(np.arange(n + 1) - 0.5 - o[a]) / d[a] for a, n in enumerate(grid.shape) if abs(d[a]) > 1e-12]
        t = np.sort(np.concatenate(times))
        voxel = np.floor(o + (t[1:] + t[:-1])[:, None] / 2 * d + 0.5).astype(int)
        inside = ((voxel >= 0) & (voxel < np.array(grid.shape))).all(axis=1)
        out[k] = (np.diff(t)[inside] * volume[tuple(voxel[inside].T)]).sum()
    return out.reshape(geometry.shape)


@pytest.mark.parametrize("grid", [UPRIGHT, FLIPPED, UPRIGHT.moved(TILT)], ids=["upright", "left-handed", "oblique"])
@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
@pytest.mark.parametrize("backend", ["reference", KERNEL])
def test_equals_sorted_crossings(beam, kind, grid, backend):
    geometry = scan(beam, kind, grid)
    volume = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    with using(backend):
        ours = project_voxels(volume, grid, geometry)
    theirs = sorted_crossings(volume.double().numpy(), grid, geometry)
    assert theirs.max() > 5
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_an_oblique_volume_in_its_own_gantry_gives_the_same_scan():
    volume = torch.rand(UPRIGHT.shape, generator=torch.Generator().manual_seed(1))
    plain = project_voxels(volume, UPRIGHT, scan("fan", "flat", UPRIGHT))
    moved = UPRIGHT.moved(TILT)
    assert torch.allclose(project_voxels(volume, moved, scan("fan", "flat", moved, TILT)), plain, atol=1e-4)


@pytest.mark.parametrize("beam", ["fan", "cone"])
def test_subsamples_average_rays_spread_over_the_pixel(beam):
    """Rows and columns cut in three: the same as a detector of thrice as many pixels, averaged."""
    volume = torch.rand(UPRIGHT.shape, generator=torch.Generator().manual_seed(2))
    coarse = scan(beam, "flat", UPRIGHT)
    (dv, du), offset = coarse.detector.spacing, coarse.detector.offset
    fine = ProjectionGeometry(
        beam, coarse.angles_deg, Detector("flat", (9, 27), (dv / 3, du / 3), offset), UPRIGHT, 60.0, 100.0
    )
    averaged = project_voxels(volume, UPRIGHT, fine).reshape(5, 3, 3, 9, 3).mean(dim=(2, 4))
    assert torch.allclose(project_voxels(volume, UPRIGHT, coarse, subsamples=(3, 3)), averaged, atol=1e-4)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="its grid"):
        project_voxels(torch.zeros(2, 2, 2), UPRIGHT, scan("fan", "flat", UPRIGHT))
    with pytest.raises(InputError, match="at least 1"):
        project_voxels(torch.zeros(UPRIGHT.shape), UPRIGHT, scan("fan", "flat", UPRIGHT), subsamples=(0, 1))
