import builtins

import numpy as np
import pytest
import torch

from scanfield.errors import MissingExtra
from scanfield.operators import nufft_plans
from scanfield.operators.nufft_plans import Plans, type1, type2

pytest.importorskip("finufft")


def noise(*shape, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def points(count, dims, dtype=torch.float64):
    return (torch.rand(count, dims, dtype=dtype, generator=torch.Generator().manual_seed(2)) * 2 - 1) * torch.pi


@pytest.fixture
def made(monkeypatch):
    """The plans made during a test, from an empty cache."""
    monkeypatch.setattr(nufft_plans, "PLANS", Plans(2**24))
    real, count = nufft_plans._plan, []
    monkeypatch.setattr(nufft_plans, "_plan", lambda *args: count.append(args) or real(*args))
    return count


def test_a_trajectory_is_planned_once(made):
    w, image = points(30, 2), noise(3, 8, 6)
    first = type2(image, w)
    assert torch.equal(type2(image, w.clone()), first) and len(made) == 1
    type1(first, w, (8, 6))
    type1(2 * first, w, (8, 6))
    assert len(made) == 2


@pytest.mark.parametrize("change", ["frequency", "voxels", "batch", "precision"])
def test_another_transform_is_another_plan(made, change):
    w, image = points(30, 2), noise(3, 8, 6)
    type2(image, w)
    if change == "frequency":
        w[4, 1] += 1e-9  # in place: the same tensor is not the same trajectory
    elif change == "voxels":
        image = image.reshape(3, 6, 8)
    elif change == "batch":
        image = image[:2]
    else:
        w, image = w.float(), image.to(torch.complex64)
    found = type2(image, w)
    assert len(made) == 2
    r = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in image.shape[1:])).double()
    expected = image.flatten(1).to(torch.complex128) @ torch.exp(-1j * (w.double() @ r.T)).T
    assert (found - expected).norm() / expected.norm() < (1e-4 if change == "precision" else 1e-12)


def test_the_least_recently_used_plan_makes_place():
    plans = Plans(100)
    for name in "abc":
        plans.keep(name, name.upper(), 40)
    assert plans.take("a") is None and plans.held_bytes == 80
    assert plans.take("b") == "B" and plans.held_bytes == 40
    assert plans.take("b") is None
    plans.keep("b", "B", 40)
    plans.keep("d", "D", 40)
    assert plans.take("c") is None and plans.take("b") == "B"
    plans.keep("huge", "H", 101)
    assert plans.held_bytes == 0
    plans.keep("e", "E", 40)
    plans.keep("e", "another E", 50)  # two threads made one each
    assert plans.held_bytes == 50 and plans.take("e") == "another E" and plans.held_bytes == 0


def test_memory_stays_bounded(made, monkeypatch):
    monkeypatch.setattr(nufft_plans.PLANS, "limit", 5000)
    for count in range(10, 20):
        type2(noise(1, 8, 6), points(count, 2))
    assert 0 < nufft_plans.PLANS.held_bytes <= 5000 and len(made) == 10


def test_many_threads_give_the_same_bits(made):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        values, w = noise(4, 4000, dtype=torch.complex64), points(4000, 2, torch.float32)
        found = [type1(values, w, (32, 32)) for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found[1:])
    assert type1(values, w, (32, 32)).sub(found[0]).norm() / found[0].norm() < 5e-5


def test_a_plan_in_use_is_not_shared(made):
    """Two threads that transform along one trajectory at once do not take each other's plan."""
    w, image = points(30, 2), noise(3, 8, 6)
    type2(image, w)
    (key,) = nufft_plans.PLANS._held
    held = nufft_plans.PLANS.take(key)
    type2(image, w)
    assert len(made) == 2 and nufft_plans.PLANS.take(key) is not held


def test_without_finufft(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "finufft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(nufft_plans, "PLANS", Plans(0))
    assert not nufft_plans.installed()
    with pytest.raises(MissingExtra, match="scanfield\\[mri\\]"):
        type2(noise(1, 4, 3), points(5, 2))


def test_axes_keep_their_order():
    """One plane wave along the first axis only."""
    image = torch.ones(1, 6, 5, dtype=torch.complex128)
    w = torch.tensor([[2 * np.pi / 6, 0.0], [0.0, 2 * np.pi / 5], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        type2(image, w), torch.tensor([[0.0, 0.0, 30.0]], dtype=torch.complex128), atol=1e-10, rtol=0
    )
