"""The polychromatic reduction: limits, stability, gradients, and the correction for water."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.spectra import Spectrum, compton
from scanfield.operators.rays import LineIntegral
from scanfield.operators.spectral import SpectralLineIntegral, log_shares, polychromatic, water_equivalent
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry

SPECTRUM = Spectrum(np.array([30.0, 50.0, 70.0, 100.0]), np.array([1.0, 3.0, 3.0, 1.0]))


def test_one_energy_is_the_line_integral_itself() -> None:
    integrals = torch.rand(5, 1)
    assert torch.allclose(polychromatic(integrals, torch.zeros(1)), integrals[:, 0])


def test_equal_energies_do_not_harden_and_different_ones_do() -> None:
    share = log_shares(SPECTRUM)
    assert polychromatic(torch.full((4,), 2.5), share) == pytest.approx(2.5)
    mean = torch.from_numpy(SPECTRUM.shares.copy()).float()
    a = torch.tensor([4.0, 2.0, 1.5, 1.0])
    once, twice = float(polychromatic(a, share)), float(polychromatic(2 * a, share))
    assert once < float(mean @ a)  # Jensen
    assert twice < 2 * once


def test_it_neither_overflows_nor_underflows() -> None:
    a = torch.tensor([[900.0, 800.0, 700.0, 600.0], [-400.0, 0.0, 0.0, 0.0]], requires_grad=True)
    p = polychromatic(a, log_shares(SPECTRUM))
    assert p[0].item() == pytest.approx(600 - np.log(SPECTRUM.shares[3]), rel=1e-6)
    (slope,) = torch.autograd.grad(p.sum(), a)
    assert slope[0].tolist() == pytest.approx([0, 0, 0, 1])
    assert slope.sum(dim=-1).tolist() == pytest.approx([1, 1])


def test_energies_without_photons_do_not_count() -> None:
    share = log_shares(Spectrum(np.array([30.0, 70.0]), np.array([0.0, 1.0])))
    a = torch.tensor([0.0, 5.0], requires_grad=True)
    p = polychromatic(a, share)
    (slope,) = torch.autograd.grad(p, a)
    assert p.item() == pytest.approx(5)
    assert slope.tolist() == [0, 1]


def test_first_and_second_derivatives() -> None:
    a = (3 * torch.rand(3, 4, dtype=torch.float64)).requires_grad_()
    share = log_shares(SPECTRUM, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: polychromatic(v, share), a)
    assert torch.autograd.gradgradcheck(lambda v: polychromatic(v, share), a)


def test_the_operator_integrates_every_channel_first() -> None:
    grid = Grid.centred((16, 16, 1), 2.0)
    geometry = ProjectionGeometry("parallel", np.array([0.0, 40.0]), Detector("flat", (1, 5), (2.0, 4.0)), grid)
    rays = LineIntegral(geometry, Domain.of_grid(grid), 32)
    operator = SpectralLineIntegral(rays, log_shares(SPECTRUM))
    index = torch.arange(geometry.count)
    samples = operator.samples(index)
    mu = torch.tensor([0.05, 0.03, 0.02, 0.015])
    assert samples.weight is not None
    length = samples.weight.sum(dim=-1)
    values = mu.expand(*samples.x.shape[:-1], 4)
    expected = -torch.log((torch.from_numpy(SPECTRUM.shares.copy()) * torch.exp(-length[:, None] * mu)).sum(-1))
    assert operator.shape == geometry.shape
    assert torch.allclose(operator.reduce(values, samples), expected.float(), atol=1e-5)


def test_the_correction_makes_water_monochromatic() -> None:
    water = 0.019 * compton(SPECTRUM.energies_kev)
    depth = torch.tensor([0.0, 1.0, 50.0, 400.0], dtype=torch.float64)
    p = polychromatic(depth[:, None] * torch.from_numpy(water), log_shares(SPECTRUM, dtype=torch.float64))
    found = water_equivalent(p, SPECTRUM, water, 0.019)
    assert found.tolist() == pytest.approx((0.019 * depth).tolist(), abs=2e-4)
    noise = water_equivalent(torch.tensor([-0.01, 0.01]), SPECTRUM, water, 0.019)
    assert noise[0].item() == pytest.approx(-noise[1].item(), rel=0.02)
