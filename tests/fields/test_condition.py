"""Codes of subjects, and features of cells around a point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.condition import Latent, LatentTable, LocalCell
from scanfield.fields.field import Condition, Field
from scanfield.fields.networks.mlp import MLP
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Latent ---------------------------------------------------------------------------------------------------------------


def test_a_code_is_the_same_everywhere():
    code = torch.tensor([1.0, 2.0])
    latent = Latent(code)
    assert isinstance(latent, Condition)
    assert torch.equal(latent.at(torch.rand(4, 5, 3)), code.expand(4, 5, 2))
    assert latent.at(torch.rand(0, 3)).shape == (0, 2)


def test_codes_of_a_batch_belong_to_their_points():
    codes = torch.arange(6.0).reshape(3, 2)
    found = Latent(codes).at(torch.rand(3, 7, 4))
    assert found.shape == (3, 7, 2) and torch.equal(found[:, 5], codes)
    for x in (torch.rand(2, 7, 3), torch.rand(3)):
        with pytest.raises(ValueError, match="do not suit points"):
            Latent(codes).at(x)


def test_a_field_takes_a_code_beside_the_coordinates():
    grid = Grid.centred((8, 8, 8), 2.0)
    domain = Domain.of_grid(grid)
    network = MLP([3 + 2, 6, 1], generator=draws())
    field = Field(domain, torch.nn.Identity(), network, torch.nn.Identity())
    code, x = torch.tensor([0.3, -0.7], requires_grad=True), grid.points()[::37]
    out = field(x, Latent(code))
    assert torch.allclose(out, network(torch.cat([domain.to_unit(x), code.expand(len(x), 2)], dim=1)))
    out.sum().backward()
    assert code.grad.abs().min() > 0


# LatentTable ----------------------------------------------------------------------------------------------------------


def table(count: int = 6, size: int = 4, **more) -> LatentTable:
    return LatentTable(count, size, **{"deviation": 0.5, "generator": draws(), **more})


def test_codes_start_as_spread_as_asked_and_from_the_generator():
    large = LatentTable(400, 50, deviation=0.2, generator=draws(1))
    assert large.free.std().item() == pytest.approx(0.2, rel=0.02) and abs(large.free.mean().item()) < 0.01
    assert torch.equal(large.codes(), LatentTable(400, 50, deviation=0.2, generator=draws(1)).codes())
    assert (len(large), large.size) == (400, 50)


def test_gradients_reach_the_codes_of_the_batch_alone():
    codes = table()
    index = torch.tensor([4, 1])
    assert torch.equal(codes(index), codes.codes()[index])
    (codes(index).square().sum() + codes.prior(index) + codes.norm(index)).backward()
    assert codes.free.grad.abs().sum(dim=1).nonzero()[:, 0].tolist() == [1, 4]


def test_priors_are_what_their_equations_say():
    codes = LatentTable.of(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]))
    index = torch.tensor([0, 2])
    assert codes.prior(index) == (25 + 100) / 2 and codes.norm(index) == (5 + 10) / 2
    codes.norm(torch.tensor([1])).backward()
    assert torch.equal(codes.free.grad, torch.zeros(3, 2)), "no gradient at zero, and no NaN"


def test_a_bound_projects_long_codes_and_leaves_short_ones():
    codes = LatentTable.of(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), bound=1.0)
    torch.testing.assert_close(codes.codes(), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    (codes.codes() * torch.tensor([1.0, 2.0])).sum().backward()
    assert torch.isfinite(codes.free.grad).all()
    radial = (codes.free.grad[0] * torch.tensor([0.6, 0.8])).sum()
    assert abs(float(radial)) < 1e-6, "beyond the bound, length does not matter"
    assert torch.equal(codes.free.grad[1], torch.tensor([1.0, 2.0]))


def test_the_bound_is_differentiable():
    free = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    codes = LatentTable.of(free, bound=1.0)
    assert torch.autograd.gradcheck(codes._within, (free,))


def test_draws_are_as_spread_as_the_codes():
    known = (
        torch.randn(30, 3, generator=draws(2)) @ torch.tensor([[2.0, 0.0, 0.0], [1.9, 0.2, 0.0], [0.0, 0.0, 1.0]]) + 5
    )
    codes = LatentTable.of(known)
    mean, deviation = codes.spread()
    torch.testing.assert_close(mean, known.mean(0))
    torch.testing.assert_close(deviation, known.std(0))
    alone, together = codes.draw(20000, draws(3)), codes.draw(20000, draws(3), correlated=True)
    for new in (alone, together):
        torch.testing.assert_close(new.mean(0), mean, atol=0.06, rtol=0)
        torch.testing.assert_close(new.std(0), deviation, rtol=0.03, atol=0)
    torch.testing.assert_close(torch.cov(together.T), torch.cov(known.T), rtol=0.05, atol=0.05)
    assert abs(torch.corrcoef(alone.T)[0, 1]) < 0.03 < abs(torch.corrcoef(known.T)[0, 1])
    assert codes.draw(50, draws(3), scale=0.0).unique(dim=0).shape[0] == 1
    assert not codes.draw(2, draws(3)).requires_grad


def test_one_subject_has_no_spread():
    codes = LatentTable.of(torch.tensor([[1.0, 2.0]]))
    assert torch.equal(codes.spread()[1], torch.zeros(2))
    for correlated in (True, False):
        assert torch.equal(codes.draw(2, draws(), correlated=correlated), torch.tensor([[1.0, 2.0]] * 2))


def test_between_two_subjects():
    codes = table()
    line = codes.between(1, 3, torch.tensor([0.0, 0.5, 1.0]))
    ends = codes.codes()[[1, 3]]
    torch.testing.assert_close(line, torch.stack([ends[0], ends.mean(0), ends[1]]))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"count": 0}, "a subject and a number"),
        ({"size": 0}, "a subject and a number"),
        ({"deviation": -1.0}, "deviation"),
        ({"deviation": float("nan")}, "deviation"),
        ({"bound": 0.0}, "bound"),
    ],
)
def test_tables_that_make_no_sense(bad, match):
    with pytest.raises(InputError, match=match):
        table(**bad)


# LocalCell ------------------------------------------------------------------------------------------------------------

SIZES = {"volume": (5, 4, 6), "slice": (5, 6, 1), "slice across": (1, 4, 5), "line": (1, 7, 1)}


def oblique(shape: tuple[int, int, int]) -> Grid:
    """Left-handed, turned, off the origin."""
    turn, _ = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [0.3, -1.0, 0.5], [0.1, 0.2, 1.0]]))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([1.5, 2.0, 3.0])
    affine[:3, 3] = (40.0, -7.0, 12.0)
    return Grid(shape, affine)


def cells(shape: tuple[int, int, int], k: int = 3, **more) -> tuple[LocalCell, torch.Tensor, Grid]:
    grid = oblique(shape)
    features = torch.randn(*shape, k, generator=draws(5), dtype=torch.float64)
    return LocalCell(features, grid, **more), features, grid


def inside(grid: Grid, count: int, *, margin: float = 0.0) -> torch.Tensor:
    """Random points of the box, and up to `margin` voxels beyond it."""
    u = torch.rand(count, 3, generator=draws(6), dtype=torch.float64)
    sizes = torch.tensor(grid.shape)
    return grid.to_world(u * (sizes + 2 * margin) - 0.5 - margin)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
def test_the_weights_are_a_partition_of_unity(shape):
    local, _, grid = cells(shape)
    described, weight = local.around(inside(grid, 200, margin=3.0))
    dims = sum(n > 1 for n in shape)
    assert weight.shape == (200, 2**dims) and described.shape == (200, 2**dims, 3 + dims)
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
def test_at_a_centre_its_cell_answers_alone(shape):
    local, features, grid = cells(shape)
    x = grid.to_world(grid.voxels(torch.arange(grid.size)).double())
    found = local.decoded(lambda h: h, x)
    torch.testing.assert_close(found[:, :3], features.reshape(-1, 3))
    torch.testing.assert_close(found[:, 3:], torch.zeros_like(found[:, 3:]), atol=1e-9, rtol=0)
    torch.testing.assert_close(local.at(x), found, atol=1e-9, rtol=0)


def test_features_alone_are_interpolated_linearly():
    """A decoder that returns z makes f trilinear interpolation: compared with scipy."""
    from scipy.ndimage import map_coordinates

    local, features, grid = cells((5, 4, 6))
    x = inside(grid, 100, margin=1.0)
    place = grid.to_voxel(x).T.numpy()
    expected = [map_coordinates(features[..., k].numpy(), place, order=1, mode="nearest") for k in range(3)]
    found = local.decoded(lambda h: h[..., :3], x)
    np.testing.assert_allclose(found.T.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 6, 1)])
def test_the_ensemble_is_continuous_where_the_nearest_cell_jumps(shape):
    local, _, grid = cells(shape)
    dims = sum(n > 1 for n in shape)
    decoder = MLP([3 + dims, 16, 2], generator=draws(7)).double()
    start, end = inside(grid, 2, margin=1.0)
    line = start + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * (end - start)
    with torch.no_grad():
        smooth, jumping = local.decoded(decoder, line).diff(dim=0), decoder(local.at(line)).diff(dim=0)
    assert smooth.abs().max() < 0.05 < jumping.abs().max()


def test_relative_places_are_in_cells_along_the_grids_axes():
    local, features, grid = cells((5, 4, 6))
    voxel = torch.tensor([[2.3, 1.8, 3.0]], dtype=torch.float64)
    found = local.at(grid.to_world(voxel))[0]
    torch.testing.assert_close(found[:3], features[2, 2, 3])
    torch.testing.assert_close(found[3:], torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)
    beyond = local.at(grid.to_world(torch.tensor([[-3.0, 1.0, 9.0]], dtype=torch.float64)))[0]
    torch.testing.assert_close(beyond[:3], features[0, 1, 5])
    torch.testing.assert_close(beyond[3:], torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_decoder_is_told_how_large_the_wanted_voxels_are():
    local, _, grid = cells((5, 6, 1), cell_mm=torch.tensor([0.75, 0.5]))
    described, _ = local.around(inside(grid, 9))
    assert local.width == described.shape[-1] == 3 + 2 + 2
    torch.testing.assert_close(described[..., -2:], torch.tensor([0.5, 0.25]).double().expand(9, 4, 2))
    with pytest.raises(ValueError, match="2 cell sizes"):
        cells((5, 6, 1), cell_mm=torch.tensor([1.0, 1.0, 1.0]))


def test_gradients_reach_points_and_features():
    grid = oblique((3, 4, 1))
    features = torch.randn(3, 4, 1, 2, generator=draws(8), dtype=torch.float64, requires_grad=True)
    x = inside(grid, 5).requires_grad_()
    decoder = MLP([4, 8, 1], generator=draws(9), activation=torch.tanh).double()
    assert torch.autograd.gradcheck(lambda f, at: LocalCell(f, grid).decoded(decoder, at), (features, x))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit a grid"):
        LocalCell(torch.zeros(3, 3, 3, 1), oblique((3, 3, 4)))
    with pytest.raises(InputError, match="more than one voxel"):
        LocalCell(torch.zeros(1, 1, 1, 2), oblique((1, 1, 1)))
