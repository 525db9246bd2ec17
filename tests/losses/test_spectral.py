"""Smoothness over energies: its value, where it counts, and its gradient."""

from __future__ import annotations

import pytest
import torch

from scanfield.losses.spectral import energy_smoothness


def test_it_is_the_mean_variation_where_it_counts() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [9.0, 0.0, 9.0], [1.0, 1.0, 1.0]])
    where = torch.tensor([True, False, True])
    assert energy_smoothness(values, where).item() == pytest.approx((2 + 1 + 0) / 2)
    assert energy_smoothness(values, torch.ones(3, dtype=torch.bool)).item() == pytest.approx((3 + 18 + 0) / 3)


def test_it_does_not_depend_on_the_number_of_energies() -> None:
    few, many = (torch.linspace(1, 0, n).expand(4, n) for n in (5, 50))
    where = torch.ones(4, dtype=torch.bool)
    assert energy_smoothness(few, where).item() == pytest.approx(energy_smoothness(many, where).item())


def test_nothing_counts_without_points_or_energies() -> None:
    values = torch.rand(4, 3, requires_grad=True)
    nowhere = energy_smoothness(values, torch.zeros(4, dtype=torch.bool))
    assert nowhere.item() == 0
    (slope,) = torch.autograd.grad(nowhere, values)
    assert not slope.any()
    assert energy_smoothness(values[:, :1], torch.ones(4, dtype=torch.bool)).item() == 0


def test_the_gradient_leaves_metal_alone() -> None:
    values = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    where = torch.tensor([True, True, False, True, False, True])
    assert torch.autograd.gradcheck(lambda v: energy_smoothness(v, where), values)
    (slope,) = torch.autograd.grad(energy_smoothness(values, where), values)
    assert not slope[~where].any()
    assert slope[where].any()
