import pytest
import torch

from scanfield.operators import nufft_matrix, nufft_plans
from scanfield.operators.nufft_matrix import operations, type1, type2

VOXELS = [(7,), (6, 5), (4, 3, 5)]


def noise(*shape, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def points(*shape, dtype=torch.float64):
    return (torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(2)) * 2 - 1) * torch.pi


def written_out(w, voxels):
    """(frames, samples, voxels)."""
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in voxels]
    r = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(voxels))
    return torch.exp(-1j * (w.double() @ r.T))


@pytest.mark.parametrize("largest", [2**25, 400, 1])
@pytest.mark.parametrize("voxels", VOXELS)
def test_the_written_out_sums_in_parts_of_any_size(voxels, largest, monkeypatch):
    monkeypatch.setattr(nufft_matrix, "LARGEST_PART", largest)
    w = points(3, 11, len(voxels))
    full = written_out(w, voxels)
    image, values = noise(3, 2, *voxels), noise(3, 2, 11)
    torch.testing.assert_close(type2(image, w), image.flatten(2) @ full.mT, atol=1e-12, rtol=1e-12)
    back = (values @ full.conj()).reshape(3, 2, *voxels)
    torch.testing.assert_close(type1(values, w, voxels), back, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_equals_finufft(dtype):
    pytest.importorskip("finufft")
    w = points(2, 60, 2, dtype=dtype.to_real())
    image, values = noise(2, 3, 24, 20, dtype=dtype), noise(2, 3, 60, dtype=dtype)
    ours, back = type2(image, w), type1(values, w, (24, 20))
    theirs = torch.stack([nufft_plans.type2(x, f) for x, f in zip(image, w, strict=True)])
    theirs_back = torch.stack([nufft_plans.type1(x, f, (24, 20)) for x, f in zip(values, w, strict=True)])
    bound = 1e-4 if dtype == torch.complex64 else 1e-12
    assert ours.dtype == back.dtype == dtype
    assert (ours - theirs).norm() / theirs.norm() < bound and (back - theirs_back).norm() / back.norm() < bound


def test_single_precision_is_as_exact_as_it_can_be():
    """Phases of hundreds of radians do not lose digits."""
    w, image = points(1, 50, 2, dtype=torch.float32), noise(1, 1, 256, 256, dtype=torch.complex64)
    expected = image.flatten(2).to(torch.complex128) @ written_out(w, (256, 256)).mT
    assert (type2(image, w) - expected).norm() / expected.norm() < 1e-6


def test_the_user_s_precision_is_given_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        type2(noise(1, 1, 4), points(1, 3, 1))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_operations_count_complex_products():
    assert operations(2, 3, 100, (8, 4)) == 2 * 3 * 100 * 32 * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    w, image = points(3, 500, 2, dtype=torch.float32), noise(3, 4, 64, 48, dtype=torch.complex64)
    values = noise(3, 4, 500, dtype=torch.complex64)
    ahead, back = type2(image.cuda(), w.cuda()).cpu(), type1(values.cuda(), w.cuda(), (64, 48)).cpu()
    assert (ahead - type2(image, w)).norm() / ahead.norm() < 1e-5
    assert (back - type1(values, w, (64, 48))).norm() / back.norm() < 1e-5
