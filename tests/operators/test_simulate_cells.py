"""Evolving objects: the stated growth, drift and division are what the masks show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.simulate_cells import CellOptions, nearest_to_median, simulate_cells, whole_objects
from scanfield.space.grid import Grid

OBLIQUE = np.array([[0.9, -0.3, 0.0, 40.0], [0.3, 0.9, 0.0, -9.0], [0.0, 0.0, -1.0, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((34, 30, 28), OBLIQUE)
STILL = CellOptions(frames=3, growth=1.0, deformation=0.0, drift=0.0, turn_deg=0.0, division=0.0, size=28)


def labels(*objects: tuple[int, tuple[float, float, float], tuple[float, float, float]]) -> Scan:
    """Ellipsoids of a value, at a voxel, with half axes in voxels."""
    values = torch.zeros(GRID.shape)
    index = GRID.voxels(torch.arange(GRID.size)).double()
    for value, centre, half in objects:
        inside = ((index - torch.tensor(centre)) / torch.tensor(half)).norm(dim=1) < 1
        values.view(-1)[inside] = value
    return Scan(values, GRID, source="labels.nii.gz")


BALL = labels((3, (16.0, 14.0, 13.0), (6.0, 6.0, 6.0)))


def volumes_mm3(cell) -> np.ndarray:
    return cell.sequence.frames.flatten(1).sum(dim=1).numpy() * cell.sequence.grid.voxel_volume_mm3


def centre_mm(cell, frame: int) -> np.ndarray:
    inside = torch.nonzero(cell.sequence.frames[frame]).double()
    return cell.sequence.grid.to_world(inside).mean(dim=0).numpy()


def test_whole_objects_are_the_largest_parts_inside():
    crumb = labels((2, (8.0, 8.0, 8.0), (5.0, 4.0, 4.0)), (2, (25.0, 20.0, 20.0), (2.5, 2.5, 2.5)))
    (item,) = whole_objects(crumb)
    assert item.name == "label_002"
    full = np.argwhere(crumb.values.numpy()[:14] == 2)
    assert item.mask.sum() == len(full)
    np.testing.assert_allclose(item.grid.to_world(torch.zeros(1, 3))[0], GRID.to_world(torch.tensor(full.min(0)) * 1.0))
    border = labels((1, (2.0, 8.0, 8.0), (5.0, 4.0, 4.0)), (4, (20.0, 15.0, 15.0), (4.0, 4.0, 4.0)))
    assert [item.name for item in whole_objects(border)] == ["label_004"]
    two = labels((1, (10.0, 12.0, 12.0), (4.0, 4.0, 4.0)), (2, (15.0, 12.0, 12.0), (4.0, 4.0, 4.0)))
    (one,) = whole_objects(two, merge=True, name="both")
    assert one.name == "both" and one.mask.sum() == (two.values > 0).sum()


def test_numbers_of_labels_may_be_huge():
    huge = Scan(BALL.values * 2.0**30, GRID)
    (item,) = whole_objects(huge)
    assert item.name == f"label_{3 * 2**30}" and item.mask.sum() == whole_objects(BALL)[0].mask.sum()


def test_a_seed_may_be_any_number():
    objects = whole_objects(BALL)
    first, second = (simulate_cells(objects, replace(STILL, drift=0.5, seed=10**20 + k))[0] for k in (0, 1))
    assert not torch.equal(first.sequence.frames, second.sequence.frames)


def test_usual_volumes_come_first():
    sizes = (3.0, 4.0, 4.2, 6.5)
    many = labels(*((k + 1, (5 + 8.0 * k, 14.0, 13.0), (3.0, size, size)) for k, size in enumerate(sizes)))
    assert [item.name[-1] for item in nearest_to_median(whole_objects(many), 2)] == ["2", "3"]
    with pytest.raises(InputError, match="there are 4 whole objects, 5 are wanted"):
        nearest_to_median(whole_objects(many), 5)


def test_what_does_not_evolve_stays_as_it_is():
    (cell,) = simulate_cells(whole_objects(BALL), STILL)
    assert not cell.divides and cell.sequence.step_s == STILL.step_s
    assert torch.equal(cell.sequence.frames[0], cell.sequence.frames[2])
    true = GRID.to_world(torch.tensor([16.0, 14.0, 13.0], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(centre_mm(cell, 0), true, atol=0.2 * cell.sequence.grid.spacing_mm[0])
    volume = float(BALL.values.bool().sum()) * GRID.voxel_volume_mm3
    assert volumes_mm3(cell)[0] == pytest.approx(volume, rel=0.06)


def test_growth_drift_and_turn_are_those_asked_for():
    (cell,) = simulate_cells(whole_objects(BALL), replace(STILL, growth=1.8, drift=0.8))
    volume = volumes_mm3(cell)
    assert volume[2] / volume[0] == pytest.approx(1.8, rel=0.06)
    assert volume[1] / volume[0] == pytest.approx(1.8**0.5, rel=0.06)
    radius = (float(BALL.values.bool().sum()) * GRID.voxel_volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3)
    assert np.linalg.norm(centre_mm(cell, 2) - centre_mm(cell, 0)) == pytest.approx(0.8 * radius, rel=0.1)
    long = whole_objects(labels((1, (16.0, 14.0, 13.0), (10.0, 4.0, 4.0))))
    (turned,) = simulate_cells(long, replace(STILL, turn_deg=60.0, frames=2))
    axes = []
    for frame in turned.sequence.frames:
        x = turned.sequence.grid.to_world(torch.nonzero(frame).double())
        axes.append(torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0))).eigenvectors[:, 2])
    assert 5 < np.rad2deg(np.arccos(abs(float(axes[0] @ axes[1])))) < 62, "at most the angle, less about its own axis"


def test_division_makes_two_of_half_the_volume():
    (cell,) = simulate_cells(whole_objects(BALL), replace(STILL, division=1.0, frames=9))
    parts = [ndimage.label(frame.numpy()) for frame in cell.sequence.frames]
    assert cell.divides and parts[0][1] == 1 and parts[3][1] == 1 and parts[-1][1] == 2
    volume = volumes_mm3(cell)
    assert (np.abs(volume / volume[0] - 1) < 0.2).all(), "the volume is kept, but for the neck"
    first, second = np.bincount(parts[-1][0].ravel())[1:]
    assert first == pytest.approx(second, rel=0.15)


def test_a_finer_drawing_changes_single_voxels_and_the_seed_everything():
    objects = whole_objects(BALL)
    options = CellOptions(frames=3, size=28, division=0.0)
    (fine,), (coarse,), (again,) = (simulate_cells(objects, replace(options, finer=finer)) for finer in (4, 1, 4))
    assert torch.equal(fine.sequence.frames, again.sequence.frames)
    a, b = fine.sequence.frames, coarse.sequence.frames
    assert 0.97 < 2 * float((a & b).sum()) / float(a.sum() + b.sum()) < 1
    (other,) = simulate_cells(objects, replace(options, finer=4, seed=1))
    assert not torch.equal(other.sequence.frames[2], fine.sequence.frames[2])
    assert len({cell.sequence.grid.spacing_mm for cell in (fine, coarse)}) == 1


def test_all_sequences_share_voxel_size_and_margin():
    many = labels((1, (9.0, 9.0, 9.0), (4.0, 4.0, 4.0)), (2, (22.0, 18.0, 16.0), (6.0, 5.0, 5.0)))
    cells = simulate_cells(whole_objects(many), CellOptions(frames=4, size=24, division=0.5))
    assert cells[0].sequence.grid.spacing_mm == cells[1].sequence.grid.spacing_mm
    assert sorted(cell.divides for cell in cells) == [False, True]
    for cell in cells:
        edge = cell.sequence.frames.clone()
        edge[:, 1:-1, 1:-1, 1:-1] = False
        assert not edge.any()


def test_impossible_settings_are_refused():
    for settings in ({"frames": 1}, {"growth": 0.0}, {"deformation": 0.5}, {"division": 1.5}, {"size": 4}):
        with pytest.raises(InputError, match="must be"):
            CellOptions(**settings)
    with pytest.raises(InputError, match="do not hold the largest object"):
        simulate_cells(whole_objects(BALL), replace(STILL, spacing_mm=0.2))
    with pytest.raises(InputError, match="one whole number"):
        whole_objects(Scan(BALL.values * 0.5, GRID))
    with pytest.raises(InputError, match="without touching its border"):
        whole_objects(labels((1, (0.0, 14.0, 13.0), (5.0, 5.0, 5.0))))
    with pytest.raises(InputError, match="no objects"):
        simulate_cells([], STILL)
