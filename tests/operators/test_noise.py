from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.errors import InputError
from scanfield.operators.noise import (
    deviation_of,
    gaussian_nll,
    gaussian_noise,
    poisson_nll,
    poisson_noise,
    sigma_of_percent,
)
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_its_level_and_its_seed():
    values = torch.linspace(0, 4, 40000)
    noisy = gaussian_noise(values, sigma_of_percent(values, 2.5), draw())
    assert float((noisy - values).std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float((noisy - values).mean())) < 0.002
    assert torch.equal(noisy, gaussian_noise(values, 0.1, draw()))
    assert torch.equal(values, gaussian_noise(values, 0.0, draw()))


@pytest.mark.parametrize("readout", [0.0, 30.0])
def test_poisson_noise_has_the_variance_of_counting(readout):
    """To first order var(p) = (N + readout^2) / N^2 with N = I0 exp(-p)."""
    photons, integral = 1e5, 2.0
    noisy, starved = poisson_noise(torch.full((200, 200), integral), photons, draw(), readout=readout)
    counts = photons * math.exp(-integral)
    assert starved == 0
    assert float(noisy.std()) == pytest.approx(math.sqrt(counts + readout**2) / counts, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(integral, abs=1e-3)
    assert noisy.dtype == torch.float32


def test_starved_pixels_are_counted_and_finite():
    """At exp(-20) of 1000 photons nearly every pixel stays dark and reads log(I0)."""
    noisy, starved = poisson_noise(torch.tensor([[20.0] * 50, [0.0] * 50]), 1000, draw())
    assert starved == 50
    assert torch.allclose(noisy[0], torch.tensor(math.log(1000)))
    assert bool(torch.isfinite(noisy).all())


def test_gaussian_nll_is_half_the_squared_deviation_in_sigmas():
    predicted, measured = torch.tensor([1.0, 3.0]), torch.tensor([1.2, 2.0])
    expected = -torch.distributions.Normal(predicted, 0.5).log_prob(measured)
    best = -torch.distributions.Normal(measured, 0.5).log_prob(measured)
    assert torch.allclose(gaussian_nll(predicted, measured, 0.5), (expected - best).mean())


def test_poisson_nll_is_that_of_the_counts():
    photons = 500.0
    counts = torch.tensor([3.0, 40.0, 480.0], dtype=torch.float64)
    predicted = torch.tensor([4.7, 2.6, 0.1], dtype=torch.float64, requires_grad=True)
    measured = -torch.log(counts / photons)

    def of_counts(p: torch.Tensor) -> torch.Tensor:
        return -torch.distributions.Poisson(photons * torch.exp(-p)).log_prob(counts)

    ours = poisson_nll(predicted, measured, photons)
    assert torch.allclose(ours, (of_counts(predicted) - of_counts(measured)).mean())
    (gradient,) = torch.autograd.grad(ours, predicted)
    (expected,) = torch.autograd.grad(of_counts(predicted).mean(), predicted)
    assert torch.allclose(gradient, expected)
    assert torch.autograd.gradcheck(lambda p: poisson_nll(p, measured, photons), predicted)
    assert float(poisson_nll(measured, measured, photons)) == 0.0


def test_bad_levels_are_refused():
    values = torch.ones(3)
    for call in (
        lambda: gaussian_noise(values, -1.0, draw()),
        lambda: sigma_of_percent(values, float("nan")),
        lambda: poisson_noise(values, 0.0, draw()),
        lambda: poisson_noise(values, 1e4, draw(), readout=-2.0),
    ):
        with pytest.raises(InputError):
            call()


def _arc(noise: Noise, sigma: float = 0.0, columns: int = 200) -> Measurement:
    """Smooth projections of a disc, with Gaussian noise of that size."""
    geometry = ProjectionGeometry(
        "parallel", np.arange(30) * 6.0, Detector("flat", (1, columns), (1.0, 1.0)), Grid.centred((100, 100, 1), 1.0)
    )
    place = torch.linspace(-1.2, 1.2, columns).expand(30, 1, columns)
    return Measurement(gaussian_noise(4 * (1 - place**2).clamp(min=0).sqrt(), sigma, draw()), geometry, noise)


def test_deviation_is_what_the_measurement_states():
    assert torch.equal(deviation_of(_arc(Noise("gaussian", 0.02))), torch.full((30, 1, 200), 0.02))
    counted = _arc(Noise("poisson", 1e5))
    torch.testing.assert_close(deviation_of(counted), (counted.values.exp() / 1e5).sqrt())


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_unknown_noise_is_estimated_from_second_differences(sigma):
    found = deviation_of(_arc(Noise(), sigma))
    assert found.unique().numel() == 1
    assert found[0, 0, 0].item() == pytest.approx(sigma, rel=0.05)


def test_noise_free_projections_have_a_deviation_of_40_db():
    scan = _arc(Noise("none"))
    assert deviation_of(scan)[0, 0, 0].item() == pytest.approx(0.01 * scan.values.square().mean().sqrt().item())


def test_noise_of_two_columns_cannot_be_estimated():
    with pytest.raises(InputError, match="three detector columns"):
        deviation_of(_arc(Noise(), columns=2))
