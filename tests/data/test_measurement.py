from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry


def measurement(views: int = 12) -> Measurement[ProjectionGeometry]:
    volume = Grid.centred((8, 8, 1), 1.0)
    of = ProjectionGeometry("parallel", np.arange(views) * 10.0, Detector("flat", (1, 4), (1.0, 1.0)), volume)
    return Measurement(torch.arange(views * 4.0).reshape(views, 1, 4), of, source="scan.npz")


def test_shape_must_agree_with_the_geometry():
    good = measurement()
    with pytest.raises(InputError, match=r"\(12, 4, 1\).*\(12, 1, 4\)") as caught:
        Measurement(good.values.transpose(1, 2), good.acquisition, source="scan.npz")
    assert caught.value.where == "scan.npz"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(value):
    good = measurement()
    good.values[3, 0, 1] = value
    with pytest.raises(InputError, match="1 of 48 measurements"):
        Measurement(good.values, good.acquisition)


def test_subset_takes_views_with_their_angles():
    part = measurement().subset(np.array([7, 2]))
    assert part.acquisition.angles_deg.tolist() == [70.0, 20.0]
    assert part.values[:, 0, 0].tolist() == [28.0, 8.0] and part.source == "scan.npz"


@pytest.mark.parametrize("views", [2, 3, 5, 12, 45])
def test_hold_out_splits_every_view_to_one_side(views):
    whole = measurement(views)
    for count in range(1, views):
        fit, held = whole.hold_out(count)
        assert held.acquisition.views == count and fit.acquisition.views == views - count
        angles = np.sort(np.concatenate([fit.acquisition.angles_deg, held.acquisition.angles_deg]))
        np.testing.assert_array_equal(angles, whole.acquisition.angles_deg)
        if count > 1:
            gaps = np.diff(held.acquisition.angles_deg) / 10
            assert gaps.max() - gaps.min() <= 2  # spread evenly
    assert whole.hold_out(0) == (whole, None)


@pytest.mark.parametrize("count", [-1, 12, 13])
def test_hold_out_refuses_impossible_counts(count):
    with pytest.raises(InputError, match="12 views") as caught:
        measurement().hold_out(count)
    assert "0 and 11" in caught.value.fix
