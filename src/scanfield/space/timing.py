"""When the views of a dynamic scan were taken, and when the images of its series are.

The axis of a series is one of three:

    s       the time of the scan
    cycle   the phase of a cycle that repeats, such as the heart's, from 0 to 1: periodic
    frame   the number of the frame, where no time is known, or where there is one image only
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scanfield.errors import InputError
from scanfield.space.domain import Axis

NAME = "t"
"""Of the axis in a domain."""
UNITS = ("s", "cycle", "frame")


@dataclass(frozen=True, eq=False)
class Timing:
    """The axis of a series and where on it every view lies.

    Args:
        axis: its name is 't', its unit one of `UNITS`.
        view: (views,) float64, in the axis' unit.
        cycle_s: mean length of a cycle in seconds, where the unit is 'cycle'.

    Raises:
        InputError: a view lies nowhere, or the unit and the length of a cycle contradict each other.
    """

    axis: Axis
    view: np.ndarray
    cycle_s: float | None = None

    def __post_init__(self) -> None:
        view = np.asarray(self.view, dtype=np.float64)
        if view.ndim != 1 or not np.isfinite(view).all():
            raise InputError(f"every view needs one finite place on the axis of time, got shape {view.shape}")
        if self.axis.name != NAME or self.axis.unit not in UNITS:
            raise InputError(f"the axis of a series is 't' in {', '.join(UNITS)}, got {self.axis}")
        if (self.cycle_s is not None) != (self.axis.unit == "cycle"):
            raise InputError("the length of a cycle belongs to an axis in cycles, and only to one")
        if self.cycle_s is not None and not 0 < self.cycle_s < np.inf:
            raise InputError(f"a cycle lasts a positive number of seconds, got {self.cycle_s}")
        object.__setattr__(self, "view", view)

    @staticmethod
    def of_scan(time_s: np.ndarray | None, frame: np.ndarray, frames: int) -> Timing:
        """Seconds where they are known, else frames; one moment for all where there is one frame."""
        if frames == 1:
            return Timing(Axis(NAME, "frame", 0.0, 1.0), np.full(len(frame), 0.5))
        if time_s is None or len(time_s) < 2 or np.ptp(time_s) == 0:
            return Timing(Axis(NAME, "frame", 0.0, float(frames)), frame + 0.5)
        half = float(np.ptp(time_s)) / (len(time_s) - 1) / 2
        return Timing(Axis(NAME, "s", float(time_s.min()) - half, float(time_s.max()) + half), time_s)

    @property
    def periodic(self) -> bool:
        """Whether the end of the axis is its beginning."""
        return self.cycle_s is not None

    def subset(self, views: np.ndarray) -> Timing:
        """The same axis with only some of the views."""
        return replace(self, view=self.view[views])

    def parts(self, count: int) -> np.ndarray:
        """(views,) in which of `count` equal parts of the axis every view lies.

        Raises:
            InputError: no part.
        """
        if count < 1:
            raise InputError(f"a series has at least one frame, got {count}")
        place = (self.view - self.axis.low) / (self.axis.high - self.axis.low)
        return np.clip(np.floor(place * count), 0, count - 1).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        return {
            "axis": [self.axis.name, self.axis.unit, self.axis.low, self.axis.high],
            "view": self.view.tolist(),
            "cycle_s": self.cycle_s,
        }

    @staticmethod
    def from_json(facts: Any) -> Timing:
        name, unit, low, high = facts["axis"]
        cycle = facts["cycle_s"]
        axis = Axis(str(name), str(unit), float(low), float(high))
        return Timing(axis, np.asarray(facts["view"], dtype=np.float64), None if cycle is None else float(cycle))


def centres(axis: Axis, count: int) -> np.ndarray:
    """(count,) the middles of `count` equal parts of an axis.

    Raises:
        InputError: no part.
    """
    if count < 1:
        raise InputError(f"a series has at least one frame, got {count}")
    return axis.low + (np.arange(count) + 0.5) / count * (axis.high - axis.low)
