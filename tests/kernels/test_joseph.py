"""The C++ projector against the one in plain torch; the sum itself is tested in tests/operators/test_voxel.py."""

from __future__ import annotations

import math

import pytest
import torch

from scanfield.kernels import joseph, library
from scanfield.kernels.backend import using

needs_kernels = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")
SHAPES = [(7, 5, 6), (1, 8, 5), (6, 1, 1), (1, 1, 1), (3, 12, 2)]


def rays(shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """From all sides through and past a lattice; some start inside, some run along an axis or through voxel centres."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.tensor(shape, dtype=torch.float64)
    target = (torch.rand(count, 3, generator=draw, dtype=torch.float64) * 1.4 - 0.2) * size - 0.5
    origin = (torch.rand(count, 3, generator=draw, dtype=torch.float64) - 0.5) * 40 + size / 2
    origin[: count // 8] = target[: count // 8] + 0.3
    origin[-count // 8 :, 1:] = target[-count // 8 :, 1:]
    target[-count // 16 :, 1:] = origin[-count // 16 :, 1:] = target[-count // 16 :, 1:].round()
    direction = target - origin
    return origin, direction / direction.norm(dim=1, keepdim=True) * 0.7


def both(call):
    """The reference's answer and the kernel's."""
    with using("reference"):
        first = call()
    with using("cpu"):
        return first, call()


@needs_kernels
@pytest.mark.parametrize("forward_only", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape, dtype, forward_only):
    origin, direction = rays(shape, 400)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(math.prod(shape), 1, generator=draw, dtype=torch.float64).to(dtype)
    y = torch.rand(400, 1, generator=draw, dtype=torch.float64).to(dtype)
    for reference, kernel in (
        both(lambda: joseph.project(x, origin, direction, shape, forward_only=forward_only)),
        both(lambda: joseph.backproject(y, origin, direction, shape, forward_only=forward_only)),
    ):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(kernel, reference, rtol=1e-5, atol=1e-5)  # the reference's weights are float32


@needs_kernels
def test_is_an_exact_transpose_and_each_the_others_derivative():
    shape = (6, 5, 4)
    origin, direction = rays(shape, 40)
    x = torch.rand(120, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    y = torch.rand(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)

    def project(v):
        return joseph.project(v, origin, direction, shape, forward_only=True)

    def backproject(v):
        return joseph.backproject(v, origin, direction, shape, forward_only=True)

    with using("cpu"):
        assert torch.isclose((project(x) * y).sum(), (x * backproject(y)).sum(), rtol=1e-13)
        assert torch.autograd.gradcheck(project, x) and torch.autograd.gradcheck(backproject, y)
        assert torch.autograd.gradgradcheck(lambda v: project(v) ** 2, x)
        assert torch.autograd.gradgradcheck(lambda v: backproject(v) ** 2, y)


@needs_kernels
def test_the_same_bits_whatever_the_number_of_threads(monkeypatch):
    shape = (9, 4, 11)
    origin, direction = rays(shape, 9000)
    x, y = torch.rand(math.prod(shape), 1), torch.rand(9000, 1)
    found = []
    for threads in (1, 2, 5, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(
            (
                joseph.project(x, origin, direction, shape, forward_only=True),
                joseph.backproject(y, origin, direction, shape, forward_only=True),
            )
        )
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(pair, found[0], strict=True))


@needs_kernels
@pytest.mark.parametrize("name", library.built())
def test_every_instruction_set_gives_the_same_numbers(name, monkeypatch):
    order = ["base", "avx2", "avx512"]
    if order.index(name) > order.index(library.chosen() or "base"):
        pytest.skip("this processor lacks it")
    shape = (6, 7, 5)
    origin, direction = rays(shape, 300)
    y = torch.rand(300, 1, generator=torch.Generator().manual_seed(4))
    usual = joseph.backproject(y, origin, direction, shape, forward_only=False)
    lib = library.load(name)
    monkeypatch.setattr(library, "load", lambda: lib)
    joseph._function.cache_clear()
    try:
        again = joseph.backproject(y, origin, direction, shape, forward_only=False)
    finally:
        joseph._function.cache_clear()
    torch.testing.assert_close(again, usual)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_no_rays_and_strided_values(backend):
    shape = (4, 3, 5)
    origin, direction = rays(shape, 16)
    wide = torch.rand(60, 2)
    with using(backend):
        assert joseph.project(wide[:, :1], origin[:0], direction[:0], shape, forward_only=True).shape == (0, 1)
        none = joseph.backproject(wide[:0, :1], origin[:0], direction[:0], shape, forward_only=True)
        assert none.shape == (60, 1) and not none.any()
        strided = joseph.project(wide[:, 1:], origin, direction, shape, forward_only=True)
        torch.testing.assert_close(
            strided, joseph.project(wide[:, 1:].clone(), origin, direction, shape, forward_only=True)
        )


def test_several_lattices_and_two_axes_are_the_references():
    origin, direction = rays((6, 5, 1), 30)
    x = torch.rand(30, 3, dtype=torch.float64)
    together = joseph.project(x, origin[:, :2], direction[:, :2], (6, 5), forward_only=True)
    single = [joseph.project(v[:, None], origin[:, :2], direction[:, :2], (6, 5), forward_only=True) for v in x.T]
    torch.testing.assert_close(together, torch.cat(single, dim=1))


@needs_kernels
def test_the_operators_are_registered_as_torch_wants_them():
    shape = (3, 4, 2)
    origin, direction = rays(shape, 16)
    x, y = torch.rand(24, requires_grad=True), torch.rand(16, requires_grad=True)
    torch.library.opcheck(joseph.joseph_cpu, (x, origin, direction, list(shape), True))
    torch.library.opcheck(joseph.joseph_cpu_transposed, (y, origin, direction, list(shape), True))


def test_a_backend_that_is_for_other_devices_leaves_the_reference():
    """A run on a GPU with `--backend triton` still has rivals on the CPU."""
    origin, direction = rays((4, 3, 5), 16)
    x = torch.rand(60, 1)
    with using("triton"):
        found = joseph.project(x, origin, direction, (4, 3, 5), forward_only=True)
    with using("reference"):
        assert torch.equal(found, joseph.project(x, origin, direction, (4, 3, 5), forward_only=True))


def test_what_does_not_fit_is_refused():
    origin, direction = rays((4, 3, 5), 16)
    for values, o, shape in (
        (torch.zeros(59, 1), origin, (4, 3, 5)),
        (torch.zeros(60, 1), origin.float(), (4, 3, 5)),
        (torch.zeros(60, 1), origin, (60,)),
    ):
        with pytest.raises(ValueError):
            joseph.project(values, o, direction, shape, forward_only=True)
