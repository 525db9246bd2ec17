from __future__ import annotations

import math

import pytest
import torch

from scanfield.fields.encodings.frequency import Frequency, GaussianFourier, Identity

FACTORS = {"2pi": 2 * math.pi, "pi": math.pi, "1": 1.0}
U = torch.tensor([[0.25, -0.7], [0.0, 1.0]], dtype=torch.float64)


def test_identity():
    encoding = Identity(2)
    assert encoding.out_dims == 2 and encoding(U) is U


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("include_input", [True, False])
def test_frequency_by_hand(factor, include_input):
    encoding = Frequency(2, 3, factor=factor, include_input=include_input)
    out = encoding(U)
    assert out.shape == (2, encoding.out_dims) == (2, 12 + 2 * include_input)
    for n in range(2):
        waves = [FACTORS[factor] * 2**k * float(U[n, d]) for d in range(2) for k in range(3)]
        expected = [*(U[n].tolist() if include_input else []), *map(math.sin, waves), *map(math.cos, waves)]
        torch.testing.assert_close(out[n], torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_default_factor_is_that_of_the_paper():
    """Mildenhall et al. 2020, eq. 4: sin(2^0 pi p)."""
    out = Frequency(1, 1, include_input=False)(torch.tensor([[0.5]]))
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_gaussian_frequencies_have_the_stated_deviation_and_are_saved():
    encoding = GaussianFourier(3, 4000, 7.0, generator=torch.Generator().manual_seed(0))
    assert encoding.frequencies.std().item() == pytest.approx(7.0, rel=0.02)
    assert "frequencies" in encoding.state_dict()
    other = GaussianFourier(3, 4000, 7.0, generator=torch.Generator().manual_seed(1))
    other.load_state_dict(encoding.state_dict())
    u = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other(u), encoding(u), atol=0, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_gaussian_by_hand(factor):
    encoding = GaussianFourier(2, 5, 1.0, generator=torch.Generator().manual_seed(0), factor=factor)
    phase = FACTORS[factor] * U @ encoding.frequencies.double().T
    expected = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
    torch.testing.assert_close(encoding(U), expected, atol=1e-12, rtol=0)
    assert encoding.out_dims == 10


def test_gaussian_kernel_width():
    """<gamma(u), gamma(v)> / m -> exp(-(a sigma |u - v|)^2 / 2) (Tancik et al. 2020)."""
    encoding = GaussianFourier(2, 40000, 0.8, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([[0.1, 0.2], [0.25, 0.1]])
    features = encoding(u)
    kernel = (features[0] @ features[1]).item() / 40000
    assert kernel == pytest.approx(math.exp(-((2 * math.pi * 0.8) ** 2) * 0.0325 / 2), abs=0.01)


@pytest.mark.parametrize(
    "encoding",
    [Frequency(2, 3), GaussianFourier(2, 5, 1.0, generator=torch.Generator())],
    ids=lambda e: type(e).__name__,
)
def test_batches_and_derivatives(encoding):
    assert encoding(U[None].expand(4, 2, 2)).shape == (4, 2, encoding.out_dims)
    assert encoding(U[:0]).shape == (0, encoding.out_dims)
    u = U.clone().requires_grad_()
    assert torch.autograd.gradcheck(encoding, u)
    assert torch.autograd.gradgradcheck(encoding, u)
