"""Shape losses on distances with known gradients."""

import math

import pytest
import torch

from scanfield.losses.shape import eikonal, normal_alignment, off_surface, on_surface, wrong_side


def test_a_true_distance_costs_nothing() -> None:
    normal = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float(eikonal(normal)) == pytest.approx(0.0, abs=1e-6)
    assert float(normal_alignment(normal, normal)) == pytest.approx(0.0, abs=1e-6)
    assert float(on_surface(torch.zeros(5), 10.0)) == 0.0
    assert float(off_surface(torch.full((5,), 50.0), 10.0)) < 1e-30


def test_wrong_distances_cost_what_the_equations_say() -> None:
    x_axis, y_axis = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 2, 0]])
    assert float(eikonal(torch.cat([3 * x_axis, 0.25 * y_axis]))) == pytest.approx((2 + 0.5) / 2)
    assert float(normal_alignment(x_axis, y_axis)) == pytest.approx(1.0)
    assert float(normal_alignment(x_axis, -x_axis)) == pytest.approx(2.0)
    assert float(on_surface(torch.tensor([-3.0, 1.0]), 4.0)) == pytest.approx(0.5)
    assert float(off_surface(torch.tensor([-0.02]), 2.0)) == pytest.approx(math.exp(-1))
    assert float(off_surface(torch.tensor([0.5]), 1.0, sharpness=2.0)) == pytest.approx(math.exp(-1))


def test_only_the_wrong_side_costs() -> None:
    value, side = torch.tensor([2.0, -2.0, 3.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, 0.0])
    assert float(wrong_side(value, side, 2.0)) == pytest.approx((0 + 2 + 3 + 0) / 4 / 2)


def test_gradients_are_finite_at_zero() -> None:
    gradient = torch.zeros(4, 3, requires_grad=True)
    (eikonal(gradient) + normal_alignment(gradient, torch.ones(4, 3))).backward()
    assert torch.isfinite(gradient.grad).all()
