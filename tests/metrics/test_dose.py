import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.dose import (
    conformity,
    dose_at_volume,
    dose_volume,
    gradient_error,
    histogram,
    isodose_dice,
    sampled_dose,
    volume_at_dose,
)
from scanfield.space.grid import Grid

GRID = Grid.centred((20, 18, 16), (2.0, 2.0, 3.0))


def ball(radius: float, grid: Grid = GRID) -> torch.Tensor:
    return (grid.points().double().norm(dim=-1) < radius).reshape(grid.shape)


def test_points_of_a_known_distribution():
    """Dose evenly spread from 0 to 80 Gy: D_v = 80 (1 - v / 100), V_x = 100 (1 - x / 80)."""
    dose = torch.linspace(0, 80, 100_001)
    for percent in (0, 2, 50, 95, 98, 100):
        assert dose_at_volume(dose, percent) == pytest.approx(80 * (1 - percent / 100), abs=1e-3)
    assert volume_at_dose(dose, 20.0) == pytest.approx(75, abs=0.01)
    found = dose_volume(dose, [20.0, 60.0])
    assert (found.d98, found.d95, found.d50, found.d2) == pytest.approx((1.6, 4, 40, 78.4), abs=1e-3)
    assert found.mean == pytest.approx(40) and found.highest == pytest.approx(80)
    assert found.volumes == pytest.approx({20.0: 75.0, 60.0: 25.0}, abs=0.01)


def test_a_histogram_falls_from_the_whole_volume_to_nothing_and_inverts_d():
    dose = 70 * torch.rand(5000, generator=torch.Generator().manual_seed(1))
    found = histogram(dose, highest_gy=71.0, step_gy=0.5)
    assert found.percent[0] == 100 and found.percent[-1] == 0 and (np.diff(found.percent) <= 0).all()
    for k in (20, 60, 100):
        assert found.percent[k] == pytest.approx(volume_at_dose(dose, float(found.gy[k])))
        assert dose_at_volume(dose, float(found.percent[k])) == pytest.approx(found.gy[k], abs=0.05)


def test_the_histogram_of_a_continuous_dose_is_sampled_between_voxels():
    """A cone of dose in a ball: its volume above x is that of a smaller ball. Voxel centres alone are too few."""
    radius = 7.0

    def dose(x):
        return 10 * (radius - x.norm(dim=-1))

    coarse = sampled_dose(dose, lambda grid: ball(radius, grid), GRID, finer=1)
    fine = sampled_dose(dose, lambda grid: ball(radius, grid), GRID, finer=6)
    assert len(fine) * GRID.voxel_volume_mm3 / 6**3 == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)
    assert len(coarse) == int(ball(radius).sum())
    errors = []
    for values in (coarse, fine):
        expected = 100 * (1 - 30 / 70) ** 3
        errors.append(abs(volume_at_dose(values, 30.0) - expected))
    assert errors[1] < 0.5 < errors[0]


def test_isodoses_overlap():
    one, other = torch.zeros(GRID.shape), torch.zeros(GRID.shape)
    one[:10], other[5:15] = 50.0, 50.0
    assert isodose_dice(one, one, 40.0) == 1.0
    assert isodose_dice(one, other, 40.0) == 0.5
    assert math.isnan(isodose_dice(one, other, 60.0))


def test_conformity_of_a_perfect_a_large_and_a_missing_dose():
    target = ball(9.0)
    assert conformity(70.0 * target, target, 66.5) == 1.0
    larger = 70.0 * ball(12.0)
    expected = float(target.sum()) / float(ball(12.0).sum())
    assert conformity(larger, target, 66.5) == pytest.approx(expected)
    assert conformity(torch.zeros(GRID.shape), target, 66.5) == 0.0
    with pytest.raises(InputError, match="target"):
        conformity(larger, torch.zeros(GRID.shape, dtype=torch.bool), 66.5)


def test_the_gradient_error_is_in_gy_per_mm():
    x = GRID.points().reshape(*GRID.shape, 3)
    dose, other = 2.0 * x[..., 0], 2.0 * x[..., 0] + 0.5 * x[..., 2] + 7
    assert gradient_error(other, dose, GRID) == pytest.approx(0.5, rel=1e-4)
    assert gradient_error(other, dose, GRID, ball(8.0)) == pytest.approx(0.5, rel=1e-4)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="needs points"):
        dose_volume(torch.empty(0))
    with pytest.raises(InputError, match="0 to 100"):
        dose_at_volume(torch.ones(3), 101.0)
    with pytest.raises(InputError, match="positive dose range"):
        histogram(torch.ones(3), highest_gy=0.0)
    with pytest.raises(InputError, match="times as fine"):
        sampled_dose(lambda x: x[:, 0], lambda grid: ball(9.0, grid), GRID, finer=0)
