"""Jets of networks against automatic differentiation, and the C++ kernels against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch

from scanfield.kernels import jvp, library
from scanfield.kernels.backend import using
from scanfield.kernels.jvp import Streams, mlp_jets
from scanfield.kernels.mlp import Activation
from scanfield.kernels.mlp import reference as network

STREAMS = [Streams(0), Streams(1), Streams(3), Streams(2, ((0, 0), (1, 1))), Streams.hessian(3), Streams.hessian(4)]
WIDTHS = [4, 20, 33, 3]


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1).to(dtype).requires_grad_()


def make(kind: str, dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], list[torch.Tensor], Activation]:
    weights = [seeded(b, a, seed=a, dtype=dtype) for a, b in itertools.pairwise(WIDTHS)]
    biases = [seeded(b, seed=b, dtype=dtype) for b in WIDTHS[1:]]
    return weights, biases, Activation(kind, (2.0, 0.7) if kind == "sine" else ())


def by_differentiation(x: torch.Tensor, streams: Streams, f) -> torch.Tensor:
    """The jet of f along the curves x + sum t_i x_i + sum t_i t_j x_ij (t_i^2 / 2 x_ii), from nested derivatives."""
    t = torch.zeros(streams.first, dtype=x.dtype, requires_grad=True)
    place = x[0] + torch.einsum("i,inw->nw", t, x[1 : 1 + streams.first])
    for m, (i, j) in enumerate(streams.pairs):
        place = place + t[i] * t[j] * (0.5 if i == j else 1.0) * x[1 + streams.first + m]
    y = f(place)
    out = [y]
    for k in range(streams.first):
        out.append(
            torch.stack([torch.autograd.grad(v, t, retain_graph=True)[0][k] for v in y.flatten()]).reshape(y.shape)
        )
    for i, j in streams.pairs:
        parts = []
        for v in y.flatten():
            (first,) = torch.autograd.grad(v, t, create_graph=True)
            parts.append(torch.autograd.grad(first[i], t, retain_graph=True)[0][j] if first.requires_grad else v * 0)
        out.append(torch.stack(parts).reshape(y.shape))
    return torch.stack(out)


@pytest.mark.parametrize("streams", STREAMS, ids=lambda s: f"{s.first}-{len(s.pairs)}")
@pytest.mark.parametrize("kind", ["sine", "relu"])
def test_the_reference_is_what_differentiation_gives(streams, kind):
    weights, biases, activation = make(kind)
    x = seeded(streams.count, 3, 4)
    wanted = by_differentiation(x, streams, lambda u: network(u, weights, biases, activation))
    torch.testing.assert_close(mlp_jets(x, weights, biases, activation, streams), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")
@pytest.mark.parametrize("streams", STREAMS, ids=lambda s: f"{s.first}-{len(s.pairs)}")
@pytest.mark.parametrize("kind", ["sine", "relu"])
@pytest.mark.parametrize("n", [0, 1, 100])
def test_kernels_agree_with_the_reference(streams, kind, n):
    results = []
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make(kind, dtype)
        x = seeded(streams.count, n, 4, dtype=dtype)
        y = mlp_jets(x, weights, biases, activation, streams)
        inputs = [x, *weights, *biases]
        loss = (y * seeded(*y.shape, seed=5, dtype=dtype).detach()).sum()
        results.append([y, *torch.autograd.grad(loss, inputs, materialize_grads=True)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()) if n else 0)


@pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")
@pytest.mark.parametrize("kind", ["sine", "relu"])
def test_jets_can_be_differentiated_twice(kind):
    results, streams = [], Streams(2)
    for dtype in (torch.float32, torch.float64):
        weights, biases, activation = make(kind, dtype)
        x = seeded(streams.count, 20, 4, dtype=dtype)
        y = mlp_jets(x, weights, biases, activation, streams)
        grads = torch.autograd.grad(y.square().sum(), [x, *weights], create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *weights]))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")
def test_the_backend_decides():
    weights, biases, activation = make("sine", torch.float32)
    x = seeded(4, 10, 4, dtype=torch.float32)
    with using("reference"):
        got = mlp_jets(x, weights, biases, activation, Streams(3))
    assert torch.equal(got, jvp.reference(x, weights, biases, activation, Streams(3)))


def test_jets_of_another_shape_are_refused():
    weights, biases, activation = make("sine")
    with pytest.raises(ValueError, match="3 streams, 4 are needed"):
        mlp_jets(seeded(3, 5, 4), weights, biases, activation, Streams(3))
    with pytest.raises(ValueError, match="pairs of directions"):
        Streams(2, ((0, 2),))


def test_the_hessian_has_every_pair_once():
    assert Streams.hessian(3).pairs == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    assert Streams.hessian(3).count == 10
