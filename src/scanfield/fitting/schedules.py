"""Learning-rate schedules: functions (step, total steps) -> factor of the group's rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scanfield.errors import InputError

Schedule = Callable[[int, int], float]


def constant(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


def halve_every(steps: int, factor: float = 0.5) -> Schedule:
    """factor^(step // steps)."""
    return lambda step, total: float(factor ** (step // steps))


def milestones(fractions: Sequence[float], factor: float) -> Schedule:
    """Multiplied by `factor` whenever another fraction of the total steps has passed."""
    return lambda step, total: float(factor ** sum(step >= fraction * total for fraction in fractions))


def exponential(final: float) -> Schedule:
    """Falls exponentially from 1 to `final` over the fit. Raises `InputError` unless that is positive."""
    if not final > 0:
        raise InputError(f"a rate that falls exponentially ends above 0, got {final:g}")
    return lambda step, total: float(final ** (step / max(1, total)))


def cosine(final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `final`. Raises `InputError` if that is negative."""
    if not final >= 0:
        raise InputError(f"a rate cannot end below 0, got {final:g}")
    return lambda step, total: final + (1 - final) * (1 + math.cos(math.pi * min(1.0, step / max(1, total)))) / 2


def warm_up(steps: int, after: Schedule = constant) -> Schedule:
    """Rises linearly over the first `steps`, then follows `after`."""
    return lambda step, total: min(1.0, (step + 1) / max(1, steps)) * after(step, total)
