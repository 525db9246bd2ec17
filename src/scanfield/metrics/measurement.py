"""How well a result explains what was measured: the only score that needs no ground truth.

Notation: y measured and p predicted values of the same shape (views, ...), n their number.

    RMS          = sqrt(1/n sum (p - y)^2)        in the unit of the measurement
    relative RMS = sqrt(sum (p - y)^2 / sum y^2)

Views that were held out of the fit show whether a result generalises; fitted views only show that it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scanfield.errors import InputError


@dataclass(frozen=True)
class Residual:
    """Size of predicted - measured: `rms` in the measurement's unit, `relative_rms` without unit."""

    rms: float
    relative_rms: float


def residual(predicted: Tensor | np.ndarray, measured: Tensor | np.ndarray) -> Residual:
    """The residual over all given measurements, in double precision; complex values count by their modulus.

    Args:
        predicted, measured: any equal shape, one unit.

    Raises:
        InputError: shapes differ, there is no value, a value is not finite, or all measured values are zero.
    """
    p, y = _array(predicted), _array(measured)
    if p.shape != y.shape or y.size == 0:
        raise InputError(f"predicted and measured values need one shape, got {p.shape} and {y.shape}")
    for name, values in (("predicted", p), ("measured", y)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise InputError(f"{bad} of {values.size} {name} values are NaN or infinite", where=name)
    norm = float(np.linalg.norm(y))
    if norm == 0:
        raise InputError("all measured values are zero: a relative residual is not defined", where="measured")
    error = float(np.linalg.norm(p - y))
    return Residual(rms=error / float(np.sqrt(y.size)), relative_rms=error / norm)


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
