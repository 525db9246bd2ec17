from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.fields.heads import LinearHead, SigmoidHead, SoftplusHead, SquareplusHead

Z = torch.linspace(-30, 30, 241, dtype=torch.float64)


@pytest.mark.parametrize(
    ("head", "formula"),
    [
        (LinearHead(0.02, -1.0), lambda z: 0.02 * z - 1.0),
        (SigmoidHead(0.03), lambda z: 0.03 / (1 + np.exp(-z))),
        (SoftplusHead(0.03), lambda z: 0.03 * np.log1p(np.exp(z))),
        (SquareplusHead(0.03), lambda z: 0.03 * (z + np.sqrt(z**2 + 4)) / 2),
    ],
    ids=lambda part: type(part).__name__,
)
def test_values_in_physical_units(head, formula):
    np.testing.assert_allclose(head(Z).numpy(), formula(Z.numpy()), rtol=1e-6, atol=1e-9)
    z = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)  # 0 among them
    assert torch.autograd.gradcheck(head, z) and torch.autograd.gradgradcheck(head, z)


@pytest.mark.parametrize(
    "head", [SigmoidHead(2.0), SoftplusHead(2.0), SquareplusHead(2.0)], ids=lambda h: type(h).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_and_finite_for_extreme_outputs(head, dtype):
    z = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype, requires_grad=True)
    value = head(z)
    value.sum().backward()
    assert torch.isfinite(value).all() and (value >= 0).all() and torch.isfinite(z.grad).all()


def test_squareplus_stays_positive_where_it_is_small():
    """(z + sqrt(z^2 + 4)) / 2 = 2 / (sqrt(z^2 + 4) - z): about 1 / |z| for very negative z, not 0."""
    z = torch.tensor([-1e3, -1e4, -1e5])
    torch.testing.assert_close(SquareplusHead()(z), 1 / z.abs(), rtol=1e-3, atol=0)
