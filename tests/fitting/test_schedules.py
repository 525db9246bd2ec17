from __future__ import annotations

import math

import pytest

from scanfield.errors import InputError
from scanfield.fitting.schedules import constant, cosine, exponential, halve_every, milestones, warm_up


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, {0: 1, 50: 1, 100: 1}),
        (halve_every(30), {0: 1, 29: 1, 30: 0.5, 60: 0.25, 99: 0.125}),
        (halve_every(30, 0.1), {29: 1, 30: 0.1}),
        (milestones([0.5, 0.75], 0.1), {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01}),
        (exponential(0.01), {0: 1, 50: 0.1, 100: 0.01}),
        (cosine(), {0: 1, 50: 0.5, 100: 0}),
        (cosine(0.2), {0: 1, 25: 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 100: 0.2, 120: 0.2}),
        (warm_up(4), {0: 0.25, 1: 0.5, 3: 1, 50: 1}),
        (warm_up(2, halve_every(1)), {0: 0.5, 1: 0.5, 2: 0.25}),
        (warm_up(0), {0: 1}),
    ],
)
def test_factors(schedule, expected):
    for step, factor in expected.items():
        assert schedule(step, 100) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("schedule", "final"), [(exponential, 0.0), (exponential, -0.1), (cosine, -0.1)])
def test_a_rate_that_would_become_negative_is_refused(schedule, final):
    with pytest.raises(InputError, match="a rate"):
        schedule(final)


@pytest.mark.parametrize("schedule", [exponential(0.1), cosine()])
def test_a_stage_of_no_steps_is_no_division_by_zero(schedule):
    assert math.isfinite(schedule(0, 0))
