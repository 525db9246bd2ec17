"""Registration metrics on maps whose errors are known."""

import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.calculus import determinant, jacobian
from scanfield.metrics.registration import (
    dice,
    distances,
    inverse_consistency,
    landmark_errors,
    regularity,
    snapped,
    warped_labels,
)
from scanfield.space.grid import Grid


def left_handed(shape: tuple[int, int, int] = (20, 18, 16)) -> Grid:
    affine = np.array([[-1.5, 0, 0, 40.0], [0, 0, 2.0, -7.0], [0, 1.0, 0, 3.0], [0, 0, 0, 1]])
    return Grid(shape, affine)


def inside(grid: Grid, count: int, seed: int = 0) -> torch.Tensor:
    index = np.random.default_rng(seed).uniform(3, np.asarray(grid.shape) - 4, size=(count, 3))
    return torch.from_numpy(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])


def test_a_known_translation() -> None:
    """The moving image is shifted by (3, -4, 12) mm; the map misses its points by (0.3, -0.4, 0) mm."""
    grid = left_handed()
    x = inside(grid, 40)
    y = x + torch.tensor([3.0, -4.0, 12.0])
    errors = landmark_errors(x, y, y + torch.tensor([0.3, -0.4, 0.0]), grid)
    for found, expected in ((errors.initial, 13.0), (errors.final, 0.5)):
        for value in (found.mean_mm, found.median_mm, found.q25_mm, found.q95_mm, found.max_mm):
            assert value == pytest.approx(expected)
        assert found.sd_mm == pytest.approx(0, abs=1e-9) and found.count == 40


def test_statistics_are_those_of_the_distances() -> None:
    a = torch.zeros(5, 3)
    b = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [0, 4, 0], [6, 0, 8]])
    found = distances(a, b)
    assert (found.mean_mm, found.median_mm, found.q25_mm, found.q75_mm, found.max_mm) == pytest.approx((4, 3, 2, 4, 10))
    assert found.sd_mm == pytest.approx(np.std([1, 2, 3, 4, 10], ddof=1))
    assert found.q95_mm == pytest.approx(np.quantile([1, 2, 3, 4, 10], 0.95))
    assert distances(a[:1], b[:1]).sd_mm == 0.0


