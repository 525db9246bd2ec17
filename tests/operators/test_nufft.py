import builtins

import pytest
import torch

import scanfield.operators.nufft
from scanfield.errors import MissingExtra
from scanfield.operators import nufft_plans
from scanfield.operators.fourier import centred_fft
from scanfield.operators.nufft import nufft, nufft_adjoint

pytest.importorskip("finufft")
SHAPES = [(6, 5, 1), (7, 1, 1), (4, 3, 5), (1, 1, 6), (1, 1, 1)]


def noise(*shape, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def points(count, dtype=torch.float64):
    return (torch.rand(count, 3, dtype=dtype, generator=torch.Generator().manual_seed(2)) * 2 - 1) * torch.pi


def matrix(frequency, shape):
    """The transform written out: (samples, voxels)."""
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
    r = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return torch.exp(-1j * (frequency.double() @ r.T))


@pytest.mark.parametrize("shape", SHAPES)
def test_both_types_are_the_written_out_sums(shape):
    w, image, values = points(9), noise(2, 3, *shape), noise(2, 3, 9)
    full = matrix(w, shape)
    torch.testing.assert_close(nufft(image, w), image.flatten(2) @ full.T, atol=1e-10, rtol=1e-10)
    back = (values @ full.conj()).reshape(2, 3, *shape)
    torch.testing.assert_close(nufft_adjoint(values, w, shape), back, atol=1e-10, rtol=1e-10)


def test_single_precision():
    shape = (16, 12, 1)
    w, image = points(40, torch.float32), noise(2, *shape, dtype=torch.complex64)
    expected = (image.flatten(1).to(torch.complex128) @ matrix(w, shape).T).to(torch.complex64)
    error = (nufft(image, w) - expected).norm() / expected.norm()
    assert nufft(image, w).dtype == torch.complex64 and error < 5e-5
    values = noise(40, dtype=torch.complex64)
    forth, back = (nufft(image[0], w) * values.conj()).sum(), (image[0] * nufft_adjoint(values, w, shape).conj()).sum()
    assert (forth - back).abs() < 1e-5 * image.norm() * values.norm() * 192**0.5  # adjoint beyond its accuracy


def test_on_the_lattice_it_is_the_fft():
    shape = (6, 5, 1)
    axes = [2 * torch.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    w = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    image = noise(*shape)
    torch.testing.assert_close(nufft(image, w).reshape(shape), centred_fft(image) * 30**0.5, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 1, 3)])
def test_first_and_second_derivatives_in_values_and_frequencies(shape):
    w = points(2).requires_grad_()
    image, values = noise(2, *shape).requires_grad_(), noise(2, 2).requires_grad_()
    for run, given in [(nufft, (image, w)), (lambda y, k: nufft_adjoint(y, k, shape), (values, w))]:
        assert torch.autograd.gradcheck(run, given)
        assert torch.autograd.gradgradcheck(lambda a, b, run=run: run(a, b).abs().square(), given)


def test_gradients_only_where_they_are_asked_for():
    w, image = points(5), noise(4, 3, 1).requires_grad_()
    nufft(image, w).abs().square().sum().backward()
    full = matrix(w, (4, 3, 1))
    expected = 2 * (full.conj().T @ (full @ image.detach().flatten())).reshape(4, 3, 1)
    torch.testing.assert_close(image.grad, expected, atol=1e-9, rtol=1e-9)


def test_empty_batches_and_samples():
    assert nufft(noise(0, 4, 3, 1), points(5)).shape == (0, 5)
    assert nufft(noise(2, 4, 3, 1), points(0)).shape == (2, 0)
    assert not nufft_adjoint(noise(2, 0), points(0), (4, 3, 1)).any()


def test_conjugate_and_strided_input():
    image, w = noise(3, 4, 2), points(6)
    torch.testing.assert_close(nufft(image.conj().permute(1, 0, 2), w), nufft(image.conj().permute(1, 0, 2).clone(), w))


def test_one_precision():
    with pytest.raises(ValueError, match="one precision"):
        nufft(noise(4, 3, 1), points(5, torch.float32))


def test_every_frame_has_its_own_trajectory():
    w = points(3 * 7).reshape(3, 7, 3)
    image, values = noise(3, 2, 6, 5, 1), noise(3, 2, 7)
    ahead, back = nufft(image, w), nufft_adjoint(values, w, (6, 5, 1))
    for f in range(3):
        torch.testing.assert_close(ahead[f], nufft(image[f], w[f]))
        torch.testing.assert_close(back[f], nufft_adjoint(values[f], w[f], (6, 5, 1)))
    assert nufft(image[:, 0], w).shape == (3, 7)
    with pytest.raises(ValueError, match="do not give a trajectory"):
        nufft(image[:2], w)


def test_derivatives_of_frames():
    w = points(4).reshape(2, 2, 3).requires_grad_()
    image, values = noise(2, 1, 3, 2, 1).requires_grad_(), noise(2, 1, 2).requires_grad_()
    for run, given in [(nufft, (image, w)), (lambda y, k: nufft_adjoint(y, k, (3, 2, 1)), (values, w))]:
        assert torch.autograd.gradcheck(run, given)
        assert torch.autograd.gradgradcheck(lambda a, b, run=run: run(a, b).abs().square(), given)


@pytest.fixture
def without_finufft(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "finufft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(nufft_plans, "PLANS", nufft_plans.Plans(0))


def test_small_transforms_do_without_finufft(without_finufft):
    w, image = points(5).requires_grad_(), noise(2, 4, 3, 1).requires_grad_()
    expected = image.flatten(1) @ matrix(w, (4, 3, 1)).T
    torch.testing.assert_close(nufft(image, w), expected)
    assert torch.autograd.gradcheck(nufft, (image, w))


def test_large_transforms_ask_for_it(without_finufft, monkeypatch):
    monkeypatch.setattr(scanfield.operators.nufft, "AFFORDABLE", 8 * 5 * 12 - 1)
    with pytest.raises(MissingExtra, match="scanfield\\[mri\\]"):
        nufft(noise(4, 3, 1), points(5))
    assert nufft(noise(4, 3, 1), points(4)).shape == (4,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_values_and_gradients():
    image, w = noise(3, 4, 32, 24, 1, dtype=torch.complex64), points(600, torch.float32).reshape(3, 200, 3)

    def found(image, w):
        image, w = image.detach().requires_grad_(), w.detach().requires_grad_()
        y = nufft(image, w)
        assert y.device == image.device
        first = torch.autograd.grad(y.abs().square().sum(), (image, w), create_graph=True)
        second = torch.autograd.grad(sum(g.abs().square().sum() for g in first), (image, w))
        return [t.detach().cpu() for t in (y, *first, *second)]

    for ours, theirs in zip(found(image.cuda(), w.cuda()), found(image, w), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 3e-4
