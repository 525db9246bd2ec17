import pytest
import torch

from scanfield.errors import InputError
from scanfield.operators.fourier import MaskedFourier, centred_fft, centred_ifft


def noise(*shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(6, 5, 1), (4, 7, 3), (1, 1, 1)])
def test_the_formula(shape):
    image = noise(*shape)
    expected = image
    for axis, n in enumerate(shape):
        r = torch.arange(n, dtype=torch.float64) - n // 2
        matrix = torch.exp(-2j * torch.pi * r[:, None] * r / n) / n**0.5
        expected = torch.tensordot(matrix, expected, dims=([1], [axis])).movedim(0, axis)
    torch.testing.assert_close(centred_fft(image), expected)
    torch.testing.assert_close(centred_ifft(expected), image)


def test_only_the_given_axes():
    image = noise(3, 4, 5)
    torch.testing.assert_close(centred_fft(image, (-1,))[1, 2], centred_fft(image[1:2, 2:3])[0, 0])


def test_a_mask():
    mask = torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    operator = MaskedFourier(mask)
    image = noise(3, 6, 5, 1)
    measured = operator.apply(image)
    assert not measured[:, ~mask].any()
    torch.testing.assert_close(measured[:, mask], centred_fft(image)[:, mask])
    torch.testing.assert_close(operator.apply(operator.adjoint(measured)), measured)  # a projection


def test_refuses():
    with pytest.raises(InputError, match="keeps no sample"):
        MaskedFourier(torch.zeros(2, 2, 1, dtype=torch.bool))
    operator = MaskedFourier(torch.ones(2, 3, 1, dtype=torch.bool))
    for run in (operator.apply, operator.adjoint):
        with pytest.raises(InputError, match="do not fit a mask"):
            run(noise(3, 2, 1))
