from __future__ import annotations

import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fitting.groups import ParameterGroup, adam, make_step, sgd


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_plain_descent_follows_rate_and_schedule():
    a, b = parameter(1.0), parameter(1.0)
    step = make_step(
        [
            ParameterGroup("a", [a], 0.1, optimiser=sgd()),
            ParameterGroup("b", [b], 0.1, schedule=lambda step, total: step / total, optimiser=sgd()),
        ]
    )
    step(3 * a.sum() + 3 * b.sum(), step=5, total=10)
    assert a.item() == pytest.approx(1 - 0.3) and b.item() == pytest.approx(1 - 0.15)


def test_adam_moves_by_its_rate_at_first():
    """Kingma & Ba 2015: the first step is -rate * sign(gradient)."""
    a = parameter(1.0, -2.0)
    make_step([ParameterGroup("a", [a], 0.01)])((a * torch.tensor([500.0, -1e-3])).sum(), 0, 1)
    torch.testing.assert_close(a.detach(), torch.tensor([0.99, -1.99]), rtol=0, atol=1e-5)


def test_weight_decay_is_decoupled():
    """Loshchilov & Hutter 2019: x <- x (1 - rate * decay) also where the gradient is zero."""
    a = parameter(2.0)
    make_step([ParameterGroup("a", [a], 0.1, optimiser=adam(weight_decay=0.5))])(0 * a.sum(), 0, 1)
    assert a.item() == pytest.approx(2.0 * (1 - 0.05))


def test_a_frozen_group_does_not_move_and_its_optimiser_rests():
    a, b = parameter(1.0), parameter(1.0)
    step = make_step([ParameterGroup("a", [a], 0.1), ParameterGroup("b", [b], 0.1, start_step=3, stop_step=5)])
    moved = []
    for k in range(8):
        before = b.item()
        step((a.square() + b.square()).sum(), k, 8)
        moved.append(b.item() != before)
    assert moved == [False, False, False, True, True, False, False, False]
    assert step.optimisers[1].state[b]["step"].item() == 2 and step.optimisers[0].state[a]["step"].item() == 8


def test_clipping_counts_active_groups_only():
    a, b = parameter(0.0), parameter(0.0)
    groups = [
        ParameterGroup("a", [a], 1.0, optimiser=sgd()),
        ParameterGroup("frozen", [b], 1.0, optimiser=sgd(), start_step=9),
    ]
    make_step(groups, clip_norm=2.0)(6 * a.sum() + 1000 * b.sum(), 0, 10)
    assert a.item() == pytest.approx(-2.0) and b.item() == 0


def test_clipping_keeps_the_direction_over_groups():
    a, b = parameter(0.0), parameter(0.0)
    groups = [ParameterGroup(n, [p], 1.0, optimiser=sgd()) for n, p in (("a", a), ("b", b))]
    make_step(groups, clip_norm=1.0)(3 * a.sum() + 4 * b.sum(), 0, 1)
    assert a.item() == pytest.approx(-0.6, abs=1e-5) and b.item() == pytest.approx(-0.8, abs=1e-5)


def test_gradients_do_not_accumulate_between_steps():
    a = parameter(0.0)
    step = make_step([ParameterGroup("a", [a], 1.0, optimiser=sgd())])
    for k in range(3):
        step(a.sum(), k, 3)
    assert a.item() == -3


def test_parameters_without_a_gradient_stay():
    network = nn.Linear(2, 1)
    unused = parameter(1.0)
    step = make_step([ParameterGroup("all", (*network.parameters(), unused), 0.1)], clip_norm=1.0)
    step(network(torch.ones(1, 2)).sum(), 0, 1)
    assert unused.item() == 1 and len(step.parameters) == 3


def test_mistakes_of_the_programmer():
    a = parameter(1.0)
    with pytest.raises(ValueError, match="empty"):
        ParameterGroup("nothing", [], 0.1)
    with pytest.raises(ValueError, match="distinct"):
        make_step([ParameterGroup("a", [a], 0.1), ParameterGroup("a", [parameter(2.0)], 0.1)])
    with pytest.raises(ValueError, match="two groups"):
        make_step([ParameterGroup("a", [a], 0.1), ParameterGroup("b", [a], 0.1)])


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_a_rate_that_goes_uphill_is_refused(rate):
    with pytest.raises(InputError, match="learning rate of 'a'"):
        ParameterGroup("a", [parameter(1.0)], rate)
    with pytest.raises(InputError, match="weight decay"):
        adam(weight_decay=-1.0)
