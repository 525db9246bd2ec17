from __future__ import annotations

import itertools

import pytest
import torch

from scanfield.errors import InputError
from scanfield.kernels import backend, hashgrid_cpu, library
from scanfield.kernels.adam import VisitedAdam
from scanfield.kernels.hashgrid import Levels, encode

pytestmark = pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")


def levels(dims=3, *, features=2, smoothstep=False, log2_table=6, count=3) -> Levels:
    """With log2_table 6, the first level is dense and the last is hashed for every number of dimensions."""
    return Levels.make(
        dims, levels=count, features=features, base=1, growth=2.9, log2_table=log2_table, smoothstep=smoothstep
    )


def draw(shape: Levels, n: int, *, dtype=torch.float64, seed=0, scale=1.1):
    """Points (some outside the box), table, level weights, and a direction for the features."""
    generator = torch.Generator().manual_seed(seed)
    u = scale * (2 * torch.rand(n, shape.dims, generator=generator, dtype=torch.float64) - 1)
    table = torch.randn(shape.starts[-1], shape.features, generator=generator, dtype=torch.float64)
    weight = torch.linspace(1, 0.3, len(shape.cells), dtype=torch.float64)
    along = torch.randn(n, len(shape.cells) * shape.features, generator=generator, dtype=torch.float64)
    return u.to(dtype), table.to(dtype), weight.to(dtype), along.to(dtype)


def derivatives(name: str, shape: Levels, u, table, weight, along):
    """Value, first and second gradients with a backend."""
    u, table, along = (tensor.detach().clone().requires_grad_() for tensor in (u, table, along))
    with backend.using(name):
        value = encode(u, table, weight, shape)
        first = torch.autograd.grad(value, (u, table), along, create_graph=True)
        second = torch.autograd.grad(sum((g * g.cos()).sum() for g in first), (u, table, along))
    return value.detach(), *(tensor.detach() for tensor in first), *second


CASES = list(itertools.product([2, 3, 4], [1, 2, 3, 4, 8, 16], [False, True]))


@pytest.mark.parametrize(("dims", "features", "smoothstep"), CASES)
def test_value_and_derivatives_equal_the_reference(dims, features, smoothstep):
    shape = levels(dims, features=features, smoothstep=smoothstep)
    assert shape.dense[0] and not shape.dense[-1]
    inputs = draw(shape, 77)
    kernel, reference = derivatives("cpu", shape, *inputs), derivatives("reference", shape, *inputs)
    for ours, truth in zip(kernel, reference, strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 8193, 65537])
