"""Hounsfield units and attenuation."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from scanfield.data.hounsfield import MU_WATER_PER_MM, to_attenuation, to_hounsfield
from scanfield.errors import InputError


def test_water_at_70_kev_agrees_with_the_nist_table() -> None:
    energy_kev = np.array([30, 40, 50, 60, 80, 100, 150])
    cm2_per_g = np.array([0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505])  # NIST, water, liquid
    at_70 = np.exp(CubicSpline(np.log(energy_kev), np.log(cm2_per_g))(np.log(70)))
    assert pytest.approx(at_70 / 10, rel=2e-4) == MU_WATER_PER_MM


def test_fixed_points() -> None:
    mu = to_attenuation(torch.tensor([-3024.0, -1000.0, 0.0, 1000.0]))
    torch.testing.assert_close(mu, torch.tensor([0.0, 0.0, 0.01929, 0.03858]))
    torch.testing.assert_close(to_attenuation(torch.tensor([100.0]), 0.02), torch.tensor([0.022]))


def test_there_and_back() -> None:
    hu = torch.linspace(-1000, 3000, 41)
    torch.testing.assert_close(to_hounsfield(to_attenuation(hu, 0.0206), 0.0206), hu, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mu_water", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_water(mu_water: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        to_attenuation(torch.zeros(1), mu_water)
