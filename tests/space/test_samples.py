from __future__ import annotations

import numpy as np
import torch

from scanfield.space.domain import Axis, Domain
from scanfield.space.samples import random_index, random_points


def test_random_index_is_uniform_and_seeded():
    draw = random_index(5, 20000, torch.Generator().manual_seed(0))
    counts = torch.bincount(draw, minlength=5)
    assert len(counts) == 5 and (counts - 4000).abs().max() < 5 * (20000 * 0.2 * 0.8) ** 0.5
    assert torch.equal(draw, random_index(5, 20000, torch.Generator().manual_seed(0)))


def test_random_points_fill_the_box_uniformly_whatever_its_scaling():
    matrix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = matrix, (5.0, 6.0, 7.0)
    axes = (Axis("x", "mm", -4, 10), Axis("z", "mm", 0, 3), Axis("t", "s", 100, 102))
    for scaling in ("isotropic", "per-axis"):
        domain = Domain(axes, scaling, frame)
        x = random_points(domain, 20000, torch.Generator().manual_seed(1)).double()
        assert x.shape == (20000, 4) and domain.inside(x).all()
        box = x[:, :3] @ torch.tensor(matrix).T + torch.tensor(frame[:3, 3])
        assert box[:, 1].abs().max() < 1e-4  # the axis the domain does not have
        for values, low, high in ((box[:, 0], -4, 10), (box[:, 2], 0, 3), (x[:, 3], 100, 102)):
            assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / 12**0.5 / 20000**0.5
            assert abs(values.std() - (high - low) / 12**0.5) < 0.02 * (high - low)
