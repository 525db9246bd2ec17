"""A spectral field is its attenuation at the reference energy, and at every other one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fields.field import Field
from scanfield.fields.spectral import SpectralField
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

ENERGIES, CURVE = np.array([40.0, 60.0, 100.0]), np.array([2.0, 1.0, 0.5])


def field(reference_kev: float = 60.0) -> SpectralField:
    domain = Domain.of_grid(Grid.centred((8, 8, 1), 2.0))
    network = nn.Linear(2, 3)
    return SpectralField(Field(domain, nn.Identity(), network, nn.Identity()), ENERGIES, CURVE, reference_kev)


def test_every_energy_is_the_network_times_the_curve() -> None:
    spectral, x = field(), torch.rand(5, 3)
    values = spectral.every(x)
    assert torch.allclose(values, spectral.normalised(x) * torch.tensor(CURVE).float())
    assert torch.allclose(spectral(x)[:, 0], values[:, 1])
    assert torch.allclose(spectral.at(80.0)(x)[:, 0], (values[:, 1] + values[:, 2]) / 2, atol=1e-6)


def test_its_weights_are_those_of_the_network_alone() -> None:
    assert {name.split(".")[1] for name in field().state_dict()} <= {"network", "world_to_unit"}


def test_energies_outside_are_refused() -> None:
    with pytest.raises(InputError, match="from 40 to 100 keV, 20 keV is not among them"):
        field(20.0)
    with pytest.raises(InputError, match="120 keV"):
        field().at(120.0)
