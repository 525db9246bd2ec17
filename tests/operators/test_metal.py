"""Metal masks: what is refused, what is found, which rays are met."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.metal import metal_mask, metal_trace, segment_metal, starved_rays
from scanfield.operators.siddon import project_voxels
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

GRID = Grid.centred((32, 32, 1), 2.0)
GEOMETRY = ProjectionGeometry("parallel", np.arange(60) * 3.0, Detector("flat", (1, 48), (2.0, 2.0)), GRID)


def disc(radius_mm: float, centre: tuple[float, float] = (8.0, -4.0)) -> torch.Tensor:
    x = GRID.points()
    return (((x[:, 0] - centre[0]) ** 2 + (x[:, 1] - centre[1]) ** 2) < radius_mm**2).reshape(GRID.shape)


BODY, METAL = disc(26.0, (0.0, 0.0)), disc(5.0)


def scan(metal_per_mm: float = 0.3) -> Measurement[ProjectionGeometry]:
    image = 0.019 * BODY.float() + metal_per_mm * METAL.float()
    return Measurement(project_voxels(image, GRID, GEOMETRY), GEOMETRY)


def test_a_given_mask_is_checked() -> None:
    found = metal_mask(Scan(3.0 * METAL.float(), GRID), scan())
    assert found.values.dtype == torch.bool
    assert torch.equal(found.values, METAL)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Scan(torch.zeros(GRID.shape), GRID, source="m.nii"), "mask is empty"),
        (Scan(torch.ones(16, 16, 1), Grid.centred((16, 16, 1), 4.0)), "another grid"),
        (Scan(METAL.float(), Grid(GRID.shape, GRID.affine + np.eye(4, k=3) * 50)), "another grid"),
        (Scan(torch.ones(*GRID.shape, 2), GRID), "one channel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Scan, says: str) -> None:
    with pytest.raises(InputError, match=says):
        metal_mask(mask, scan())


def test_a_mask_outside_the_field_of_view_is_refused() -> None:
    narrow = replace(GEOMETRY, detector=Detector("flat", (1, 12), (2.0, 2.0)))
    corner = torch.zeros(GRID.shape)
    corner[0, 0] = 1
    with pytest.raises(InputError, match="outside the field of view"):
        metal_mask(Scan(corner, GRID), Measurement(torch.zeros(narrow.shape), narrow))


def test_metal_is_found_where_it_is_and_nowhere_without_any() -> None:
    found = segment_metal(scan()).values
    assert found[METAL].all()
    assert not found[~disc(5.0 + 2 * 2.0)].any()
    assert not segment_metal(scan(metal_per_mm=0.0)).values.any()


def test_the_trace_is_the_rays_through_metal_and_their_neighbours() -> None:
    trace = metal_trace(METAL, GRID, GEOMETRY)
    through = project_voxels(METAL.float(), GRID, GEOMETRY) > 0.05
    assert trace[through].all()
    assert (trace.sum(dim=-1) <= through.sum(dim=-1) + 2).all()
    assert not metal_trace(torch.zeros_like(METAL), GRID, GEOMETRY).any()


def test_starved_rays_are_counted_and_a_starved_trace_refused() -> None:
    mask = Scan(METAL, GRID)
    assert starved_rays(scan(), mask) == 0  # nothing is known of the photons
    few = replace(scan(), noise=Noise("poisson", float(np.exp(float(scan().values.max())) * 0.99)))
    assert 0 < starved_rays(few, mask) < 10
    saturated = replace(scan(), values=scan().values.clamp(max=2.0), noise=Noise("poisson", float(np.exp(2.0))))
    with pytest.raises(InputError, match="saturated"):
        starved_rays(saturated, mask)
    assert starved_rays(saturated, None) > 100