def test_any_number_of_points(n):
    """Around the sizes of a block, of a span of work and of a chunk."""
    shape = levels(2, smoothstep=True)
    inputs = draw(shape, n)
    for ours, truth in zip(derivatives("cpu", shape, *inputs), derivatives("reference", shape, *inputs), strict=True):
        torch.testing.assert_close(ours, truth, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_single_precision_is_as_good_as_the_reference_in_single_precision(dims):
    shape = levels(dims, features=4, smoothstep=True)
    inputs = draw(shape, 500, dtype=torch.float32)
    truth = derivatives("reference", shape, *(tensor.double() for tensor in inputs))
    single = derivatives("reference", shape, *inputs)
    for ours, theirs, true in zip(derivatives("cpu", shape, *inputs), single, truth, strict=True):
        assert ours.dtype == torch.float32
        error, bound = (ours - true).abs().max(), (theirs - true).abs().max()
        assert error <= 1.5 * bound + 1e-6 * true.abs().max()


@pytest.mark.parametrize(("dims", "smoothstep"), list(itertools.product([2, 3, 4], [False, True])))
def test_gradcheck(dims, smoothstep):
    shape = levels(dims, smoothstep=smoothstep, features=1, count=2, log2_table=4)
    u, table, weight, _ = draw(shape, 4, scale=0.95)

    def value(u, table):
        return encode(u, table, weight, shape)

    inputs = (u.requires_grad_(), table.requires_grad_())
    with backend.using("cpu"):
        assert torch.autograd.gradcheck(value, inputs)
        assert torch.autograd.gradgradcheck(value, inputs, atol=1e-4)


def test_third_derivatives_are_refused():
    shape = levels(2, smoothstep=True)
    u, table, weight, _ = draw(shape, 5)
    u.requires_grad_()
    with backend.using("cpu"):
        (slope,) = torch.autograd.grad(encode(u, table, weight, shape).sum(), u, create_graph=True)
        (curve,) = torch.autograd.grad(slope.square().sum(), u, create_graph=True)
        with pytest.raises(NotImplementedError, match="backend 'reference'"):
            curve.sum().backward()


def test_borders_and_places_outside():
    """On the border the slope counts, beyond it there is none; a NaN stays one and harms nobody."""
    shape = levels(2, count=1)
    u, table, weight, _ = draw(shape, 5)
    u = torch.tensor([[1.0, -1.0], [1.5, 0.2], [-9.0, 7.0], [torch.nan, 0.0]], dtype=torch.float64, requires_grad=True)
    with backend.using("cpu"):
        value = encode(u, table, weight, shape)
        (slope,) = torch.autograd.grad(value[:3].sum(), u)
    torch.testing.assert_close(value[0], table[2])  # vertex (1, 0) of the one cell
    assert (slope[0] != 0).all() and slope[1, 0] == 0 and slope[1, 1] != 0 and (slope[2] == 0).all()
    assert value[3].isnan().all() and value[:3].isfinite().all()


def test_a_level_of_weight_zero_is_silent_and_gets_no_gradient():
    shape = levels(3)
    u, table, _, along = draw(shape, 40)
    weight = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    table[shape.starts[1] : shape.starts[2]] = torch.nan
    results = derivatives("cpu", shape, u, table, weight, along)
    assert all(tensor.isfinite().all() for tensor in results)
    assert (results[0].reshape(40, 3, 2)[:, 1] == 0).all()
    assert (results[2][shape.starts[1] : shape.starts[2]] == 0).all()


def test_a_gradient_has_the_same_bits_with_any_number_of_threads():
    shape = levels(3, features=3, count=5, log2_table=12)
    inputs = draw(shape, 20000, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(derivatives("cpu", shape, *inputs))
    finally:
        torch.set_num_threads(before)
    for one, other in [*zip(results[0], results[1], strict=True), *zip(results[0], results[2], strict=True)]:
        assert torch.equal(one, other)


def test_inputs_need_not_be_contiguous():
    shape = levels(3)
    u, table, weight, along = draw(shape, 40)
    expected = derivatives("cpu", shape, u, table, weight, along)
    with backend.using("cpu"):
        u, table, weight = (torch.stack([x, x], dim=-1)[..., 0] for x in (u, table, weight))
        u.requires_grad_(), table.requires_grad_()
        value = encode(u, table, weight, shape)
        grads = torch.autograd.grad(value, (u, table), along.t().contiguous().t())
    for ours, truth in zip((value, *grads), expected, strict=False):
        torch.testing.assert_close(ours, truth, atol=1e-12, rtol=1e-12)


def test_a_derivative_by_the_points_alone_makes_no_gradient_of_the_table(monkeypatch):
    shape = levels(3)
    u, table, weight, _ = draw(shape, 40)
    u.requires_grad_(), table.requires_grad_()
    scattered = []
    scatter = hashgrid_cpu._scatter
    monkeypatch.setattr(hashgrid_cpu, "_scatter", lambda *args: (scattered.append(1), scatter(*args)))
    with backend.using("cpu"):
        torch.autograd.grad(encode(u, table, weight, shape).sum(), u)
        assert not scattered
        torch.autograd.grad(encode(u, table, weight, shape).sum(), (u, table))
        assert len(scattered) == 1
        encode(u, table * 2, weight, shape).sum().backward()
        assert len(scattered) == 2 and table.grad is not None


def test_torch_accepts_the_operators():
    shape = levels(2)
    u, table, weight, along = draw(shape, 9)
    packed = hashgrid_cpu._pack(shape)
    u.requires_grad_(), table.requires_grad_()
    torch.library.opcheck(hashgrid_cpu.hashgrid, (u, table, weight, packed, False))
    grid = (weight, packed, True)
    torch.library.opcheck(hashgrid_cpu.hashgrid_backward, (along.requires_grad_(), u, table, *grid, True, True))
    detached = [tensor.detach() for tensor in (u, table, along, u, table)]
    torch.library.opcheck(hashgrid_cpu.hashgrid_double_backward, (*detached, *grid, True, True, True))
    sums = torch.zeros_like(table), torch.zeros(len(table), dtype=torch.uint8)
    torch.library.opcheck(hashgrid_cpu.accumulate_table_gradient, (along.detach(), u.detach(), *grid, *sums))


def test_other_inputs_are_refused():
    shape = levels(3)
    u, table, weight, _ = draw(shape, 5)
    with backend.using("cpu"):
        with pytest.raises(ValueError, match="do not fit"):
            encode(u, table[1:], weight, shape)
        with pytest.raises(ValueError, match="do not fit"):
            encode(u[:, :2], table, weight, shape)
        with pytest.raises(ValueError, match="2 weights for 3 levels"):
            encode(u, table, weight[:2], shape)
        with pytest.raises(ValueError, match="float32"):
            encode(u, table.float(), weight, shape)
        with pytest.raises(InputError, match="float16"):
            encode(u.half(), table.half(), weight, shape)
        odd = Levels(3, 2, (9,), (False,), (0, 100))
        with pytest.raises(ValueError, match="hashed level of 9 cells cannot have 100 rows"):
            encode(u, torch.zeros(100, 2).double(), weight[:1], odd)
        short = Levels(3, 2, (9,), (True,), (0, 999))
        with pytest.raises(ValueError, match="dense level of 9 cells cannot have 999 rows"):
            encode(u, torch.zeros(999, 2).double(), weight[:1], short)


class TestPersistentGradient:
    """A table that belongs to a VisitedAdam."""

    @pytest.fixture
    def made(self):
        shape = levels(3, log2_table=8)
        u, table, weight, along = draw(shape, 6)
        table = torch.nn.Parameter(table)
        truth = derivatives("reference", shape, u, table, weight, along)[2]
        optimiser = VisitedAdam([table], lr=0.1)

        def loss(points=u):
            with backend.using("cpu"):
                return (encode(points, table, weight, shape) * along).sum()

        return table, optimiser, loss, truth

    def test_backward_adds_in_place_and_marks_rows(self, made):
        table, optimiser, loss, truth = made
        grad = table.grad
        loss().backward()
        assert table.grad is grad
        torch.testing.assert_close(grad, truth, atol=1e-12, rtol=1e-12)
        visited = optimiser._tables[table].visited.bool()
        assert visited[(truth != 0).any(dim=1)].all() and 0 < visited.sum() <= 6 * 3 * 8
        loss().backward()
        torch.testing.assert_close(grad, 2 * truth, atol=1e-12, rtol=1e-12)

    def test_autograd_grad_gives_a_gradient_of_its_own(self, made):
        table, optimiser, loss, truth = made
        (grad,) = torch.autograd.grad(loss(), table)
        torch.testing.assert_close(grad, truth, atol=1e-12, rtol=1e-12)
        assert (table.grad == 0).all() and not optimiser._tables[table].visited.any()

    def test_a_derivative_by_the_points_leaves_the_gradient_alone(self, made):
        table, optimiser, loss, _ = made
        u = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
        torch.autograd.grad(loss(u), u)
        assert (table.grad == 0).all() and not optimiser._tables[table].visited.any()

    def test_losses_of_derivatives_and_other_terms_join_the_sum(self, made):
        table, optimiser, _, _ = made
        shape = levels(3, log2_table=8)
        u, _, weight, along = draw(shape, 6)
        u.requires_grad_()

        def backward(table):
            value = encode(u, table, weight, shape)
            (slope,) = torch.autograd.grad(value, u, along, create_graph=True)
            (slope.square().sum() + value.sin().sum() + table[3].sum()).backward()

        plain = table.detach().clone().requires_grad_()
        with backend.using("reference"):
            backward(plain)
        with backend.using("cpu"):
            backward(table)
        rows = optimiser._tables[table]
        assert table.grad is rows.grad
        torch.testing.assert_close(table.grad, plain.grad, atol=1e-11, rtol=1e-11)
        assert rows.visited.bool()[(table.grad != 0).any(dim=1)].all() and not rows.visited.all()

    def test_hooks_see_the_gradient(self, made):
        table, _, loss, truth = made
        seen = []
        table.register_hook(seen.append)
        loss().backward()
        torch.testing.assert_close(seen[0], truth, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(table.grad, truth, atol=1e-12, rtol=1e-12)
