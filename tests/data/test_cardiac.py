from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data import cardiac
from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

VOLUME = Grid.centred((8, 6, 1), (2.0, 2.5, 5.0))


def scan(times=None, peaks=None):
    times = np.arange(40) * 0.1 if times is None else times
    geometry = KSpaceGeometry(np.zeros((len(times), 3, 3)), 1, VOLUME, time_s=times)
    values = torch.arange(len(times)).to(torch.complex64)[:, None, None].expand(-1, 1, 3).contiguous()
    return KSpace(values, geometry, r_peaks_s=peaks)


def test_phase_is_linear_between_peaks_of_any_distance():
    peaks = np.array([0.5, 1.5, 3.5])
    phase, beat = cardiac.phase_between(np.array([0.4, 0.5, 1.0, 1.5, 2.0, 3.4999, 3.5]), peaks)
    np.testing.assert_allclose(phase[1:6], [0, 0.5, 0, 0.25, 0.99995])
    assert beat.tolist() == [-1, 0, 0, 1, 1, 1, -1] and np.isnan(phase[[0, 6]]).all()


def test_gating_keeps_whole_beats_and_every_view_its_own_phase():
    peaks = np.array([0.25, 1.25, 2.05, 3.05])
    gated = cardiac.cardiac_gated(scan(), 5, peaks)
    times = gated.acquisition.time_s
    assert times.min() > 0.25 and times.max() < 3.05
    when = gated.acquisition.when
    assert when.periodic and when.cycle_s == pytest.approx(np.diff(peaks).mean())
    expected = (times - peaks[np.searchsorted(peaks, times) - 1]) / np.diff(peaks)[np.searchsorted(peaks, times) - 1]
    np.testing.assert_allclose(when.view, expected)
    assert np.array_equal(gated.acquisition.frame_of_view, np.floor(5 * expected).astype(int))
    assert torch.equal(gated.values[:, 0, 0].real, torch.tensor(10 * times).round().float())


def test_first_beats_only_and_peaks_before_the_steady_state():
    peaks = np.array([0.25, 1.25, 2.05, 3.05])
    one = cardiac.cardiac_gated(scan(), 5, peaks, beats=1)
    assert one.acquisition.time_s.max() < 1.25 and one.acquisition.when.cycle_s == pytest.approx(1.0)
    settled = cardiac.cardiac_gated(scan(), 5, peaks, beats=1, settle_s=0.6)
    assert settled.acquisition.time_s.min() > 1.25 and settled.acquisition.when.cycle_s == pytest.approx(0.8)


def test_the_scan_s_own_peaks_are_used_where_none_are_given():
    assert cardiac.cardiac_gated(scan(peaks=np.array([0.0, 1.0])), 3).acquisition.views == 10


@pytest.mark.parametrize(
    ("peaks", "message"),
    [
        ([1.0], "two R-peaks"),
        ([0.5, 1.5, 1.2, 2.0], "R-peak 2 at 1.2 s does not come after the one before, at 1.5 s"),
        ([0.5, np.nan], "R-peak 1 is NaN"),
        ([500.0, 1300.0, 2100.0], "R-peak 0 at 500 s lies outside the scan, which lasts from 0 to 3.9 s"),
        ([0.5, 0.6, 1.4], r"R-R interval from 0.5 s is 0.1 s; hearts beat every 0.25 to 3 s"),
        ([0.0, 3.5], r"R-R interval from 0 s is 3.5 s"),
    ],
)
def test_impossible_peaks_are_refused_with_their_number(peaks, message):
    with pytest.raises(InputError, match=message):
        cardiac.cardiac_gated(scan(), 3, np.array(peaks))


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(InputError, match="no R-peaks"):
        cardiac.cardiac_gated(scan(), 3)
    with pytest.raises(InputError, match="at least one phase"):
        cardiac.cardiac_gated(scan(), 0, np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="no view lies between"):
        cardiac.cardiac_gated(scan(), 3, np.array([0.0, 1.0]), settle_s=2.0)
    without = replace(scan(), acquisition=replace(scan().acquisition, time_s=None))
    with pytest.raises(InputError, match="cannot be gated"):
        cardiac.cardiac_gated(without, 3, np.array([0.0, 1.0]))


def breathing(times):
    return 3 - 2 * np.cos(2 * np.pi * times / 4)


def test_breathing_amplitude_and_phase():
    clock = np.arange(-1, 21, 0.05)
    times = np.array([0.0, 1.0, 2.0, 4.0, 6.0])
    amplitude = cardiac.respiratory_amplitude(times, clock, breathing(clock))
    np.testing.assert_allclose(amplitude, [0, 0.5, 1, 0, 1], atol=0.02)
    phase, breath = cardiac.respiratory_phase(np.array([1.9, 4.0, 5.0, 6.1]), clock, breathing(clock))
    assert breath.tolist() == [-1, 0, 0, 1]
    np.testing.assert_allclose(phase[1:], [0.5, 0.75, 0.025], atol=0.01)


def test_views_near_end_expiration_are_kept_in_their_order():
    clock = np.arange(-1, 6, 0.05)
    kept = cardiac.end_expiration(scan(), clock, breathing(clock), 0.25)
    times = kept.acquisition.time_s
    assert len(times) == 10 and (np.diff(times) > 0).all()
    assert (np.minimum(times, 4 - times) < 0.55).all()


@pytest.mark.parametrize(
    ("clock", "signal", "message"),
    [
        (np.arange(1.0), np.arange(1.0), "at least two samples"),
        (np.array([0.0, 2, 1, 4]), np.arange(4.0), "sample 2 of the breathing signal"),
        (np.arange(0, 2, 0.1), np.arange(20.0), "lasts from 0 to 1.9 s, the scan from 0 to 3.9 s"),
        (np.arange(0, 5, 0.1), np.ones(50), "does not change"),
        (np.arange(0, 5, 0.1), np.full(50, np.nan), "NaN"),
    ],
)
def test_impossible_breathing_is_refused(clock, signal, message):
    with pytest.raises(InputError, match=message):
        cardiac.end_expiration(scan(), clock, signal, 0.5)


def test_a_share_outside_of_one_and_too_few_breaths_are_refused():
    clock = np.arange(0, 5, 0.05)
    with pytest.raises(InputError, match="share of views"):
        cardiac.end_expiration(scan(), clock, breathing(clock), 1.5)
    with pytest.raises(InputError, match="1 maxima"):
        cardiac.respiratory_phase(np.array([1.0]), clock, breathing(clock))


def test_numbers_of_text_files(tmp_path):
    path = tmp_path / "ecg.txt"
    path.write_text("# R-peaks, s\n0.5\n\n1.25  # second\n2.0\n")
    assert cardiac.read_numbers(path, 1)[:, 0].tolist() == [0.5, 1.25, 2.0]
    path.write_text("0.1, 3\n0.2, 4\n")
    assert cardiac.read_numbers(path, 2).tolist() == [[0.1, 3], [0.2, 4]]
    for text, message in (
        ("0.5\nabc\n", "line 2 holds no numbers: 'abc'"),
        ("1 2\n", "line 1 has 2"),
        ("#\n", "no num"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            cardiac.read_numbers(path, 1)
