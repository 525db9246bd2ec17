from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors
from scanfield.space.rays import march

VOLUME = Grid.centred((20, 20, 6), (2.0, 2.0, 3.0))
ANGLES = np.array([0.0, 30.0, 90.0, 200.0])
SYSTEMS = [("parallel", "flat"), ("fan", "flat"), ("fan", "arc"), ("cone", "flat"), ("cone", "arc")]


def geometry(
    beam="parallel", kind="flat", shape=(3, 5), spacing=(3.0, 2.0), offset=(0.5, -1.0), **more
) -> ProjectionGeometry:
    if beam != "parallel":
        more = {"source_to_axis_mm": 200.0, "source_to_detector_mm": 300.0} | more
    return ProjectionGeometry(beam, ANGLES, Detector(kind, shape, spacing, offset), VOLUME, **more)


class Table(NamedTuple):
    """All rays of a scan by (view, row, column)."""

    origin: torch.Tensor
    direction: torch.Tensor


def all_rays(of: ProjectionGeometry) -> Table:
    rays = of.rays(torch.arange(of.count), dtype=torch.float64)
    return Table(rays.origin.reshape(*of.shape, 3), rays.direction.reshape(*of.shape, 3))


def axes(degrees: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u, v, d of one view, written out once more by hand."""
    a = np.deg2rad(degrees)
    return np.array([np.cos(a), np.sin(a), 0]), np.array([0, 0, 1.0]), np.array([-np.sin(a), np.cos(a), 0])


def distance_to_ray(point: np.ndarray, rays: Table, at: tuple[int, int, int]) -> float:
    o, d = rays.origin[at].numpy(), rays.direction[at].numpy()
    return float(np.linalg.norm(np.cross(point - o, d)))


def expected_pixel(of: ProjectionGeometry, view: int, row: int, column: int) -> np.ndarray:
    """A detector pixel's position from the module's formulas, with plain numbers."""
    u, v, d = axes(ANGLES[view])
    rows, columns = of.detector.shape
    dv, du = of.detector.spacing
    ov, ou = of.detector.offset
    height = ((row - (rows - 1) / 2) * dv + ov) * v
    across = (column - (columns - 1) / 2) * du + ou
    if of.beam == "parallel":
        return height + across * u
    if of.detector.kind == "flat":
        return 100.0 * d + height + across * u
    g = np.deg2rad(across)
    return -200.0 * d + 300.0 * (np.cos(g) * d + np.sin(g) * u) + height


@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
def test_rays_leave_the_source_and_pass_through_their_pixels(beam, kind):
    of = geometry(beam, kind)
    rays = all_rays(of)
    torch.testing.assert_close(rays.direction.norm(dim=-1), torch.ones(of.shape).double())
    for view in range(4):
        _, v, d = axes(ANGLES[view])
        for row in range(3):
            for column in range(5):
                at = (view, row, column)
                pixel = expected_pixel(of, *at)
                assert distance_to_ray(pixel, rays, at) < 1e-9
                assert rays.direction[at].numpy() @ d > 0.9  # from the source to the detector
                if beam == "parallel":
                    np.testing.assert_allclose(rays.direction[at], d, atol=1e-12)
                else:
                    height = ((row - 1) * 3.0 + 0.5) if beam == "fan" else 0.0
                    np.testing.assert_allclose(rays.origin[at], -200.0 * d + height * v, atol=1e-9)


def test_convention_at_zero_degrees():
    """u = +x, rays travel along +y; the first column is the lowest u, the first row the lowest v."""
    rays = all_rays(geometry(offset=(0.0, 0.0)))
    np.testing.assert_allclose(rays.direction[0], np.broadcast_to([0, 1, 0], (3, 5, 3)), atol=1e-12)
    np.testing.assert_allclose(rays.origin[0, 1, :, 0], [-4, -2, 0, 2, 4], atol=1e-12)
    np.testing.assert_allclose(rays.origin[0, :, 2, 2], [-3, 0, 3], atol=1e-12)


def test_a_fan_stays_in_the_plane_of_its_row_whatever_the_detector():
    for kind in ("flat", "arc"):
        rays = all_rays(geometry("fan", kind, spacing=(3.0, 4.0), offset=(7.0, 1.0)))
        np.testing.assert_allclose(rays.direction[..., 2], 0, atol=1e-12)


@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
def test_a_circular_geometry_written_as_vectors_gives_the_same_rays(beam, kind):
    of = geometry(beam, kind)
    u, v, d = (np.stack(part) for part in zip(*(axes(a) for a in ANGLES), strict=True))
    centre = 100.0 * d * (beam != "parallel") + 0.5 * v
    if kind == "flat":
        centre, u = centre - 1.0 * u, u * 2.0
    vectors = ViewVectors(-200.0 * d * (beam != "parallel"), centre, u, v * 3.0)
    offset = (0.0, 0.0) if kind == "flat" else (0.0, -1.0)  # an arc's angular offset stays in the detector
    written = replace(of, vectors=vectors, detector=replace(of.detector, offset=offset))
    one, other = all_rays(of), all_rays(written)
    torch.testing.assert_close(one.direction, other.direction, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.origin, other.origin, atol=1e-9, rtol=0)
    subset = written.subset(np.array([2, 0]))
    torch.testing.assert_close(all_rays(subset).origin, one.origin[[2, 0]], atol=1e-9, rtol=0)


def test_opposite_parallel_views_measure_the_same_lines_mirrored():
    of = ProjectionGeometry("parallel", np.array([20.0, 200.0]), Detector("flat", (1, 6), (1.0, 2.0)), VOLUME)
    rays = all_rays(of)
    for column in range(6):
        point = rays.origin[0, 0, column].numpy() + 17 * rays.direction[0, 0, column].numpy()
        assert distance_to_ray(point, rays, (1, 0, 5 - column)) < 1e-9


def test_parallel_rays_start_and_fans_pass_outside_of_any_volume():
    far_off = VOLUME.moved(np.array([[1.0, 0, 0, 400], [0, 1, 0, -300], [0, 0, 1, 90], [0, 0, 0, 1]]))
    of = ProjectionGeometry("parallel", ANGLES, Detector("flat", (40, 400), (5.0, 5.0)), far_off)
    rays = of.rays(torch.arange(of.count), dtype=torch.float64)
    samples = march(rays, Domain.of_grid(far_off), 2)
    central = samples.weight.sum(-1).reshape(of.shape).amax(dim=(1, 2))
    assert (central > 38).all()  # the 40 mm box is crossed completely in every view
    along = ((torch.tensor(far_off.corners_mm())[None] - rays.origin[:, None]) * rays.direction[:, None]).sum(-1)
    assert (along > 0).all()


@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
@pytest.mark.parametrize("vectors", [False, True])
def test_one_row_is_the_same_row(beam, kind, vectors):
    of = geometry(beam, kind)
    if vectors:
        given = of.view_vectors()
        offset = (0.0, 0.0 if kind == "flat" else -1.0)
        of = replace(of, vectors=given, detector=replace(of.detector, offset=offset))
    whole = all_rays(of)
    for row in range(3):
        one = all_rays(of.row(row))
        torch.testing.assert_close(one.direction[:, 0], whole.direction[:, row], atol=1e-12, rtol=0)
        torch.testing.assert_close(one.origin[:, 0], whole.origin[:, row], atol=1e-9, rtol=0)


def test_the_frame_moves_rays_with_the_world():
    turn = np.array([[0.0, 0, 1, 10], [1, 0, 0, -20], [0, 1, 0, 30], [0, 0, 0, 1]])
    of = geometry("cone")
    moved = replace(of, frame=turn, volume=VOLUME.moved(turn))
    one, other = all_rays(of), all_rays(moved)
    np.testing.assert_allclose(other.origin, one.origin.numpy() @ turn[:3, :3].T + turn[:3, 3], atol=1e-9)
    np.testing.assert_allclose(other.direction, one.direction.numpy() @ turn[:3, :3].T, atol=1e-12)


def test_shifts_move_the_ray_within_its_pixel():
    of = geometry("fan")
    index = torch.arange(of.count - 1)
    right = of.rays(index, column_shift=1.0, dtype=torch.float64)
    same_row = index % 5 != 4
    torch.testing.assert_close(right.direction[same_row], of.rays(index + 1, dtype=torch.float64).direction[same_row])
    view, row, column = torch.tensor([1]), torch.tensor([0.5]).double(), torch.tensor([2.25]).double()
    at = of.rays_at(view, row, column, dtype=torch.float64)
    pixel = 0.5 * (expected_pixel(of, 1, 0, 2) + expected_pixel(of, 1, 1, 2))
    pixel = pixel + 0.25 * (expected_pixel(of, 1, 0, 3) - expected_pixel(of, 1, 0, 2))
    assert np.linalg.norm(np.cross(pixel - at.origin[0].numpy(), at.direction[0].numpy())) < 1e-9


def test_one_view_one_bin_and_no_ray():
    of = ProjectionGeometry("parallel", np.array([45.0]), Detector("flat", (1, 1), (1.0, 1.0)), VOLUME)
    assert of.count == 1 and of.shape == (1, 1, 1)
    ray = of.rays(torch.tensor([0]))
    assert ray.origin.dtype == torch.float32
    torch.testing.assert_close(ray.direction, torch.tensor([[-(0.5**0.5), 0.5**0.5, 0.0]]))
    assert of.rays(torch.zeros(0, dtype=torch.long)).origin.shape == (0, 3)


def test_a_source_inside_the_volume_sees_only_what_lies_before_it():
    of = ProjectionGeometry(
        "fan",
        np.array([0.0]),
        Detector("flat", (1, 1), (1.0, 1.0)),
        VOLUME,
        source_to_axis_mm=5.0,
        source_to_detector_mm=9.0,
    )
    samples = march(of.rays(torch.tensor([0])), Domain.of_grid(VOLUME), 10)
    assert samples.weight.sum().item() == pytest.approx(25.0, rel=1e-5)  # from y = -5 to the box's end at y = 20


def test_integer_angles_and_lists_are_welcome():
    of = ProjectionGeometry("parallel", np.arange(4), Detector("flat", (1, 2), (1, 1)), VOLUME)
    assert of.angles_deg.dtype == np.float64


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("beam", "kind"), SYSTEMS)
def test_json_round_trip(beam, kind, vectors):
    of = geometry(beam, kind, time_s=np.arange(4) * 0.1, frame=np.diag([-1.0, 1, 1, 1]))
    if vectors:
        of = replace(of, vectors=of.view_vectors())
    back = ProjectionGeometry.from_json(json.loads(json.dumps(of.to_json())))
    torch.testing.assert_close(all_rays(back).origin, all_rays(of).origin)
    torch.testing.assert_close(all_rays(back).direction, all_rays(of).direction)
    assert back.kind == of.kind == f"projections:{beam}"
    np.testing.assert_array_equal(back.time_s, of.time_s)
    assert back.detector == of.detector and back.volume.same_as(of.volume)


@pytest.mark.parametrize(
    ("beam", "name"),
    [
        *((beam, name) for beam in ("parallel", "cone") for name in ("zero u", "zero v", "u along v", "not finite")),
        ("cone", "source on the detector"),
        ("cone", "detector edge-on to the source"),
    ],
)
def test_vectors_without_rays_are_refused(beam, name):
    of = geometry(beam)
    given = of.view_vectors()
    source, centre, u, v = (np.array(a) for a in (given.source, given.centre, given.u, given.v))
    if name == "zero u":
        u[1] = 0
    elif name == "zero v":
        v[1] = 0
    elif name == "u along v":
        u[1] = 2 * v[1]
    elif name == "not finite":
        centre[1] = np.nan
    elif name == "source on the detector":
        source[1] = centre[1]
    else:
        source[1] = centre[1] - 100 * u[1]
    with pytest.raises(InputError, match="per-view"):
        replace(of, vectors=ViewVectors(source, centre, u, v))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "helical"},
        {"type": ["parallel"]},
        {"angles_deg": []},
        {"angles_deg": [[0, 1], [2, 3]]},
        {"angles_deg": [0, float("nan"), 1, 2]},
        {"angles_deg": "many"},
        {"detector": None},
        {"detector": {"shape": [3, 5]}},
        {"detector": {"shape": [3], "spacing_mm": [1, 1]}},
        {"detector": {"shape": [3, float("inf")], "spacing_mm": [1, 1]}},
        {"detector": {"shape": [0, 5], "spacing_mm": [1, 1]}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1, 0]}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1, -1]}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1, float("nan")]}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1, 1], "kind": "curved"}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1, 1], "offset_mm": [1, None]}},
        {"detector": {"shape": [3, 5], "spacing_mm": [1], "kind": "arc"}},
        {"detector": {"shape": [3, 5], "spacing_mm": [], "spacing_deg": [1], "kind": "arc"}},
        {"volume": None},
        {"volume": {"shape": [4, 4, 4]}},
        {"source_to_axis_mm": 0},
        {"source_to_axis_mm": -5},
        {"source_to_axis_mm": 300},
        {"source_to_detector_mm": float("nan")},
        {"source_to_detector_mm": "far"},
        {"time_s": [0, 1]},
        {"frame": [[1]]},
        {"frame": np.diag([1, 1, 2.0, 1]).tolist()},
        {"frame": [[1, 0, 0, float("inf")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
        {"u_mm": [[1, 0, 0]] * 4},
        {
            "source_mm": [[0, 1, 0]] * 4,
            "detector_centre_mm": [[1, 1, 0]] * 4,
            "u_mm": [[1, 0, 0]] * 3,
            "v_mm": [[0, 0, 1]] * 4,
        },
    ],
    ids=str,
)
def test_from_json_names_what_is_wrong(change):
    with pytest.raises(InputError) as caught:
        ProjectionGeometry.from_json(json.loads(json.dumps(geometry("fan").to_json())) | change)
    assert "geometry" in caught.value.where or "grid" in caught.value.what


@pytest.mark.parametrize("key", ["type", "angles_deg", "detector", "volume"])
def test_from_json_names_the_missing_key(key):
    facts = geometry("fan").to_json()
    del facts[key]
    with pytest.raises(InputError, match=key):
        ProjectionGeometry.from_json(facts)


def test_a_parallel_beam_has_no_arc_detector():
    with pytest.raises(InputError, match="arc"):
        geometry("parallel", "arc")
