"""From an ECG or a breathing signal to the place of every view in its cycle: gating without bins, and bins for rivals.

Notation: r_h time of R-peak h, t time of a view:

    phase(t) = (t - r_h) / (r_{h+1} - r_h)  in [0, 1)     where r_h <= t < r_{h+1}: beat h

Views before the first and after the last peak belong to no whole beat. Breathing: amplitude 0 at end expiration and 1
at end inspiration (5th and 95th percentile of the signal, which grows as air flows in); its phase runs between maxima.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from scanfield.data.guard import existing_file, located
from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.space.domain import Axis
from scanfield.space.timing import NAME, Timing

SHORTEST_S, LONGEST_S = 0.25, 3.0
"""R-R intervals that a heart can have: 240 and 20 beats a minute."""
SHORTEST_BREATH_S = 1.0
PROMINENCE = 0.3  # of a breath's maximum, of the amplitude

Array = np.ndarray


def read_numbers(path: str | Path, columns: int) -> Float[Array, "rows columns"]:
    """Numbers of a text file, `columns` in a line, separated by white space or commas; '#' begins a remark.

    Raises:
        InputError: the file is missing, or a line has something else.
    """
    path = existing_file(path)
    rows = []
    with located(path):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            words = line.partition("#")[0].replace(",", " ").split()
            if not words:
                continue
            try:
                row = [float(word) for word in words]
            except ValueError:
                raise InputError(f"line {number} holds no numbers: '{line.strip()[:40]}'") from None
            if len(row) != columns:
                raise InputError(f"line {number} has {len(row)} numbers, {columns} are expected")
            rows.append(row)
        if not rows:
            raise InputError("the file has no numbers")
    return np.asarray(rows)


def check_r_peaks(peaks_s: Float[Array, " peaks"], begin_s: float, end_s: float) -> Float[Array, " peaks"]:
    """The peaks, if a heart can have beaten so during a scan from `begin_s` to `end_s`.

    Raises:
        InputError: fewer than two peaks, or one that is not finite, not in order, far outside the scan, or too close to
            or too far from the one before; says which.
    """
    peaks = np.asarray(peaks_s, dtype=np.float64)
    where = "R-peaks"
    if peaks.ndim != 1 or len(peaks) < 2:
        raise InputError(f"a beat lies between two R-peaks, got an array of shape {peaks.shape}", where=where)
    if not np.isfinite(peaks).all():
        raise InputError(f"R-peak {int(np.flatnonzero(~np.isfinite(peaks))[0])} is NaN or infinite", where=where)
    for k, interval in enumerate(np.diff(peaks)):
        if interval <= 0:
            raise InputError(
                f"R-peak {k + 1} at {peaks[k + 1]:.6g} s does not come after the one before, at {peaks[k]:.6g} s",
                where=where,
                fix="give the peaks in the order of time",
            )
    outside = np.flatnonzero((peaks < begin_s - LONGEST_S) | (peaks > end_s + LONGEST_S))
    if len(outside):
        raise InputError(
            f"R-peak {int(outside[0])} at {peaks[outside[0]]:.6g} s lies outside the scan, which lasts from "
            f"{begin_s:.6g} to {end_s:.6g} s",
            where=where,
            fix="give R-peaks and views in seconds of one clock",
        )
    for k, interval in enumerate(np.diff(peaks)):
        if not SHORTEST_S <= interval <= LONGEST_S:
            raise InputError(
                f"the R-R interval from {peaks[k]:.6g} s is {interval:.4g} s; hearts beat every {SHORTEST_S:g} to "
                f"{LONGEST_S:g} s",
                where=where,
                fix="add the peak that was missed, or remove the one that is none",
            )
    return peaks


def phase_between(
    time_s: Float[Array, " n"], events_s: Float[Array, " events"]
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """(phase in [0, 1), number of the cycle) of every time between sorted events; phase NaN and cycle -1 elsewhere."""
    cycle = np.searchsorted(events_s, time_s, side="right") - 1
    inside = (cycle >= 0) & (cycle < len(events_s) - 1)
    if not inside.any():
        return np.full(len(time_s), np.nan), np.full(len(time_s), -1)
    at = np.where(inside, cycle, 0)
    phase = (time_s - events_s[at]) / (events_s[at + 1] - events_s[at])
    phase = np.minimum(phase, np.nextafter(1.0, 0.0))  # rounding at the very end of a beat
    return np.where(inside, phase, np.nan), np.where(inside, cycle, -1)


def cardiac_gated(
    kspace: KSpace,
    phases: int,
    r_peaks_s: Float[Array, " peaks"] | None = None,
    *,
    beats: int | None = None,
    settle_s: float = 0.0,
) -> KSpace:
    """The views of whole beats, each at its own phase, with `phases` equal frames of the beat for frame-wise rivals.

    Args:
        phases: any number; methods that take every view at its own phase do not bin.
        r_peaks_s: times of the R-peaks on the clock of `time_s` (None: the file's).
        beats: of these only the first (None: all).
        settle_s: peaks in this time after the first view do not count: the magnetisation is not steady yet.

    Raises:
        InputError: the scan has no times or R-peaks, or the peaks are impossible (`check_r_peaks`), or no beat is left.
    """
    times = _times(kspace)
    peaks = kspace.r_peaks_s if r_peaks_s is None else r_peaks_s
    if peaks is None:
        raise InputError(
            "the scan has no R-peaks: phases of the heart beat are not known",
            where=kspace.source,
            fix="give their times: --ecg FILE, or 'r_peaks_s' in the file",
        )
    if phases < 1 or (beats is not None and beats < 1):
        raise InputError(f"at least one phase and one beat are needed, got {phases} and {beats}")
    peaks = check_r_peaks(peaks, float(times.min()), float(times.max()))
    peaks = peaks[peaks >= times.min() + settle_s] if settle_s > 0 else peaks
    phase, beat = phase_between(times, peaks)
    found = np.unique(beat[beat >= 0])[:beats]
    views = np.flatnonzero(np.isin(beat, found))
    if not len(views):
        raise InputError(
            f"no view lies between two R-peaks after the first {settle_s:g} s", where=kspace.source, fix="scan longer"
        )
    length = float(np.mean(np.diff(peaks)[found]))
    timing = Timing(Axis(NAME, "cycle", 0.0, 1.0), phase[views], length)
    part = kspace.subset(views)
    geometry = replace(part.acquisition, frame=timing.parts(phases), frames=phases, timing=timing)
    out = replace(part, acquisition=geometry)
    assert isinstance(out, KSpace)
    return out


def respiratory_amplitude(
    time_s: Float[Array, " n"], signal_time_s: Float[Array, " m"], signal: Float[Array, " m"]
) -> Float[Array, " n"]:
    """0 (end expiration) to 1 (end inspiration) at every time, by linear interpolation of the signal.

    Raises:
        InputError: the signal's times are not in order, do not cover the scan, or the signal does not change.
    """
    clock, values = _checked_signal(time_s, signal_time_s, signal)
    low, high = np.percentile(values, [5, 95])
    return np.clip((np.interp(time_s, clock, values) - low) / (high - low), 0.0, 1.0)


def respiratory_phase(
    time_s: Float[Array, " n"], signal_time_s: Float[Array, " m"], signal: Float[Array, " m"]
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """(phase in [0, 1) from one end inspiration to the next, number of the breath), as `phase_between`.

    Raises:
        InputError: see `respiratory_amplitude`; or fewer than two breaths are found.
    """
    from scipy.signal import find_peaks

    clock, values = _checked_signal(time_s, signal_time_s, signal)
    low, high = np.percentile(values, [5, 95])
    distance = max(1, int(SHORTEST_BREATH_S / np.median(np.diff(clock))))
    tops, _ = find_peaks(values, prominence=PROMINENCE * (high - low), distance=distance)
    if len(tops) < 2:
        raise InputError(f"the breathing signal has {len(tops)} maxima, a phase needs two", where="respiration")
    return phase_between(time_s, clock[tops])


def end_expiration(
    kspace: KSpace, signal_time_s: Float[Array, " m"], signal: Float[Array, " m"], share: float
) -> KSpace:
    """The `share` of the views nearest to end expiration, in their order.

    Raises:
        InputError: see `respiratory_amplitude`; the share is not in (0, 1], or the scan has no times.
    """
    if not 0 < share <= 1:
        raise InputError(f"the share of views to keep lies between 0 and 1, got {share:g}")
    times = _times(kspace)
    amplitude = respiratory_amplitude(times, signal_time_s, signal)
    count = max(1, round(share * len(times)))
    out = kspace.subset(np.sort(np.argsort(amplitude, kind="stable")[:count]))
    assert isinstance(out, KSpace)
    return out


def _times(kspace: KSpace) -> Float[Array, " views"]:
    if kspace.acquisition.time_s is None:
        raise InputError(
            "the scan does not say when its views were taken: it cannot be gated",
            where=kspace.source,
            fix="add 'time_s' to the file",
        )
    return kspace.acquisition.time_s


def _checked_signal(time_s: Array, signal_time_s: Array, signal: Array) -> tuple[Array, Array]:
    clock, values = np.asarray(signal_time_s, dtype=np.float64), np.asarray(signal, dtype=np.float64)
    where = "respiration"
    if len(clock) < 2:
        raise InputError(f"a breathing signal has at least two samples, got {len(clock)}", where=where)
    if not (np.isfinite(clock).all() and np.isfinite(values).all()):
        raise InputError("the breathing signal has values that are NaN or infinite", where=where)
    back = np.flatnonzero(np.diff(clock) <= 0)
    if len(back):
        raise InputError(f"sample {int(back[0]) + 1} of the breathing signal does not come after the one before it")
    slack = float(np.diff(clock).max())
    if clock[0] > time_s.min() + slack or clock[-1] < time_s.max() - slack:
        raise InputError(
            f"the breathing signal lasts from {clock[0]:.6g} to {clock[-1]:.6g} s, the scan from {time_s.min():.6g} to "
            f"{time_s.max():.6g} s",
            where=where,
            fix="give signal and views in seconds of one clock",
        )
    if not np.ptp(np.percentile(values, [5, 95])) > 0:
        raise InputError("the breathing signal does not change", where=where)
    return clock, values
