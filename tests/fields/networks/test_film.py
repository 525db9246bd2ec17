"""Networks that a condition scales and shifts."""

from __future__ import annotations

import pytest
import torch

from scanfield.fields.networks.film import Film, FilmMlp
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def networks():
    return [
        MLP([3, 8, 7, 2], generator=draws()),
        MLP([3, 8, 7, 2], generator=draws(), activation=torch.tanh),
        Siren([3, 8, 7, 2], omegas=[5.0, 5.0], generator=draws()),
    ]


@pytest.mark.parametrize("network", networks(), ids=["relu", "tanh", "sine"])
def test_a_new_network_ignores_its_condition(network):
    film = FilmMlp(network, 4)
    u = torch.randn(5, 3, generator=draws(1))
    for z in (torch.zeros(5, 4), torch.randn(5, 4, generator=draws(2))):
        torch.testing.assert_close(film(torch.cat([u, z], dim=1)), network(u))


def test_scales_and_shifts_are_linear_in_the_condition():
    film = Film(2, 3)
    with torch.no_grad():
        film.linear.weight.copy_(torch.tensor([[1, 0], [0, 2], [0, 0], [0, 1], [3, 0], [0, 0]]).float())
    found = film(torch.tensor([10.0, 20.0, 30.0]), torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(found, torch.tensor([10 * 1.1 + 0.2, 20 * 1.4 + 0.3, 30.0]))


def trained() -> FilmMlp:
    """Some network with conditions that matter."""
    film = FilmMlp(networks()[2], 4)
    with torch.no_grad():
        for part in film.films:
            part.linear.weight.normal_(generator=draws(3))
    return film.double()


def test_a_code_for_many_points_is_the_code_at_each_of_them():
    film = trained()
    u, z = (torch.randn(*shape, generator=draws(4)).double() for shape in ((3, 5, 3), (3, 4)))
    together = film.modulated(u, z[:, None])
    each = film(torch.cat([u, z[:, None].expand(3, 5, 4)], dim=-1))
    assert together.shape == (3, 5, 2)
    torch.testing.assert_close(together, each)
    assert not torch.allclose(each[0], film(torch.cat([u[0], z[1].expand(5, 4)], dim=-1)))


def test_gradients_reach_coordinates_and_condition():
    film = trained()
    u, z = (torch.randn(2, k, generator=draws(5)).double().requires_grad_() for k in (3, 4))
    assert torch.autograd.gradcheck(film.modulated, (u, z))
    assert torch.autograd.gradgradcheck(film.modulated, (u, z))
