"""The C++ simulator against the one in plain torch; both against sorted crossings in tests/operators/test_siddon.py."""

from __future__ import annotations

import math

import pytest
import torch

from scanfield.kernels import library, siddon
from scanfield.kernels.backend import using

needs_kernels = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")


def rays(shape: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From all sides through and past a lattice, some from inside, none along a border of voxels."""
    draw = torch.Generator().manual_seed(0)
    size = torch.tensor(shape, dtype=torch.float64)
    target = (torch.rand(count, 3, generator=draw, dtype=torch.float64) * 1.4 - 0.2) * size - 0.5
    origin = (torch.rand(count, 3, generator=draw, dtype=torch.float64) - 0.5) * 40 + size / 2
    origin[: count // 8] = target[: count // 8] + 0.3
    origin[-count // 8 :, 1:] = target[-count // 8 :, 1:]  # along the first axis
    direction = target - origin
    return origin, direction / direction.norm(dim=1, keepdim=True) * 0.7


@needs_kernels
@pytest.mark.parametrize("forward_only", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 5, 6), (1, 8, 5), (6, 1, 1), (1, 1, 1)])
def test_equals_the_reference(shape, dtype, forward_only):
    origin, direction = rays(shape, 400)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(math.prod(shape), 1, generator=draw, dtype=torch.float64).to(dtype)
    with using("reference"):
        reference = siddon.integrate(x, origin, direction, shape, forward_only=forward_only)
    with using("cpu"):
        kernel = siddon.integrate(x, origin, direction, shape, forward_only=forward_only)
    assert reference.max() > 0.1
    torch.testing.assert_close(kernel, reference, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_a_uniform_box_weighs_the_chord():
    """Of a box of ones: the length of the ray between its faces, by the slab method."""
    shape = (5, 9, 4)
    origin, direction = rays(shape, 500)
    ends = torch.stack([(-0.5 - origin) / direction, (torch.tensor(shape) - 0.5 - origin) / direction])
    near, far = ends.amin(0).amax(1).clamp(min=0), ends.amax(0).amin(1)
    chord = (far - near).clamp(min=0)
    found = siddon.integrate(torch.ones(180, 1, dtype=torch.float64), origin, direction, shape, forward_only=True)
    along = direction == 0
    keep = ~along.any(dim=1)
    torch.testing.assert_close(found[keep, 0], chord[keep], atol=1e-12, rtol=1e-12)


@needs_kernels
def test_the_same_bits_whatever_the_number_of_threads(monkeypatch):
    shape = (9, 4, 11)
    origin, direction = rays(shape, 9000)
    x, found = torch.rand(math.prod(shape), 1), []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(siddon.integrate(x, origin, direction, shape, forward_only=True))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_no_rays_and_what_does_not_fit():
    origin, direction = rays((4, 3, 5), 16)
    assert siddon.integrate(torch.zeros(60, 1), origin[:0], direction[:0], (4, 3, 5), forward_only=True).shape == (0, 1)
    for values, o in (
        (torch.zeros(59, 1), origin),
        (torch.zeros(60, 1), origin.float()),
    ):
        with pytest.raises(ValueError):
            siddon.integrate(values, o, direction, (4, 3, 5), forward_only=True)
