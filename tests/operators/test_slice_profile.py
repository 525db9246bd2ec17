"""Point-spread functions against their definitions."""

import math

import pytest
import torch

from scanfield.errors import InputError
from scanfield.operators.slice_profile import (
    across_reach_mm,
    across_weights,
    along_reach_mm,
    along_weights,
)


def line(reach, n=20001):
    return torch.linspace(-reach, reach, n, dtype=torch.float64)


@pytest.mark.parametrize("psf", ["gaussian", "box-sinc"])
def test_they_are_even_and_half_as_high_at_the_edge_of_the_slice(psf):
    z = line(across_reach_mm(psf, 4.0))
    w = across_weights(psf, 4.0, z)
    assert torch.allclose(w, w.flip(0), atol=1e-12)
    middle, edge = across_weights(psf, 4.0, torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert float(edge / middle) == pytest.approx(0.5, abs=0.01)


def test_a_gaussian_has_its_standard_deviations():
    z = line(across_reach_mm("gaussian", 4.0))
    w = across_weights("gaussian", 4.0, z)
    assert float((w * z**2).sum() / w.sum()) == pytest.approx((4 / 2.35482) ** 2, rel=0.03)  # cut off at 3 of them
    u = line(along_reach_mm("gaussian", 1.5))
    w = along_weights("gaussian", 1.5, u)
    assert float((w * u**2).sum() / w.sum()) == pytest.approx((1.2067 * 1.5 / 2.35482) ** 2, rel=0.03)


def test_the_pulse_s_profile_is_its_fourier_transform():
    """A box of one thickness convolved with the transform of the window of N = 2: closed form by sine integrals."""
    from scipy.special import sici

    z = line(4.0, 101)
    x = z / 4.0

    def si(t):
        return torch.from_numpy(sici((2 * math.pi * t).numpy())[0])

    n = 2.0
    box = (si(n * (x + 0.5)) - si(n * (x - 0.5))) / math.pi
    shifted = [(si(n * (x + s + 0.5)) - si(n * (x + s - 0.5))) / math.pi for s in (1 / (2 * n), -1 / (2 * n))]
    expected = box / 2 + (shifted[0] + shifted[1]) / 4
    assert torch.allclose(across_weights("box-sinc", 4.0, z), expected, atol=2e-4)
    w = across_weights("box-sinc", 4.0, line(40.0))
    assert float(w.sum() * 0.004) == pytest.approx(4.0, rel=1e-3)  # the integral over z is the thickness
    assert (
        float(
            across_weights("box-sinc", 4.0, line(40.0))[line(40.0).abs() > across_reach_mm("box-sinc", 4.0)].abs().max()
        )
        < 2e-3
    )


def test_a_box_along_the_slice():
    u = torch.tensor([-0.76, -0.74, 0.0, 0.74, 0.76])
    assert along_weights("box-sinc", 1.5, u).tolist() == [0, 1, 1, 1, 0] and along_reach_mm("box-sinc", 1.5) == 0.75


def test_what_is_refused():
    with pytest.raises(InputError, match="positive numbers of mm, got 0"):
        across_reach_mm("gaussian", 0.0)
