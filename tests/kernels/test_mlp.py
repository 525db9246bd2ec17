"""Every backend of the networks against the reference in double precision."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from scanfield.errors import InputError
from scanfield.kernels import library, mlp_cpu
from scanfield.kernels.backend import using
from scanfield.kernels.mlp import Activation, mlp, reference, regression_loss

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")

# (widths, kind): thin and padded inputs, outputs and hidden layers, unequal widths, one layer.
NETWORKS = {
    "siren": ([3, 64, 64, 64, 64, 1], "sine"),
    "unequal": ([2, 20, 33, 7], "sine"),
    "features": ([37, 64, 64, 17], "relu"),
    "bottleneck": ([5, 40, 2, 100, 5], "relu"),
    "wide": ([2, 256, 256, 3], "sine"),
    "linear": ([4, 3], "relu"),
    "narrow": ([1, 1, 1], "sine"),
}
SIZES = [0, 1, 95, 96, 97, 1000]


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor], Activation]:
    widths, kind = NETWORKS[name]
    draw = torch.Generator().manual_seed(len(widths))
    weights, biases = [], []
    for k, (a, b) in enumerate(itertools.pairwise(widths)):
        bound = 1 / a if k == 0 else (6 / a) ** 0.5 / (30 if kind == "sine" else 1)
        weights.append(((2 * torch.rand(b, a, generator=draw) - 1) * bound).to(dtype).requires_grad_())
        biases.append(((2 * torch.rand(b, generator=draw) - 1) / 3).to(dtype).requires_grad_())
    return weights, biases, Activation(kind, (30.0,) * (len(widths) - 2) if kind == "sine" else ())


def points(n: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.rand(n, columns, generator=torch.Generator().manual_seed(n)) - 1).to(dtype).requires_grad_()


def assert_near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert got.shape == wanted.shape
    error = (got.detach().double() - wanted.detach()).norm()
    assert float(error) <= tolerance * float(wanted.detach().norm()) + 2e-6


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients(name, n):
    results = []
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make(name, dtype)
        x = points(n, weights[0].shape[1], dtype)
        y = mlp(x, weights, biases, activation)
        cotangent = points(n, y.shape[1], dtype).detach()
        results.append([y, *torch.autograd.grad(y, [x, *weights, *biases], cotangent)])
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted)


@pytest.mark.parametrize("name", ["siren", "unequal", "features"])
@pytest.mark.parametrize("wanted_order", [2, 3])
def test_derivatives_of_derivatives(name, wanted_order):
    """A gradient penalty, and the gradient of its gradient."""
    results = []
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make(name, dtype)
        x = points(50, weights[0].shape[1], dtype)
        y = mlp(x, weights, biases, activation)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = (gradient.norm(dim=-1) - 1).square().mean() + y.square().mean()
        inputs = [x, *weights, *biases[:-1]]
        grads = torch.autograd.grad(penalty, inputs, create_graph=True)
        if wanted_order == 3:
            grads = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        results.append(grads)
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted, 1e-4)


def test_learning_to_learn():
    """The gradient of a loss after a step of gradient descent."""
    results = []
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make("unequal", dtype)
        x = points(50, 2, dtype)
        steps = torch.autograd.grad(mlp(x, weights, biases, activation).square().mean(), weights, create_graph=True)
        moved = [w - 0.1 * s for w, s in zip(weights, steps, strict=True)]
        results.append(torch.autograd.grad(mlp(x, moved, biases, activation).square().mean(), weights))
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("n", [1, 97, 1000])
def test_regression_loss(name, loss, n):
    results = []
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make(name, dtype)
        x = points(n, weights[0].shape[1], dtype)
        away = 50 if loss == "l1" else 2  # from the kink of |e|
        target = points(n, len(biases[-1]), dtype).detach() + away
        value = 3 * regression_loss(x, target, weights, biases, activation, loss)
        results.append([value, *torch.autograd.grad(value, [x, *weights, *biases])])
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted)


def test_regression_loss_of_nothing_is_nan_as_in_torch():
    weights, biases, activation = make("siren")
    assert regression_loss(points(0, 3), torch.zeros(0, 1), weights, biases, activation).isnan()


def test_regression_loss_refuses_what_it_cannot_differentiate():
    weights, biases, activation = make("siren")
    target = torch.zeros(5, 1, requires_grad=True)
    with pytest.raises(NotImplementedError, match="gradient to its target"):
        regression_loss(points(5, 3), target, weights, biases, activation).backward()
    value = regression_loss(points(5, 3), target.detach(), weights, biases, activation)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        torch.autograd.grad(value, weights[0], create_graph=True)


def test_the_number_of_threads_changes_rounding_only_and_repeats_are_equal():
    weights, biases, activation = make("siren")
    x, threads = points(5000, 3), torch.get_num_threads()
    grads = {}
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            once, again = (
                torch.autograd.grad(mlp(x, weights, biases, activation).square().sum(), weights) for _ in range(2)
            )
            assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
            grads[count] = once
    finally:
        torch.set_num_threads(threads)
    for count in (2, 3):
        for got, wanted in zip(grads[count], grads[1], strict=True):
            assert_near(got, wanted.double(), 1e-5)


def test_strided_inputs_and_inputs_without_gradients():
    weights, biases, activation = make("unequal")
    x = points(40, 4).detach()[:, ::2]
    wanted = reference(x.double(), [w.double() for w in weights], [b.double() for b in biases], activation)
    assert_near(mlp(x, weights, biases, activation), wanted)
    frozen = [w.detach() for w in weights]
    mlp(x, frozen, biases, activation).sum().backward()
    assert biases[0].grad is not None
    assert not mlp(x, frozen, [b.detach() for b in biases], activation).requires_grad


@pytest.mark.parametrize("name", sorted(library.built()))
def test_every_instruction_set_agrees(name, monkeypatch):
    if name == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    if name == "avx2" and library.chosen() == "base":
        pytest.skip("this processor has no AVX2")
    loaded = library.load(name)
    monkeypatch.setattr(library, "load", lambda: loaded)
    for network in NETWORKS:
        test_values_and_gradients(network, 97)


def test_torch_sees_the_operators():
    weights, biases, activation = make("unequal")
    x, omegas = points(9, 2)[None].detach().requires_grad_(), list(activation.omegas)
    torch.library.opcheck(torch.ops.scanfield.mlp_cpu.default, (x, weights, biases, omegas, 0, []))
    grad = points(9, 7)[None].detach().requires_grad_()
    arguments = (grad, x, weights, biases, omegas, 0, [], True)
    torch.library.opcheck(torch.ops.scanfield.mlp_cpu_backward.default, arguments, atol=1e-3, rtol=1e-3)
    frozen = [[t.detach() for t in ts] for ts in (weights, biases)]
    arguments = (x[0].detach(), grad[0].detach(), *frozen, omegas, "l2", True)
    torch.library.opcheck(torch.ops.scanfield.mlp_cpu_loss.default, arguments)


def test_functional_transforms_work():
    weights, biases, activation = make("unequal")

    def loss(x: torch.Tensor) -> torch.Tensor:
        return mlp(x, weights, biases, activation).square().mean()

    x = points(30, 2)
    wanted = torch.autograd.grad(loss(x), x)[0]
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), wanted, rtol=1e-4, atol=1e-7)
    each = torch.func.vmap(lambda row: mlp(row[None], weights, biases, activation)[0])(x.detach())
    torch.testing.assert_close(each, mlp(x, weights, biases, activation), rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_follow_each_other_are_refused():
    weights, biases, activation = make("unequal")
    with pytest.raises(ValueError, match="do not follow each other"):
        mlp_cpu.mlp(points(3, 5), weights, biases, activation)
    with pytest.raises(ValueError, match="do not follow each other"):
        mlp_cpu.mlp(points(3, 2), weights, biases, Activation("sine", (30.0,)))


def test_an_explicit_backend_is_a_demand():
    weights, biases, activation = make("siren", torch.float64)
    with using("cpu"), pytest.raises(InputError, match=r"cannot take this input \(torch\.float64"):
        mlp(points(3, 3, torch.float64), weights, biases, activation)
    with using("reference"):
        weights, biases, activation = make("siren")
        got = mlp(points(3, 3), weights, biases, activation)
        assert torch.equal(got, reference(points(3, 3), weights, biases, activation))


def run_alone(code: str) -> str:
    """What a Python program prints, in a process of its own (without the type checks of these tests)."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_torch_compile_takes_the_operators_into_one_graph():
    code = """
import torch
from scanfield.kernels.mlp import Activation, mlp
draw = torch.Generator().manual_seed(0)
weights = [torch.rand(s, generator=draw) for s in ((20, 2), (7, 20))]
biases = [torch.rand(s, generator=draw) for s in (20, 7)]
loss = lambda x: mlp(x, weights, biases, Activation("sine", (3.0,))).square().mean()
x = torch.rand(30, 2, generator=draw).requires_grad_()
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
(got,), (wanted,) = torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x)
print(torch.equal(got, wanted))
"""
    assert run_alone(code).strip() == "True"


def test_memory_does_not_grow_with_the_number_of_points():
    """The peak of a process's memory."""
    code = """
import resource, torch
from scanfield.kernels.mlp import Activation, regression_loss
draw = torch.Generator().manual_seed(0)
shapes = [(256, 3), (256, 256), (256, 256), (1, 256)]
weights = [torch.randn(s, generator=draw).mul_(0.01).requires_grad_() for s in shapes]
biases = [torch.zeros(s[0], requires_grad=True) for s in shapes]
activation = Activation("sine", (30.0,) * 3)
def step(n):
    x = torch.rand(n, 3, generator=draw)
    regression_loss(x, x[:, :1], weights, biases, activation).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
step(1000)
before = step(1000)
print(step(300_000) - before)
"""
    # Plain torch keeps about 6 KiB a point here, 1.8 GiB; the points, targets and their shuffles take 10 MiB.
    assert float(run_alone(code)) < 30
