"""Phantoms: values at points and exact line integrals, against chord lengths and marched rays."""

import math

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.phantoms import Ellipsoid, Phantom, disc, shepp_logan
from scanfield.errors import InputError
from scanfield.operators.base import predict_all
from scanfield.operators.rays import LineIntegral
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.space.rays import Rays


def rays(origin: list[list[float]], direction: list[list[float]]) -> Rays:
    d = torch.tensor(direction, dtype=torch.float64)
    return Rays(torch.tensor(origin, dtype=torch.float64), d / d.norm(dim=-1, keepdim=True))


def test_chords_of_a_disc() -> None:
    offsets = torch.linspace(-60, 60, 25, dtype=torch.float64)
    for angle in (0.0, 0.7, 2.1):
        d = torch.tensor([-math.sin(angle), math.cos(angle), 0.0], dtype=torch.float64)
        u = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        centre = torch.tensor([10.0, -5.0, 0.0], dtype=torch.float64)
        beam = Rays(centre + offsets[:, None] * u - 200 * d, d.expand(25, 3))
        integral = disc(50.0, value=0.02, centre_mm=(10.0, -5.0, 0.0)).line_integrals(beam)
        torch.testing.assert_close(
            integral, 0.02 * 2 * (50**2 - offsets**2).clamp(min=0).sqrt(), atol=1e-12, rtol=1e-12
        )


def test_axes_of_a_rotated_ellipsoid() -> None:
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    ellipsoid = Phantom((Ellipsoid((1.0, 2.0, 3.0), (40.0, 20.0, 10.0), 30.0, 0.5),))
    directions = [[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]
    origins = [[1 - 100 * d[0], 2 - 100 * d[1], 3 - 100 * d[2]] for d in directions]
    torch.testing.assert_close(
        ellipsoid.line_integrals(rays(origins, directions)), torch.tensor([40.0, 20.0, 10.0], dtype=torch.float64)
    )
    ends = torch.tensor(origins) + torch.tensor([[139.0], [119.0], [109.0]]) * torch.tensor(directions)
    assert ellipsoid.values(ends).tolist() == [0.5, 0.5, 0.5]
    ends = torch.tensor(origins) + torch.tensor([[141.0], [121.0], [111.0]]) * torch.tensor(directions)
    assert ellipsoid.values(ends).tolist() == [0.0, 0.0, 0.0]


def test_oblique_ray_through_a_cylinder() -> None:
    integral = disc(10.0, value=1.0).line_integrals(rays([[-50.0, 0.0, -50.0]], [[1.0, 0.0, 1.0]]))
    assert integral.item() == pytest.approx(20 * math.sqrt(2), rel=1e-12)


def test_rays_start_at_their_origin() -> None:
    beam = rays([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(
        disc(10.0, value=1.0).line_integrals(beam), torch.tensor([10.0, 0.0], dtype=torch.float64)
    )


def test_far_and_grazing_rays_keep_their_precision() -> None:
    beam = rays([[9.999999, -1e6, 0.0]], [[0.0, 1.0, 0.0]])
    exact = 2 * math.sqrt(10**2 - 9.999999**2)
    assert disc(10.0, value=1.0).line_integrals(beam).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("beam", ["parallel", "fan", "cone"])
def test_marched_line_integrals_converge_to_the_exact_ones(beam: str) -> None:
    grid = Grid.centred((64, 64, 16), (3.0, 3.0, 6.0))
    distances = {} if beam == "parallel" else {"source_to_axis_mm": 400.0, "source_to_detector_mm": 700.0}
    geometry = ProjectionGeometry(
        beam, np.arange(7) * 25.7, Detector("flat", (3, 41), (12.0, 9.0), (1.0, -2.0)), grid, **distances
    )
    phantom = shepp_logan(75.0, volume=beam == "cone")
    exact = phantom.line_integrals(geometry.rays(torch.arange(geometry.count))).reshape(geometry.shape)
    errors = []
    for count in (200, 1600):
        operator = LineIntegral(geometry, Domain.of_grid(grid), count)
        marched = predict_all(lambda x: phantom.values(x)[..., None], operator)
        errors.append(float((marched - exact).norm() / exact.norm()))
    assert errors[0] < 0.03 and errors[1] < 0.006  # jumps: the midpoint rule converges with the step


def test_shepp_logan_agrees_with_the_picture_of_scikit_image() -> None:
    picture = shepp_logan_phantom()  # 400 x 400, row 0 at the top, drawn with anti-aliasing and table values
    phantom = shepp_logan(200.0, brain=0.2)
    x, y = np.meshgrid(np.arange(400) - 199.5, 199.5 - np.arange(400))
    points = torch.tensor(np.stack([x, y, np.zeros_like(x)], axis=-1), dtype=torch.float32)
    difference = np.abs(phantom.values(points).numpy() - picture)
    assert np.mean(difference > 0.02) < 0.04  # edges only
    assert np.median(difference) < 1e-6 and difference.mean() < 0.008


def test_attenuation_of_brain_and_skull() -> None:
    points = torch.tensor([[0.0, -30.0, 0.0], [0.0, 90.0, 0.0], [0.0, 99.0, 0.0]])
    torch.testing.assert_close(
        shepp_logan(100.0).values(points), torch.tensor([MU_WATER_PER_MM, 5 * MU_WATER_PER_MM, 0.0])
    )


def test_slices_repeat_and_volumes_end() -> None:
    above = torch.tensor([[0.0, -30.0, 95.0]])
    assert shepp_logan(100.0).values(above).item() == pytest.approx(MU_WATER_PER_MM)
    assert shepp_logan(100.0, volume=True).values(above).item() == 0


def test_a_ray_along_an_infinite_axis_is_refused() -> None:
    with pytest.raises(InputError, match="axis of an infinite ellipsoid"):
        disc(10.0).line_integrals(rays([[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"half_axes_mm": (1.0, 0.0, 1.0)},
        {"half_axes_mm": (1.0, -1.0, 1.0)},
        {"half_axes_mm": (math.inf, 1.0, 1.0)},
        {"half_axes_mm": (1.0, 1.0, math.nan)},
        {"centre_mm": (0.0, math.nan, 0.0)},
        {"value": math.inf},
    ],
)
def test_impossible_ellipsoids(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Ellipsoid(**{"centre_mm": (0.0, 0.0, 0.0), "half_axes_mm": (1.0, 1.0, 1.0)} | wrong)
