from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.encodings.grid import MultiresolutionGrid
from scanfield.kernels import backend


def make(dims=2, *, log2_table=20, levels=3, features=2, base=3, growth=1.7, seed=0, **more) -> MultiresolutionGrid:
    generator = torch.Generator().manual_seed(seed)
    options = {"levels": levels, "features": features, "base": base, "growth": growth, "log2_table": log2_table}
    return MultiresolutionGrid(dims, generator=generator, init=1.0, **(options | more)).double()


def points(count: int, dims: int, seed=0) -> torch.Tensor:
    return 2 * torch.rand(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def brute_force(
    grid: MultiresolutionGrid, u: np.ndarray, *, smooth: bool, log2_table: int, growth=1.7, base=3
) -> np.ndarray:
    """Multilinear interpolation of the table with plain loops, from the published description."""
    primes = [1, 2654435761, 805459861, 3674653429]
    table = grid.table.detach().numpy()
    dims, features, levels = u.shape[1], table.shape[1], grid.out_dims // table.shape[1]
    out = np.zeros((len(u), levels, features))
    start = 0
    for level in range(levels):
        cells = int(np.floor(base * growth**level + 1e-9))
        dense = (cells + 1) ** dims <= 2**log2_table
        count = (cells + 1) ** dims if dense else 2**log2_table
        for n, point in enumerate(u):
            place = (np.clip(point, -1, 1) + 1) / 2 * cells
            low = np.minimum(np.floor(place), cells - 1).astype(int)
            part = place - low
            if smooth:
                part = 3 * part**2 - 2 * part**3
            for corner in itertools.product((0, 1), repeat=dims):
                vertex = low + corner
                weight = np.prod([p if c else 1 - p for p, c in zip(part, corner, strict=True)])
                if dense:
                    row = int(np.ravel_multi_index(vertex, [cells + 1] * dims))
                else:
                    row = 0
                    for v, prime in zip(vertex.tolist(), primes, strict=False):
                        row ^= (v * prime) % 2**32  # the published hash works on 32-bit integers
                    row %= count
                out[n, level] += weight * table[start + row]
        start += count
    assert start == len(table)
    return out.reshape(len(u), -1)


@pytest.mark.parametrize("dims", [2, 3, 4])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("log2_table", [20, 5], ids=["dense", "hashed"])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_value_against_brute_force(dims, interpolation, log2_table, name):
    grid = make(dims, log2_table=log2_table, interpolation=interpolation)
    u = torch.cat(
        [points(20, dims), torch.ones(1, dims).double(), -torch.ones(1, dims).double(), 1.7 * points(5, dims, 1)]
    )
    expected = brute_force(grid, u.numpy(), smooth=interpolation == "smoothstep", log2_table=log2_table)
    with backend.using(name):
        np.testing.assert_allclose(grid(u).detach().numpy(), expected, atol=1e-12)


def test_levels_and_table_sizes():
    grid = make(2, levels=8, features=8, base=2, growth=1.95, log2_table=24)
    assert grid.levels.cells == (2, 3, 7, 14, 28, 56, 109, 214)  # floor(2 * 1.95^l)
    assert len(grid.table) == sum((n + 1) ** 2 for n in grid.levels.cells)
    assert grid.out_dims == 64
    assert make(2, levels=3, base=16, growth=2.0).levels.cells == (16, 32, 64)
    hashed = make(3, levels=3, base=16, growth=2.0, log2_table=10)
    assert len(hashed.table) == 3 * 1024 and hashed.levels.dense == (False,) * 3


def test_vertices_hold_the_table_in_c_order():
    grid = make(3, levels=1, base=3)
    ends = torch.linspace(-1, 1, 4, dtype=torch.float64)
    vertices = torch.cartesian_prod(ends, ends, ends)
    for name in ("auto", "reference"):
        with backend.using(name):
            torch.testing.assert_close(grid(vertices), grid.table, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dims", [2, 3, 4])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("log2_table", [20, 3], ids=["dense", "hashed"])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_gradients(dims, interpolation, log2_table, name):
    shape = {"levels": 2, "features": 1, "base": 1, "growth": 2.0, "log2_table": log2_table}
    grid = make(dims, interpolation=interpolation, **shape)
    u = points(3, dims, 5).requires_grad_()
    table = grid.table.detach().requires_grad_()

    def value(u, table):
        return torch.func.functional_call(grid, {"table": table}, (u,))

    with backend.using(name):
        assert torch.autograd.gradcheck(value, (u, table), fast_mode=True)
        assert torch.autograd.gradgradcheck(value, (u, table), fast_mode=True)


def test_smoothstep_has_a_continuous_first_derivative_at_the_vertices():
    grid = make(2, levels=1, interpolation="smoothstep")
    for side in (-1e-9, 1e-9):
        u = torch.tensor([[1 / 3 + side, 0.123]], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(grid(u).sum(), u)
        assert abs(slope[0, 0]) < 1e-6


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_outside_is_clamped_and_pulls_nothing(name):
    grid = make(3)
    u = torch.tensor([[1.5, 0.2, -0.4], [7.0, 9.0, -8.0]], dtype=torch.float64, requires_grad=True)
    with backend.using(name):
        torch.testing.assert_close(grid(u), grid(u.detach().clamp(-1, 1)))
        (slope,) = torch.autograd.grad(grid(u).sum(), u)
    assert slope[0, 0] == 0 and (slope[1] == 0).all() and slope[0, 1] != 0


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_the_slope_on_the_border_never_points_to_zero_padding(name):
    """With one feature constant at 100, a slope at u = 1 other than 0 would come from values outside the table."""
    grid = make(2, levels=1)
    torch.nn.init.constant_(grid.table, 100.0)
    u = torch.tensor([[1.0, 0.3], [-1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    with backend.using(name):
        (slope,) = torch.autograd.grad(grid(u).sum(), u)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_batch_shapes_and_the_empty_batch(dims):
    grid = make(dims)
    assert grid(points(6, dims).reshape(2, 3, dims)).shape == (2, 3, grid.out_dims)
    assert grid(points(1, dims)[0]).shape == (grid.out_dims,)
    empty = grid(torch.zeros(0, dims).double())
    assert empty.shape == (0, grid.out_dims)
    empty.sum().backward()


def test_coarse_to_fine_annealing():
    grid = make(2, levels=3)
    u = points(5, 2)
    whole = grid(u).reshape(5, 3, 2)
    for visible, weights in [(0.0, [0, 0, 0]), (1.25, [1, 0.25, 0]), (3.0, [1, 1, 1]), (9.0, [1, 1, 1])]:
        grid.show_levels(visible)
        torch.testing.assert_close(grid(u).reshape(5, 3, 2), whole * torch.tensor(weights).double()[:, None])


def test_annealing_survives_saving():
    grid = make(2, levels=3)
    grid.show_levels(1.5)
    other = make(2, levels=3, seed=1)
    other.load_state_dict(grid.state_dict())
    torch.testing.assert_close(other(points(5, 2)), grid(points(5, 2)))


def test_initial_features_are_small_and_drawn_from_the_generator():
    draw = [
        MultiresolutionGrid(
            2, levels=2, features=2, base=30, growth=2, log2_table=20, generator=torch.Generator().manual_seed(s)
        )
        for s in (0, 0, 1)
    ]
    torch.testing.assert_close(draw[0].table, draw[1].table, atol=0, rtol=0)
    assert not torch.equal(draw[0].table, draw[2].table)
    assert 0.9e-4 < draw[0].table.abs().max() <= 1e-4
    assert draw[0].table.std().item() == pytest.approx(1e-4 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"dims": 1},
        {"dims": 5},
        {"levels": 0},
        {"features": 0},
        {"base": 0},
        {"growth": 0.9},
        {"log2_table": 31},
        {"log2_table": 0},
    ],
)
def test_impossible_encodings(change):
    with pytest.raises(InputError):
        make(**change)
