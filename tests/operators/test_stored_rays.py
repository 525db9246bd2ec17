"""Stored rays are the rays: same points, same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.operators import stored_rays
from scanfield.operators.rays import LineIntegral
from scanfield.operators.stored_rays import StoredLineIntegral
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry


@pytest.mark.parametrize("beam", ["parallel", "fan", "cone"])
def test_points_and_weights_are_those_of_the_rays(beam: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_rays, "RAYS_PER_CHUNK", 7)
    grid = Grid.centred((12, 10, 4), (2.0, 2.5, 3.0))
    distances = {} if beam == "parallel" else {"source_to_axis_mm": 80.0, "source_to_detector_mm": 140.0}
    detector = Detector("flat", (2, 9), (4.0, 6.0))  # the outermost rays miss the box
    geometry = ProjectionGeometry(beam, np.array([0.0, 33.0, 100.0]), detector, grid, **distances)  # type: ignore[arg-type]
    rays = LineIntegral(geometry, Domain.of_grid(grid), 11)
    stored = StoredLineIntegral.make(rays)
    index = torch.randperm(geometry.count)
    one, two = rays.samples(index), stored.samples(index)
    assert one.weight is not None
    assert two.weight is not None
    assert torch.allclose(one.weight, two.weight, atol=1e-5)
    met = one.weight[:, 0] > 0
    assert 0 < met.sum() < len(met)
    assert torch.allclose(one.x[met], two.x[met], atol=1e-3)
    values = torch.rand(*one.x.shape[:-1], 3)
    assert torch.allclose(rays.reduce(values, one), stored.reduce(values, two), atol=1e-3)
    assert stored.shape == geometry.shape


def test_random_points_stay_in_their_interval() -> None:
    grid = Grid.centred((8, 8, 1), 2.0)
    geometry = ProjectionGeometry("parallel", np.array([10.0]), Detector("flat", (1, 3), (2.0, 2.0)), grid)
    stored = StoredLineIntegral.make(LineIntegral(geometry, Domain.of_grid(grid), 5))
    index = torch.arange(3)
    middle, random = stored.samples(index), stored.samples(index, torch.Generator().manual_seed(1))
    assert random.weight is not None
    apart = (random.x - middle.x).norm(dim=-1)
    assert (apart <= random.weight / 2 + 1e-4).all()
    assert apart.max() > 0.1
