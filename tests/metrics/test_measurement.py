"""Measurement residuals against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.measurement import residual


def test_numbers_worked_by_hand() -> None:
    measured = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    found = residual(measured + torch.tensor([[1.0, 0.0], [0.0, -2.0]]), measured)
    assert found.rms == pytest.approx(math.sqrt(5 / 4))
    assert found.relative_rms == pytest.approx(math.sqrt(5) / 5)


def test_complex_values_count_by_their_modulus() -> None:
    measured = np.array([3.0 + 4.0j, 0.0])
    found = residual(measured + np.array([1j, 0.0]), measured)
    assert found.rms == pytest.approx(math.sqrt(1 / 2))
    assert found.relative_rms == pytest.approx(1 / 5)


def test_equal_values_have_no_residual() -> None:
    values = np.arange(6.0).reshape(1, 2, 3)
    assert residual(values, values) == residual(torch.tensor(values), torch.tensor(values))
    assert residual(values, values).rms == 0.0


def test_bad_input() -> None:
    values = np.arange(1.0, 7.0)
    with pytest.raises(InputError, match="one shape"):
        residual(values[:-1], values)
    with pytest.raises(InputError, match="one shape"):
        residual(values[:0], values[:0])
    with pytest.raises(InputError, match="1 of 6 predicted values are NaN"):
        residual(np.where(values == 2, np.nan, values), values)
    with pytest.raises(InputError, match="all measured values are zero"):
        residual(values, values * 0)
