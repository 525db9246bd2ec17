from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from scanfield.kernels import backend, library
from scanfield.kernels.adam import VisitedAdam, owned_rows

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(library.missing() is not None, reason="the kernels were not built")),
]


@pytest.fixture(params=BACKENDS)
def name(request):
    with backend.using(request.param):
        yield request.param


def table(rows=100, features=2, dtype=torch.float64, seed=0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, features, generator=generator, dtype=torch.float64).to(dtype))


def lookups(rows: int, steps: int, seed=1) -> list[torch.Tensor]:
    """Rows read in each step: few, some of them several times."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(rows, (12,), generator=generator) for _ in range(steps)]


def loss(values: torch.Tensor) -> torch.Tensor:
    return (values.sin() * torch.linspace(0.1, 3, values.numel()).reshape(values.shape)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "features"), [(100, 1), (101, 2), (40000, 2), (37, 3), (64, 8), (61, 16), (50, 17)])
def test_equals_sparse_adam(name, rows, features, dtype):
    ours, theirs = table(rows, features, dtype), table(rows, features, dtype)
    options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6}
    optimiser, sparse = VisitedAdam([ours], **options), torch.optim.SparseAdam([theirs], **options)
    for read in lookups(rows, 20):
        loss(ours[read]).backward()
        optimiser.step()
        sparse.zero_grad()
        loss(nn.functional.embedding(read, theirs, sparse=True)).backward()
        sparse.step()
        assert (ours.grad == 0).all()
    tight = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(ours, theirs, atol=tight, rtol=tight)
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimiser.state[ours][key], sparse.state[theirs][key], atol=tight, rtol=tight)
    assert optimiser.state[ours]["step"] == 20


def test_rows_that_are_not_read_stay_as_they_are(name):
    values = table()
    start = values.detach().clone()
    optimiser = VisitedAdam([values], lr=0.1)
    for read in ([3, 5], [5]):
        values[read].square().sum().backward()
        optimiser.step()
    same = (values == start).all(dim=1)
    assert not same[3] and not same[5] and same.sum() == 98


def test_several_backward_passes_and_clipping(name):
    ours, dense = table(), table()
    optimiser = VisitedAdam([ours], lr=0.1)
    for values in (ours, dense):
        loss(values[3:9]).backward()
        loss(values[7:20]).backward()
        nn.utils.clip_grad_norm_([values], 0.01)
    torch.testing.assert_close(ours.grad, dense.grad, atol=1e-14, rtol=1e-14)
    assert ours.grad.norm() == pytest.approx(0.01, rel=1e-4)
    optimiser.step()
    assert (ours[3:20] != dense[3:20]).all() and torch.equal(ours[20:], dense[20:])


def test_zero_grad_forgets(name):
    values = table()
    start = values.detach().clone()
    optimiser = VisitedAdam([values], lr=0.1)
    buffer = values.grad
    loss(values).backward()
    optimiser.zero_grad()
    assert values.grad is buffer and (buffer == 0).all()
    optimiser.step()
    assert torch.equal(values, start)


def test_a_gradient_someone_else_removed_or_replaced(name):
    """module.zero_grad() sets .grad to None; assigning a gradient is allowed too."""
    values = table()
    start = values.detach().clone()
    optimiser = VisitedAdam([values], lr=0.1)
    loss(values).backward()
    values.grad = None
    optimiser.step()
    assert torch.equal(values, start)
    loss(values).backward()
    values.grad = None
    loss(values[:4]).backward()
    optimiser.step()
    assert (values[:4] != start[:4]).all() and torch.equal(values[4:], start[4:])
    values.grad = torch.zeros_like(values)
    values.grad[50] = 1.0
    optimiser.step()
    assert (values[50] != start[50]).all() and torch.equal(values[51:], start[51:])


def test_a_gradient_that_was_there_before_counts(name):
    values = table()
    loss(values[:4]).backward()
    start = values.detach().clone()
    VisitedAdam([values], lr=0.1).step()
    assert (values[:4] != start[:4]).all() and torch.equal(values[4:], start[4:])


def test_state_is_saved_and_restored(name):
    reads = lookups(100, 10)

    def run(values, optimiser, some):
        for read in some:
            loss(values[read]).backward()
            optimiser.step()

    whole = table()
    run(whole, VisitedAdam([whole], lr=0.1), reads)
    first = table()
    early = VisitedAdam([first], lr=0.1)
    run(first, early, reads[:4])
    second = nn.Parameter(first.detach().clone())
    late = VisitedAdam([second], lr=0.7)
    late.load_state_dict(early.state_dict())
    run(second, late, reads[4:])
    assert torch.equal(second, whole)
    assert set(early.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_closures_and_groups(name):
    one, two = table(seed=1), table(seed=2)
    before = one.detach().clone(), two.detach().clone()
    optimiser = VisitedAdam([{"params": [one], "lr": 0.0}, {"params": [two]}], lr=0.1)

    def closure():
        total = loss(one) + loss(two)
        total.backward()
        return total.item()

    assert optimiser.step(closure) == pytest.approx(float(loss(before[0]) + loss(before[1])))
    assert torch.equal(one, before[0]) and (two != before[1]).all()


def test_the_kernel_equals_plain_torch_with_any_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for name, threads in (("auto", 1), ("auto", 4), ("reference", 1)):
            torch.set_num_threads(threads)
            values = table(70001, 2, torch.float32)
            optimiser = VisitedAdam([values], lr=0.1)
            with backend.using(name):
                for _ in range(3):
                    loss(values[::3]).backward()
                    optimiser.step()
            results.append(values.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], atol=1e-6, rtol=1e-6)


def test_a_stale_graph_is_noticed(name):
    """A step changes the table in place, and autograd must know."""
    values = table()
    optimiser = VisitedAdam([values], lr=0.1)
    stale = values.square().sum()
    loss(values).backward()
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_the_table_is_free_again_with_the_optimiser():
    values = table()
    optimiser = VisitedAdam([values])
    assert owned_rows(values) is optimiser._tables[values]
    rows = weakref.ref(optimiser._tables[values])
    del optimiser
    gc.collect()
    assert owned_rows(values) is None and rows() is None
    values.grad = None
    loss(values).backward()
    assert (values.grad != 0).all()


def test_misuse_is_refused():
    values = table()
    optimiser = VisitedAdam([values])
    VisitedAdam([values]).zero_grad()
    with pytest.raises(RuntimeError, match="another VisitedAdam"):
        optimiser.step()
    moved = table()
    optimiser = VisitedAdam([moved])
    moved.data = moved.data.float()
    with pytest.raises(RuntimeError, match="moved or converted"):
        optimiser.step()
    for bad in (
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(3, 2, dtype=torch.float16)),
        nn.Parameter(torch.zeros(2, 3).t()),
    ):
        with pytest.raises(ValueError, match="not a contiguous float table"):
            VisitedAdam([bad])
    for options in ({"lr": -1.0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(ValueError, match="Adam needs"):
            VisitedAdam([table()], **options)
