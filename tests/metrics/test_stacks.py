"""Metrics of stacks and slices on stacks whose consistency is known."""

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.data.stacks import Stack
from scanfield.metrics.stacks import (
    detection_auc,
    lone_slices,
    mask_volume_ml,
    mean_neighbour_ncc,
    motion_rank,
    neighbour_ncc,
    outlierness,
    relative_brightness,
    slice_agreement,
    suspicious_slices,
)
from scanfield.space.grid import Grid


def stack(values, mask=None, axis=2):
    spacing = np.insert([1.0, 1.0], axis, 4.0)
    return Stack(Scan(values, Grid.centred(tuple(values.shape), tuple(spacing)), mask=mask), 4.0, axis)


def smooth(seed=0, slices=12):
    """Blobs that change slowly from slice to slice."""
    x = torch.linspace(-1, 1, 24)
    i, j = torch.meshgrid(x, x, indexing="ij")
    z = torch.linspace(-0.6, 0.6, slices)
    bumps = torch.exp(-4 * ((i[..., None] - z / 3) ** 2 + (j[..., None] + z / 4) ** 2))
    return 100 * bumps + 30 * torch.exp(-12 * ((i[..., None] + 0.4) ** 2 + (j[..., None] - z) ** 2))


def shaken(seed=1):
    draws = torch.Generator().manual_seed(seed)
    v = smooth()
    return torch.stack(
        [torch.roll(v[..., k], torch.randint(-5, 6, (2,), generator=draws).tolist(), (0, 1)) for k in range(12)], -1
    )


def test_motion_is_seen_by_both_metrics():
    still, moved = stack(smooth()), stack(shaken())
    assert mean_neighbour_ncc(still) > 0.95 > 0.8 > mean_neighbour_ncc(moved)
    assert 0 < motion_rank(still) < 0.3 < motion_rank(moved) <= 1


@pytest.mark.parametrize("metric", [mean_neighbour_ncc, motion_rank])
def test_scale_and_slice_axis_do_not_matter(metric):
    v = shaken()
    expected = metric(stack(v))
    assert metric(stack(7 * v)) == pytest.approx(expected, rel=1e-5)
    assert metric(stack(v.movedim(2, 0), axis=0)) == pytest.approx(expected, rel=1e-5)


def test_equal_slices():
    v = smooth()[..., :1].expand(-1, -1, 5).clone()
    assert neighbour_ncc(stack(v)).tolist() == pytest.approx([1.0] * 4)
    # one pattern holds everything: the residual falls from 1 to 0 at rank 1, and to a tenth at 0.9 of it
    assert motion_rank(stack(v)) == pytest.approx(0.9 / 5)


def test_orthogonal_slices_need_all_ranks():
    v = torch.zeros(8, 8, 4)
    for k in range(4):
        v[2 * k : 2 * k + 2, :, k] = 1.0
    left = np.sqrt(1 / 4)
    assert motion_rank(stack(v)) == pytest.approx((3 + (left - 0.1) / left) / 4)
    assert float(neighbour_ncc(stack(v)).max()) < 0


def test_slices_of_few_pixels_say_nothing():
    mask = torch.zeros(24, 24, 12, dtype=torch.bool)
    mask[4:20, 4:20, 3:9] = True
    mask[5:7, 5:7, 9] = True
    s = stack(smooth(), mask)
    assert neighbour_ncc(s).isnan().tolist() == [True] * 3 + [False] * 6 + [True] * 2
    assert lone_slices(s).isnan().tolist() == [True] * 3 + [False] * 7 + [True] * 2
    assert mask_volume_ml(s) == pytest.approx((16 * 16 * 6 + 4) * 4 / 1000)
    dark = stack(torch.zeros(8, 8, 3))
    assert np.isnan(mean_neighbour_ncc(dark)) and np.isnan(motion_rank(dark))
    single = stack(smooth()[..., :1])
    assert len(neighbour_ncc(single)) == 0 and lone_slices(single).isnan().all()


def test_spoilt_slices_are_suspicious():
    v = smooth()
    v[..., 3] *= 0.3
    v[..., 8] += 60 * torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) - 30
    v[..., 5] = v[..., 5].roll(10, 0)
    found = suspicious_slices(stack(v))
    assert found == {3: "dark", 5: "unlike", 8: "unlike"}
    assert suspicious_slices(stack(smooth())) == {}
    assert float(relative_brightness(stack(v))[3]) == pytest.approx(0.3, rel=0.05)
    v = smooth()
    v[..., 5] *= 2
    assert suspicious_slices(stack(v)) == {5: "bright"}


def test_the_rim_of_the_body_is_not_judged():
    v, mask = smooth(), torch.ones(24, 24, 12, dtype=torch.bool)
    v[..., 0] *= 0.3
    mask[:, 5:, 0] = False
    assert suspicious_slices(stack(v, mask)) == {}


def test_agreement_of_slices():
    draws = torch.Generator().manual_seed(0)
    y = torch.rand(400, generator=draws)
    index = torch.arange(4).repeat_interleave(100)
    p = y.clone()
    p[100:200] = 3 * y[100:200] + 1
    p[200:300] = -y[200:300]
    p[300:] = 0.5
    got = slice_agreement(y, p, index, 5)
    assert got.ncc[:3].tolist() == pytest.approx([1, 1, -1]) and got.ncc[3:].isnan().all()
    assert got.rmse[0] == 0 and float(got.rmse[1]) == pytest.approx(float((2 * y[100:200] + 1).square().mean().sqrt()))
    assert got.pixels.tolist() == [100] * 4 + [0] and bool(got.rmse[4].isnan())
    assert got.ranking()[0] == 2 and sorted(got.ranking()) == [0, 1, 2]
    few = slice_agreement(y[:19], y[:19], index[:19], 1)
    assert bool(few.ncc.isnan().all()) and few.ranking() == []


def test_outlierness_in_robust_standard_deviations():
    ncc = torch.tensor([0.90, 0.92, 0.94, 0.96, 0.98, 0.2, torch.nan])
    score = outlierness(ncc)
    median, mad = 0.92, 0.04  # the lower median of six; of distances .02 0 .02 .04 .06 .72 the lower one is .02
    mad = 0.02
    assert float(score[5]) == pytest.approx((median - 0.2) / (1.4826 * mad), rel=1e-4)
    assert bool(score[6].isnan()) and float(score[1]) == 0
    assert outlierness(torch.tensor([torch.nan])).isnan().all()
    assert outlierness(torch.ones(5)).tolist() == [0] * 5  # perfect agreement has no outliers


def test_detection():
    score = torch.tensor([5.0, 1.0, 4.0, torch.nan, 2.0])
    assert detection_auc(score, torch.tensor([True, False, True, True, False])) == 1
    assert detection_auc(score, torch.tensor([False, True, False, True, True])) == 0
    assert detection_auc(torch.ones(4), torch.tensor([True, False, False, True])) == 0.5
    assert np.isnan(detection_auc(score, torch.zeros(5, dtype=torch.bool)))
