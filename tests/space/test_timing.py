import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.space.domain import Axis
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry, consecutive_frames
from scanfield.space.timing import Timing, centres

VOLUME = Grid.centred((8, 6, 1), (2.0, 2.5, 5.0))


def geometry(views=12, **facts):
    return KSpaceGeometry(np.zeros((views, 3, 3)), 1, VOLUME, **facts)


def test_seconds_have_frames_at_the_mean_of_their_views():
    found = geometry(time_s=0.5 + 0.1 * np.arange(12), frame=consecutive_frames(12, 3))
    axis = found.when.axis
    assert (axis.unit, axis.low, axis.high) == ("s", pytest.approx(0.45), pytest.approx(1.65))
    assert not found.when.periodic
    np.testing.assert_allclose(found.frame_moments(), [0.65, 1.05, 1.45])
    np.testing.assert_allclose(centres(axis, 3), found.frame_moments())


def test_frames_that_lost_their_views_stay_where_they_were():
    whole = geometry(time_s=0.1 * np.arange(12), frame=consecutive_frames(12, 4))
    part = whole.subset(np.flatnonzero(~np.isin(whole.frame_of_view, [0, 2])))
    np.testing.assert_allclose(part.frame_moments(), whole.frame_moments())
    assert part.when.axis == whole.when.axis, "the axis does not shrink with the views"
    only = whole.subset(np.arange(3))
    np.testing.assert_allclose(only.frame_moments(), [0.1] * 4)


def test_one_frame_is_one_moment_and_frames_without_times_are_numbers():
    still = geometry(time_s=0.1 * np.arange(12))
    assert still.when.axis.unit == "frame" and set(still.when.view) == {0.5}
    unknown = geometry(frame=consecutive_frames(12, 3))
    assert unknown.when.axis.unit == "frame"
    np.testing.assert_allclose(unknown.frame_moments(), [0.5, 1.5, 2.5])


def test_cutting_again():
    scan = geometry(time_s=np.arange(12) * 0.1, frame=consecutive_frames(12, 3))
    assert np.array_equal(scan.cut(4).frame_of_view, np.repeat(np.arange(4), 3))
    assert scan.cut(1).frame_count == 1 and scan.cut(1).when.axis.unit == "frame"
    with pytest.raises(InputError, match="does not say when"):
        geometry().cut(3)
    with pytest.raises(InputError, match="at least one frame"):
        scan.cut(0)


def test_phases_go_round():
    phase = np.array([0.0, 0.3, 0.999999])
    timing = Timing(Axis("t", "cycle", 0.0, 1.0), phase, 0.8)
    assert timing.periodic and timing.parts(10).tolist() == [0, 3, 9]
    scan = geometry(3, frame=timing.parts(4), frames=4, timing=timing)
    np.testing.assert_allclose(scan.frame_moments(), [0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Timing(Axis("t", "s", 0, 1), np.array([np.nan])), "finite place"),
        (lambda: Timing(Axis("t", "ms", 0, 1), np.zeros(2)), "axis of a series"),
        (lambda: Timing(Axis("t", "s", 0, 1), np.zeros(2), 0.8), "length of a cycle belongs"),
        (lambda: Timing(Axis("t", "cycle", 0, 1), np.zeros(2)), "length of a cycle belongs"),
        (lambda: Timing(Axis("t", "cycle", 0, 1), np.zeros(2), -1.0), "positive number of seconds"),
        (lambda: geometry(4, timing=Timing(Axis("t", "s", 0, 1), np.zeros(3))), "timing has 3 views"),
        (lambda: centres(Axis("t", "s", 0, 1), 0), "at least one frame"),
    ],
)
def test_impossible_timings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_json_round_trip():
    timing = Timing(Axis("t", "cycle", 0.0, 1.0), np.array([0.25, 0.5]), 0.9)
    again = Timing.from_json(timing.to_json())
    assert again.to_json() == timing.to_json() and again.axis == timing.axis
