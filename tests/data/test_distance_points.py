"""Points near surfaces: the shares, the places, the distances that belong to them, on ragged frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.distance_points import DistancePoints
from scanfield.space.grid import Grid

OBLIQUE = np.array([[0.8, -0.3, 0.1, 40.0], [0.4, 0.7, 0.0, -9.0], [0.0, 0.1, -1.5, 7.0], [0, 0, 0, 1.0]])
GRIDS = [Grid((6, 7, 5), OBLIQUE), Grid.centred((9, 8, 10), 1.0)]
CENTRES = [torch.tensor(grid.centre_mm, dtype=torch.float32) for grid in GRIDS]


def distance(x: torch.Tensor, k: int) -> torch.Tensor:
    return (x - CENTRES[k]).norm(dim=-1) - 2.0


def made(near_mm: float = 0.5) -> DistancePoints:
    values = [distance(grid.points(), k).reshape(grid.shape) for k, grid in enumerate(GRIDS)]
    return DistancePoints(values, GRIDS, [3.0, 8.0], near_mm=near_mm)


def drawn(points: int = 4000, frames: int = 2) -> torch.Tensor:
    return torch.rand(frames, points, generator=torch.Generator().manual_seed(0))


def test_every_point_is_a_voxel_of_its_frame_with_its_distance_and_moment():
    x, d = made().at(torch.tensor([1, 0]), drawn(), near_share=0.7)
    assert x.shape == (2, 4000, 4) and d.shape == (2, 4000)
    for row, k in enumerate((1, 0)):
        torch.testing.assert_close(d[row], distance(x[row, :, :3], k), atol=1e-4, rtol=0)
        voxel = GRIDS[k].to_voxel(x[row, :, :3])
        torch.testing.assert_close(voxel, voxel.round(), atol=1e-4, rtol=0)
        assert (x[row, :, 3] == (3.0, 8.0)[k]).all()


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_near_points_have_their_share_and_all_of_a_kind_are_equally_likely(share):
    _, d = made().at(torch.tensor([0, 1]), drawn(), near_share=share)
    assert ((d <= 0.5).float().mean(dim=1) == share).all()
    x, d = made().at(torch.tensor([1]), drawn(40_000, 1), near_share=0.5)
    near = GRIDS[1].to_voxel(x[0, :20_000, :3]).round().long()
    index = (near[:, 0] * 8 + near[:, 1]) * 10 + near[:, 2]
    wanted = int((distance(GRIDS[1].points(), 1) <= 0.5).sum())
    counts = torch.bincount(index)[torch.bincount(index) > 0]
    assert len(counts) == wanted and counts.min() > 0.7 * 20_000 / wanted and counts.max() < 1.3 * 20_000 / wanted


@pytest.mark.parametrize(("near_mm", "inside"), [(99.0, True), (-99.0, False)])
def test_a_kind_that_a_frame_lacks_is_replaced_by_the_other(near_mm, inside):
    _, d = made(near_mm).at(torch.tensor([0, 1]), drawn(), near_share=0.5)
    assert ((d <= near_mm) == inside).all() and torch.isfinite(d).all()


def test_ends_of_the_draw_stay_in_the_frame():
    ends = torch.tensor([[0.0, 1.0 - 2**-24, 0.0, 1.0 - 2**-24]])
    x, _ = made().at(torch.tensor([1]), ends, near_share=0.5)
    voxel = GRIDS[1].to_voxel(x[0, :, :3]).round()
    assert (voxel >= 0).all() and (voxel < torch.tensor(GRIDS[1].shape)).all()


def test_frames_grids_and_times_go_together():
    values = torch.zeros(GRIDS[0].shape)
    with pytest.raises(ValueError, match="do not suit"):
        DistancePoints([values], GRIDS[:1], [0.0, 1.0], near_mm=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        DistancePoints([values], GRIDS[1:], [0.0], near_mm=1.0)