def test_snapping_rounds_to_voxels_of_the_moving_image() -> None:
    grid = left_handed()
    affine = torch.tensor(grid.affine)
    index = torch.tensor([[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], dtype=torch.float64)
    centre = index @ affine[:3, :3].T + affine[:3, 3]
    torch.testing.assert_close(snapped(centre + torch.tensor([0.7, 0.9, -0.4]), grid), centre)
    # below half a voxel (1.5, 2, 1 mm along world x, y, z) the snapped error vanishes; above it is one voxel
    for shift, expected in (([0.7, 0.9, -0.4], 0.0), ([0.8, 0.0, 0.0], 1.5), ([0.0, -1.1, 0.0], 2.0)):
        errors = landmark_errors(centre, centre, centre + torch.tensor(shift), grid)
        assert errors.final_snapped.mean_mm == pytest.approx(expected)
        assert errors.final.mean_mm == pytest.approx(math.dist(shift, (0, 0, 0)))
        assert errors.initial.mean_mm == errors.initial_snapped.mean_mm == 0
    # a reference between voxel centres is snapped, too
    assert landmark_errors(centre, centre + 0.3, centre, grid).final_snapped.max_mm == 0


def test_what_are_no_corresponding_points() -> None:
    x = inside(left_handed(), 4)
    with pytest.raises(InputError, match="got 4 and 3"):
        distances(x, x[:3])
    with pytest.raises(InputError, match="got 0 and 0"):
        distances(x[:0], x[:0])
    lost = x.clone()
    lost[2, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 4 points"):
        distances(lost, x)


# ---- labels


def test_labels_follow_the_map_from_fixed_to_moving() -> None:
    """The fixed grid is another one; a shift of whole voxels moves labels exactly, and brings 0 in from outside."""
    moving_grid = left_handed((6, 5, 4))
    labels = torch.arange(1, 121, dtype=torch.int32).reshape(6, 5, 4)
    shift = torch.tensor([3.0, 0.0, 1.0])  # minus two voxels along the first axis, one along the second
    warped = warped_labels(lambda x: x + shift, labels, moving_grid, moving_grid)
    expected = torch.zeros_like(labels)
    expected[2:, :4] = labels[:-2, 1:]
    assert torch.equal(warped, expected) and warped.dtype == torch.int32
    fine = moving_grid.resampled((0.75, 0.5, 1.0))
    finer = warped_labels(lambda x: x, labels, moving_grid, fine)
    assert finer.shape == (12, 10, 8)
    assert torch.equal(finer, labels.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_large_grids_are_warped_in_pieces() -> None:
    grid = Grid.centred((50, 50, 40), 1.0)
    sizes = []

    def identity(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    labels = torch.randint(0, 5, grid.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warped_labels(identity, labels, grid, grid), labels)
    assert len(sizes) == 2 and sum(sizes) == grid.size


def test_dice_by_hand() -> None:
    a, b = torch.zeros(4, 4, 1, dtype=torch.uint8), torch.zeros(4, 4, 1, dtype=torch.int64)
    a[:2], b[1:3] = 3, 3
    a[3, 0], b[3, 3] = 7, 9
    assert dice(a, b) == {3: pytest.approx(0.5), 7: 0.0, 9: 0.0}
    assert dice(a, a) == {3: 1.0, 7: 1.0}
    assert dice(a.float(), b) == dice(a, b)  # as images are read
    with pytest.raises(InputError, match="8 of 16 voxels are not"):
        dice(a + 0.5 * (a == 3), b)
    with pytest.raises(InputError, match="nothing but 0"):
        dice(torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, 2, dtype=torch.uint8))
    with pytest.raises(InputError, match="differ in shape"):
        dice(a, a[:2])


# ---- regularity


def test_a_known_fold() -> None:
    """x + a sin x folds where 1 + a cos x <= 0: a share arccos(1 / a) / pi of every period."""
    a = 2.0
    x = torch.zeros(20_000, 3, dtype=torch.float64)
    x[:, 0] = (torch.arange(20_000) + 0.5) * (2 * math.pi / 20_000)
    bend = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    _, matrix = jacobian(lambda p: p + a * torch.sin(p) * bend, x)
    found = regularity(determinant(matrix))
    assert found.folding_percent == pytest.approx(100 * math.acos(1 / a) / math.pi, abs=0.02)
    assert (found.lowest, found.highest, found.count) == (
        pytest.approx(1 - a, abs=1e-6),
        pytest.approx(1 + a, abs=1e-6),
        20_000,
    )


def test_spread_of_the_determinant() -> None:
    log = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2
    found = regularity(log.exp().reshape(50, 100))
    assert found.sd_log_determinant == pytest.approx(float(log.std(correction=0))) and found.folding_percent == 0
    # a scaling of the whole image has none, and folded points do not take part
    assert regularity(torch.full((9,), 8.0)).sd_log_determinant == pytest.approx(0, abs=1e-12)
    with_folds = torch.cat([log.exp(), torch.tensor([0.0, -3.0]).double()])
    assert regularity(with_folds).sd_log_determinant == pytest.approx(found.sd_log_determinant)
    assert regularity(with_folds).folding_percent == pytest.approx(100 * 2 / 5002)
    assert math.isnan(regularity(torch.tensor([-1.0, 0.0])).sd_log_determinant)


def test_determinants_that_say_nothing() -> None:
    with pytest.raises(InputError, match="1 of 3"):
        regularity(torch.tensor([1.0, torch.nan, 1.0]))
    with pytest.raises(InputError, match="0 of 0"):
        regularity(torch.zeros(0))


def test_inverse_consistency_of_known_maps() -> None:
    x = inside(left_handed(), 100)
    scale, shift = 1.25, torch.tensor([1.0, 2.0, -2.0])
    exact = inverse_consistency(lambda p: scale * p + shift, lambda q: (q - shift) / scale, x)
    assert exact.max_mm < 1e-9
    off = inverse_consistency(lambda p: p + shift, lambda q: q, x)
    assert (off.mean_mm, off.max_mm, off.count) == (pytest.approx(3.0), pytest.approx(3.0), 100)
