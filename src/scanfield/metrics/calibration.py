"""Whether stated uncertainty is true: coverage of intervals, calibration error, likelihood, sharpness, ranks.

Notation: x true values inside the mask, n their number; m and s mean and standard deviation predicted for each of them;
[lb_p, ub_p] the central interval of level p: quantiles 1/2 -+ p/2 of samples, or of a normal distribution; L the data
range.

    C(p)      = 1/n #{lb_p - delta <= x <= ub_p + delta}            observed coverage; delta = 0 but for ECE*
    ECE       = sum_p |C(p) - p| 0.05,   p = 0, 0.05, .., 0.95      Vasconcelos et al., TMLR 2023
    ECE*      = min over delta of ECE, delta / L on a log grid from 1e-20 to 0.1
    NLL       = 1/n sum 1/2 log(2 pi w) + (x - m)^2 / (2 w L^2),    w = (s / L)^2 + 1e-6
    sharpness = sqrt(1/n sum s^2)                                   in the values' unit; small is sharp
    rank      = Spearman's correlation of |x - m| and s             undefined (NaN) where either is constant

The published ECE is ECE*: a sigmoid cannot reach the zero of air, which a delta far below the noise mends. Choosing it
takes the truth; ECE and delta are given beside it. Everything is computed in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError

LEVELS = tuple(round(0.05 * k, 2) for k in range(20))
STATED = (0.5, 0.9, 0.95)
"""Levels whose coverage is reported one by one."""
WIDENINGS = tuple(float(w) for w in np.logspace(-20, -1, 58))
VARIANCE_FLOOR = 1e-6  # in squared data ranges

Intervals = Callable[[float], tuple[np.ndarray, np.ndarray]]
Values = Tensor | np.ndarray


@dataclass(frozen=True)
class Calibration:
    """The agreement of stated uncertainty with errors; see the module's docstring.

    Args:
        levels, observed: p and C(p), the calibration curve.
        coverage: C(p) at 0.5, 0.9 and 0.95.
        ece: with delta = 0.
        ece_widened, widening: ECE* and its delta, in the values' unit.
        nll: in nats per value, of values in data ranges.
        sharpness: in the values' unit.
        rmse: of the mean, in the values' unit.
        rank_correlation: NaN where it is undefined.
        count: n.
    """

    levels: tuple[float, ...]
    observed: tuple[float, ...]
    coverage: tuple[float, ...]
    ece: float
    ece_widened: float
    widening: float
    nll: float
    sharpness: float
    rmse: float
    rank_correlation: float
    count: int

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        if np.isnan(self.rank_correlation):  # JSON has no NaN
            facts["rank_correlation"] = None
        return facts


def of_samples(
    samples: Values,
    truth: Values,
    mask: Values | None = None,
    *,
    data_range: float | None = None,
) -> Calibration:
    """Calibration of equally likely samples: intervals are their quantiles (linear between order statistics).

    S samples resolve levels up to (S - 1) / (S + 1); of an ensemble of five, judge the normal distribution instead.

    Args:
        samples: (s, *n), at least two.
        truth: (*n).
        mask: (*n); values that are not zero count.
        data_range: L; by default max - min of the truth inside the mask.

    Raises:
        InputError: fewer than two samples, shapes differ, a value is not finite, the mask is empty, or the truth is
            constant inside the mask and there is no data range.
    """
    drawn = _array(samples)
    if drawn.ndim < 1 or len(drawn) < 2:
        raise InputError(f"calibration needs at least two samples, got {len(drawn) if drawn.ndim else 0}")
    x, inside = _checked(truth, mask, drawn.shape[1:])
    drawn = drawn[:, inside]
    _finite(drawn, "samples")
    drawn.sort(axis=0)

    def intervals(level: float) -> tuple[np.ndarray, np.ndarray]:
        return _quantile(drawn, 0.5 - level / 2), _quantile(drawn, 0.5 + level / 2)

    return _judged(intervals, drawn.mean(axis=0), drawn.std(axis=0, ddof=1), x, _range(x, data_range))


def of_normal(
    mean: Values,
    deviation: Values,
    truth: Values,
    mask: Values | None = None,
    *,
    data_range: float | None = None,
) -> Calibration:
    """Calibration of independent normal distributions with `mean` and `deviation`, (*n) each.

    Other arguments and errors: `of_samples`; a negative deviation is refused, too.
    """
    from scipy.special import ndtri

    m, s = _array(mean), _array(deviation)
    x, inside = _checked(truth, mask, m.shape)
    if s.shape != m.shape:
        raise InputError(f"mean and deviation differ in shape: {m.shape} and {s.shape}")
    m, s = m[inside], s[inside]
    _finite(m, "mean")
    _finite(s, "deviation")
    if s.min() < 0:
        raise InputError("a standard deviation cannot be negative", where="deviation")

    def intervals(level: float) -> tuple[np.ndarray, np.ndarray]:
        half = float(ndtri(0.5 + level / 2)) * s
        return m - half, m + half

    return _judged(intervals, m, s, x, _range(x, data_range))


def _judged(intervals: Intervals, m: np.ndarray, s: np.ndarray, x: np.ndarray, limit: float) -> Calibration:
    excess = np.stack([_excess(intervals(level), x) for level in LEVELS])
    observed = _coverage(excess, 0.0)
    widened = {delta: _ece(_coverage(excess, delta)) for delta in (0.0, *(limit * w for w in WIDENINGS))}
    best = min(widened, key=lambda delta: widened[delta])
    w = (s / limit) ** 2 + VARIANCE_FLOOR
    nll = 0.5 * np.log(2 * np.pi * w) + ((x - m) / limit) ** 2 / (2 * w)
    return Calibration(
        levels=LEVELS,
        observed=tuple(float(c) for c in observed),
        coverage=tuple(float((_excess(intervals(level), x) <= 0).mean()) for level in STATED),
        ece=_ece(observed),
        ece_widened=widened[best],
        widening=best,
        nll=float(nll.mean()),
        sharpness=float(np.sqrt(np.mean(s**2))),
        rmse=float(np.sqrt(np.mean((x - m) ** 2))),
        rank_correlation=_rank_correlation(np.abs(x - m), s),
        count=len(x),
    )


def _excess(interval: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    """How far the truth lies outside of its interval: the delta that would cover it."""
    return np.maximum(interval[0] - x, x - interval[1])


def _coverage(excess: np.ndarray, delta: float) -> np.ndarray:
    return np.asarray((excess <= delta).mean(axis=1))


def _ece(observed: np.ndarray) -> float:
    return float(np.abs(observed - np.asarray(LEVELS)).sum() * (LEVELS[1] - LEVELS[0]))


def _quantile(ordered: Float[np.ndarray, "s n"], q: float) -> Float[np.ndarray, " n"]:
    place = q * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 2)
    below, above = ordered[low], ordered[low + 1]
    return np.asarray(below + (place - low) * (above - below))


def _rank_correlation(error: np.ndarray, s: np.ndarray) -> float:
    from scipy.stats import rankdata

    if np.ptp(error) == 0 or np.ptp(s) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(error), rankdata(s))[0, 1])


def _checked(truth: Values, mask: Values | None, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x = _array(truth)
    if x.shape != shape:
        raise InputError(f"predicted and true values differ in shape: {shape} and {x.shape}")
    inside = np.ones(x.shape, dtype=bool) if mask is None else _array(mask) != 0
    if inside.shape != x.shape:
        raise InputError(f"the mask has shape {inside.shape}, the values {x.shape}", where="mask")
    if not inside.any():
        raise InputError("the mask is empty", where="mask", fix="give a mask with at least one voxel")
    _finite(x[inside], "truth")
    return x[inside], inside


def _finite(values: np.ndarray, name: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(f"{bad} of {values.size} values of the {name} are NaN or infinite", where=name)


def _range(x: np.ndarray, given: float | None) -> float:
    span = float(np.ptp(x)) if given is None else float(given)
    if not 0 < span < np.inf:
        raise InputError(
            "the truth is constant: it has no data range" if given is None else f"the data range is {given}",
            where="data range",
            fix="give a positive data range in the values' unit",
        )
    return span


def _array(values: Values) -> np.ndarray:
    return (values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)).astype(float)
