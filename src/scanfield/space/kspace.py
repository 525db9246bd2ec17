"""Where in k-space, when, and for which frame every sample of an MR scan was taken.

Notation: x world point (mm, RAS+), x0 the phase centre, d_a the unit direction of the volume's voxel axis a, k spatial
frequency (cycles/mm) along the voxel axes, m the complex image:

    s(k) = 1 / sqrt(N)  sum_voxels  m(x) exp(-2 pi i  sum_a k_a d_a . (x - x0))

N is the number of voxels of the volume and x0 the centre of its voxel n // 2 along every axis: on samples one
field of view apart this is the centred, unitary, discrete Fourier transform. k-space thus has the image's unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.timing import Timing, centres

_BEYOND = 1e-3  # of the Nyquist frequency: rounding of trajectories in files


@dataclass(frozen=True, eq=False)
class KSpaceGeometry:
    """The acquisition of a raw MR scan; a view is one readout: a spoke, an interleaf, a Cartesian line.

    Args:
        trajectory: (views, samples, 3) float64, spatial frequency in cycles/mm along the volume's voxel axes; within
            the Nyquist box |k_a| <= 1 / (2 spacing_a). Axes of one voxel have k_a = 0.
        coils: number of receiver coils.
        volume: the grid to reconstruct on: field of view, matrix and orientation.
        time_s: (views,) time of the first sample of every view, or None.
        dwell_s: time between the samples of a view, or None.
        frame: (views,) which frame of the series every view belongs to (None: all to frame 0). Methods that take
            every sample at its own time do not use it.
        frames: number of frames; some may have no view, as after holding views out (None: the largest in `frame`, + 1).
        timing: the axis of the series and where every view lies on it (None: see `Timing.of_scan`).

    Raises:
        InputError: a shape, a time or a frame is impossible, there is no coil, or the trajectory leaves the box.
    """

    trajectory: np.ndarray
    coils: int
    volume: Grid
    time_s: np.ndarray | None = None
    dwell_s: float | None = None
    frame: np.ndarray | None = None
    frames: int | None = None
    timing: Timing | None = None

    def __post_init__(self) -> None:
        k = np.asarray(self.trajectory, dtype=np.float64)
        if k.ndim != 3 or k.shape[2] != 3 or 0 in k.shape:
            raise InputError(f"a trajectory has shape (views, samples, 3), got {k.shape}", where="trajectory")
        if not np.isfinite(k).all():
            raise InputError("the trajectory has values that are NaN or infinite", where="trajectory")
        if self.coils < 1:
            raise InputError(f"k-space needs at least one coil, got {self.coils}", where="kspace")
        self._check_box(k)
        object.__setattr__(self, "trajectory", k)
        if self.time_s is not None:
            times = np.asarray(self.time_s, dtype=np.float64)
            if times.shape != (len(k),) or not np.isfinite(times).all():
                raise InputError(
                    f"time_s needs one finite time for each of {len(k)} views, got shape {times.shape}", where="time_s"
                )
            object.__setattr__(self, "time_s", times)
        if self.dwell_s is not None and not 0 < self.dwell_s < np.inf:
            raise InputError(f"the dwell time must be a positive number of seconds, got {self.dwell_s}", where="dwell")
        frame = np.zeros(len(k), dtype=np.int64) if self.frame is None else np.asarray(self.frame)
        if frame.shape != (len(k),) or frame.dtype.kind not in "iu" or frame.min() < 0:
            raise InputError(f"frame needs one whole number from 0 for each of {len(k)} views", where="frame")
        frames = int(frame.max()) + 1 if self.frames is None else int(self.frames)
        if frame.max() >= frames:
            raise InputError(f"a view belongs to frame {frame.max()}, there are frames 0..{frames - 1}", where="frame")
        object.__setattr__(self, "frame", frame.astype(np.int64))
        object.__setattr__(self, "frames", frames)
        if self.timing is None:
            object.__setattr__(self, "timing", Timing.of_scan(self.time_s, frame, frames))
        elif len(self.timing.view) != len(k):
            raise InputError(f"the timing has {len(self.timing.view)} views, the trajectory {len(k)}", where="timing")

    def _check_box(self, k: np.ndarray) -> None:
        """Refuses frequencies that the volume's voxels cannot represent."""
        single = np.asarray(self.volume.shape) == 1
        nyquist = np.where(single, 0.0, 0.5 / np.asarray(self.volume.spacing_mm))
        largest = np.abs(k).max(axis=(0, 1))
        slack = _BEYOND * 0.5 / np.asarray(self.volume.spacing_mm)
        for axis in np.flatnonzero(largest > nyquist + slack):
            if single[axis]:
                raise InputError(
                    f"the trajectory encodes voxel axis {axis}, which has a single voxel",
                    where="trajectory",
                    fix="set its frequencies to zero, or give the volume more voxels there",
                )
            raise InputError(
                f"the trajectory reaches {largest[axis]:.4g} cycles/mm along voxel axis {axis}, beyond the Nyquist "
                f"frequency {nyquist[axis]:.4g} of {self.volume.spacing_mm[axis]:.4g} mm voxels",
                where="trajectory",
                fix="give the trajectory in cycles/mm, or a matrix with smaller voxels",
            )

    @property
    def kind(self) -> str:
        """What a method's card lists under `accepts`."""
        return "kspace"

    @property
    def views(self) -> int:
        return len(self.trajectory)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the measurement: (views, coils, samples)."""
        return self.views, self.coils, self.trajectory.shape[1]

    @property
    def frame_of_view(self) -> np.ndarray:
        """(views,) `frame`, zeros where none was given."""
        assert self.frame is not None  # set by __post_init__
        return self.frame

    @property
    def frame_count(self) -> int:
        """`frames`, found from `frame` where none was given."""
        assert self.frames is not None  # set by __post_init__
        return self.frames

    @property
    def when(self) -> Timing:
        """`timing`, found from times and frames where none was given."""
        assert self.timing is not None  # set by __post_init__
        return self.timing

    def frame_moments(self) -> np.ndarray:
        """(frames,) where on the axis of the series its frames lie: a phase's middle, else the mean of its views.

        A frame without views lies between those around it.
        """
        count = self.frame_count
        if self.when.periodic:
            return centres(self.when.axis, count)
        views = np.bincount(self.frame_of_view, minlength=count)
        seen = np.flatnonzero(views)
        mean = np.bincount(self.frame_of_view, weights=self.when.view, minlength=count)[seen] / views[seen]
        if len(seen) < 2:
            return np.full(count, mean[0])
        step = np.ptp(mean) / np.ptp(seen)
        before, after = mean[0] - step * seen[0], mean[-1] + step * (count - 1 - seen[-1])
        return np.interp(np.arange(count), [-1e-9, *seen, count - 1 + 1e-9], [before, *mean, after])

    def cut(self, frames: int) -> KSpaceGeometry:
        """The same scan cut into `frames` equal parts of its time, whatever frames it has.

        Raises:
            InputError: no part, or the scan does not know when its views were taken.
        """
        if frames == 1:
            return replace(self, frame=None, frames=1, timing=None)
        if self.time_s is None or np.ptp(self.time_s) == 0:
            raise InputError(
                "the scan does not say when its views were taken: it cannot be cut into frames",
                fix="add 'time_s', or 'frame' and 'frames', to the file",
            )
        timing = Timing.of_scan(self.time_s, self.frame_of_view, 2)
        return replace(self, frame=timing.parts(frames), frames=frames, timing=timing)

    def phase_centre_mm(self) -> np.ndarray:
        """x0: the centre of the voxel n // 2 along every axis, (3,) mm in the world."""
        middle = np.asarray(self.volume.shape) // 2
        return np.asarray(self.volume.affine[:3, :3] @ middle + self.volume.affine[:3, 3])

    def world_trajectory(self) -> np.ndarray:
        """(views, samples, 3): the trajectory along the world's axes, cycles/mm."""
        return np.asarray(self.trajectory @ self.volume.directions.T)

    def sample_times_s(self) -> np.ndarray:
        """(views, samples): the time of every sample; that of its view where the dwell time is not known.

        Raises:
            InputError: the scan has no times.
        """
        if self.time_s is None:
            raise InputError("the scan does not say when its views were taken", fix="add 'time_s' to the file")
        within = np.arange(self.shape[2]) * (self.dwell_s or 0.0)
        return self.time_s[:, None] + within

    def subset(self, views: np.ndarray) -> KSpaceGeometry:
        """The same scan with only some of its views (indices, in the given order); the frames keep their numbers."""
        views = np.asarray(views)
        time_s = None if self.time_s is None else self.time_s[views]
        return replace(
            self,
            trajectory=self.trajectory[views],
            time_s=time_s,
            frame=self.frame_of_view[views],
            timing=self.when.subset(views),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "trajectory_cycles_per_mm": self.trajectory.tolist(),
            "coils": self.coils,
            "volume": self.volume.to_json(),
            "time_s": None if self.time_s is None else self.time_s.tolist(),
            "dwell_s": self.dwell_s,
            "frame": self.frame_of_view.tolist(),
            "frames": self.frame_count,
            "timing": self.when.to_json(),
        }

    @staticmethod
    def from_json(facts: Any) -> KSpaceGeometry:
        try:
            return KSpaceGeometry(
                trajectory=np.asarray(facts["trajectory_cycles_per_mm"], dtype=np.float64),
                coils=int(facts["coils"]),
                volume=Grid.from_json(facts["volume"]),
                time_s=None if facts["time_s"] is None else np.asarray(facts["time_s"], dtype=np.float64),
                dwell_s=None if facts["dwell_s"] is None else float(facts["dwell_s"]),
                frame=np.asarray(facts["frame"], dtype=np.int64),
                frames=int(facts["frames"]),
                timing=Timing.from_json(facts["timing"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"this is no complete k-space geometry: {error}") from None


def consecutive_frames(views: int, frames: int) -> np.ndarray:
    """(views,) frame of every view when a scan is cut into equal stretches, in the order of acquisition.

    Raises:
        InputError: fewer views than frames, or no frame.
    """
    if not 1 <= frames <= views:
        raise InputError(f"{views} views cannot be cut into {frames} frames", fix=f"choose from 1 to {views} frames")
    return np.arange(views) * frames // views
