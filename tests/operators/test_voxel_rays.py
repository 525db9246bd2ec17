from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.operators.voxel_rays import StackedRows, first_row, stacked_rows, voxel_rays
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((8, 8, 5), (2.0, 2.0, 3.0))


def scan(beam: str, frame: np.ndarray | None = None) -> ProjectionGeometry:
    return ProjectionGeometry(
        beam,  # type: ignore[arg-type]
        np.array([0.0, 40.0, 90.0]),
        Detector("flat", (3, 7), (1.5, 2.0), (0.75, 0.0)),
        GRID,
        source_to_axis_mm=60.0,
        source_to_detector_mm=90.0,
        frame=np.eye(4) if frame is None else frame,
    )


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_rows_see_the_slices_at_their_height(beam):
    """Rows at -0.75, 0.75 and 2.25 mm; slices of 3 mm about z = 0 at index 2."""
    stack = stacked_rows(scan(beam), GRID)
    assert stack is not None and stack.axis == 2
    assert np.allclose(stack.position, [1.75, 2.25, 2.75])
    shifted = stacked_rows(scan(beam), GRID, row_shift=0.5)
    assert shifted is not None and np.allclose(shifted.position, [2.0, 2.5, 3.0])


def test_slices_may_lie_along_any_axis_but_not_across_the_rays():
    permuted = Grid((5, 8, 8), GRID.affine[:, [2, 0, 1, 3]])
    stack = stacked_rows(scan("fan"), permuted)
    assert stack is not None and stack.axis == 0
    assert stacked_rows(scan("cone"), GRID) is None
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("x", 1.0, degrees=True).as_matrix()
    assert stacked_rows(scan("fan"), GRID.moved(tilt)) is None
    assert stacked_rows(scan("fan", tilt), GRID.moved(tilt)) is not None


def test_slice_weights():
    stack = StackedRows(2, np.array([1.75, 0.5, -0.4, 6.0]))
    assert stack.linear_weights(3).tolist() == [[0, 0.25, 0.75], [0.5, 0.5, 0], pytest.approx([0.6, 0, 0]), [0, 0, 0]]
    assert stack.nearest_weights(3).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert stack.linear_weights(1).tolist() == [[0], [1], [1], [0]]


def test_voxel_rays_keep_millimetres_along_the_ray():
    """A point t mm along the world ray is the point t along the ray in voxels."""
    geometry = scan("cone")
    index = torch.tensor([0, 20, 45])
    world, voxels = geometry.rays(index, dtype=torch.float64), voxel_rays(geometry, GRID, index)
    expected = GRID.to_voxel(world.origin + 37.0 * world.direction)
    assert torch.allclose(voxels.origin + 37.0 * voxels.direction, expected)
    assert torch.equal(first_row(geometry), torch.arange(63).reshape(3, 3, 7)[:, 0].reshape(-1))
