"""Dropout: one mask a draw for all points, right in the mean, the same from the same generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import silu

from scanfield.errors import InputError
from scanfield.fields.networks.dropout import Dropout
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NETWORKS = {
    "relu": lambda: MLP([3, 16, 16, 2], generator=_generator()),
    "silu": lambda: MLP([3, 16, 16, 2], generator=_generator(), activation=silu),
    "sine": lambda: Siren([3, 16, 16, 2], omegas=[5, 5], generator=_generator()),
}


def _masks(shape, dropped, draws):
    """Random bytes below `dropped` are dropped."""
    words = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64).random_(-(2**63), None, generator=draws)
    return (words.view(torch.uint8)[: math.prod(shape)].reshape(shape) >= dropped) / (1 - dropped / 256)


def _by_hand(network, x, kind, kept):
    """The network with masks (times 1 / (1 - r)) on the inputs of its second and third layer."""
    h = x
    for k, layer in enumerate(network.linears):
        z = layer(h if k == 0 else h * kept[k - 1])
        h = z if k == 2 else (torch.sin(5 * z) if kind == "sine" else silu(z) if kind == "silu" else z.relu())
    return h


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_a_draw_it_is_the_network(kind):
    network, x = NETWORKS[kind](), torch.randn(7, 3, generator=_generator(1))
    dropout = Dropout(network, 0.4)
    assert torch.equal(dropout(x), network(x))
    dropout.scatter(_generator(2))
    assert not torch.equal(dropout(x), network(x))
    dropout.clear()
    assert torch.equal(dropout(x), network(x))


@pytest.mark.parametrize("kind", NETWORKS)
def test_in_training_every_point_and_unit_has_its_own_mask(kind):
    network, x = NETWORKS[kind](), torch.randn(7, 3, generator=_generator(1))
    dropout = Dropout(network, 0.4)
    dropout.scatter(_generator(2))
    seed = int(torch.randint(2**62, (), generator=_generator(2)))
    draws = _generator(seed)
    kept = [_masks((7, 16), 102, draws) for _ in range(2)]
    assert len(kept[0].unique(dim=0)) == 7
    torch.testing.assert_close(dropout(x), _by_hand(network, x, kind, kept))
    assert not torch.equal(dropout(x), dropout(x)), "every forward pass draws anew"


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_draw_drops_units_for_all_points_and_has_its_own_parameters(kind):
    network, x = NETWORKS[kind](), torch.randn(7, 3, generator=_generator(1))
    thinned = Dropout(network, 0.4).thinned(_generator(2))
    draws = _generator(2)
    kept = [(torch.rand(16, generator=draws) >= 0.4).float() / 0.6 for _ in range(2)]
    torch.testing.assert_close(thinned(x), _by_hand(network, x, kind, kept))
    with torch.no_grad():
        thinned.linears[0].weight.zero_()
    assert network.linears[0].weight.abs().max() > 0


def test_both_have_the_network_as_their_mean_where_it_is_linear():
    network, x = MLP([3, 64, 1], generator=_generator()), torch.randn(5, 3, generator=_generator(1))
    dropout, draws = Dropout(network, 0.3), _generator(3)
    with torch.no_grad():
        units = sum(dropout.thinned(draws)(x) for _ in range(1500)) / 1500
        dropout.scatter(_generator(4))
        points = sum(dropout(x) for _ in range(1500)) / 1500
        torch.testing.assert_close(units, network(x), atol=0.06, rtol=0.06)
        torch.testing.assert_close(points, network(x), atol=0.06, rtol=0.06)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.99])
def test_units_are_dropped_at_their_rate_and_scaled_to_a_mean_of_one(rate):
    dropout = Dropout(NETWORKS["relu"](), rate)
    dropout.scatter(_generator(3))
    masks = dropout._masks(torch.empty(1001, 333))
    assert (masks == 0).double().mean().item() == pytest.approx(rate, abs=0.005)
    assert masks.double().mean().item() == pytest.approx(1.0, abs=0.05)
    assert abs(torch.corrcoef(masks[:, :8].T.double()) - torch.eye(8)).max() < 0.2


def test_dropped_units_have_no_gradient():
    network = MLP([3, 16, 1], generator=_generator(), activation=silu)
    dropout = Dropout(network, 0.5)
    dropout.scatter(_generator(4))
    dropout(torch.randn(1, 3, generator=_generator(1))).sum().backward()
    seed = int(torch.randint(2**62, (), generator=_generator(4)))
    dropped = _masks((16,), 128, _generator(seed)) == 0
    assert dropped.any() and not dropped.all()
    gradient = network.linears[0].weight.grad
    assert (gradient[dropped] == 0).all() and (gradient[~dropped].abs().sum(dim=1) > 0).all()


def test_a_rate_of_zero_drops_nothing():
    network, x = NETWORKS["silu"](), torch.randn(7, 3, generator=_generator(1))
    dropout = Dropout(network, 0.0)
    dropout.scatter(_generator(2))
    assert torch.equal(dropout(x), network(x))
    assert torch.equal(dropout.thinned(_generator(2))(x), network(x))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_of_its_range_is_refused(rate):
    with pytest.raises(InputError, match="dropout rate"):
        Dropout(NETWORKS["relu"](), rate)
