import pytest
import torch

from scanfield.errors import InputError
from scanfield.operators.coils import analytic_sensitivities, combine, estimate_sensitivities, root_sum_of_squares
from scanfield.space.grid import Grid

GRID = Grid.centred((24, 20, 1), (2.0, 2.0, 5.0))


def image():
    x = GRID.points() / torch.tensor([20.0, 16.0, 1.0])
    inside = (x[:, :2].square().sum(-1) < 1).reshape(GRID.shape)
    texture = 1 + 0.3 * torch.sin(3 * x.sum(-1)).reshape(GRID.shape)
    return inside * texture * torch.exp(0.5j * x[:, 0].reshape(GRID.shape)), inside


def test_analytic_coils_see_what_is_near_and_turn_with_their_place():
    maps = analytic_sensitivities(GRID, 4)
    assert maps.shape == (4, *GRID.shape) and torch.isfinite(maps.abs()).all()
    assert maps[0].abs()[-1, 10, 0] > 3 * maps[0].abs()[0, 10, 0]  # the first coil is at +x
    assert maps[1].abs()[12, -1, 0] > 3 * maps[1].abs()[12, 0, 0]  # the second at +y
    assert float(root_sum_of_squares(maps)[11:13, 9:11].mean()) == pytest.approx(1, abs=0.02)
    square = Grid.centred((15, 15, 1), 2.0)
    one, two = analytic_sensitivities(square, 4)[:2, :, :, 0]
    turned = torch.rot90(one, 1, (0, 1)) * -1j  # a quarter turn of the loop turns the field's direction as well
    torch.testing.assert_close(two, turned, atol=1e-5, rtol=1e-4)


def test_combining_inverts_the_coils():
    maps, (truth, _) = analytic_sensitivities(GRID, 6), image()
    torch.testing.assert_close(combine(maps * truth, maps), truth)
    series = torch.stack([truth, 2 * truth])
    torch.testing.assert_close(combine(maps * series[:, None], maps), series)
    blind = maps.clone()
    blind[:, :3] = 0
    assert not combine(blind * truth, blind)[:3].any()


@pytest.mark.parametrize("coils", [1, 3, 8])
def test_estimated_sensitivities_are_the_true_ones_up_to_a_common_factor(coils):
    maps, (truth, inside) = analytic_sensitivities(GRID, coils), image()
    found = estimate_sensitivities(maps * truth, window=3)
    expected = maps / root_sum_of_squares(maps)
    overlap = (found.conj() * expected).sum(0).abs()[inside]
    assert overlap.min() > 0.995 and overlap.mean() > 0.9995
    torch.testing.assert_close(root_sum_of_squares(found), torch.ones(GRID.shape))


def test_estimated_phases_are_smooth():
    maps, (truth, inside) = analytic_sensitivities(GRID, 8), image()
    found = estimate_sensitivities(maps * truth)
    both = (inside[1:] & inside[:-1])[None].expand(8, -1, -1, -1)
    assert (found[:, 1:] - found[:, :-1]).abs()[both].max() < 0.2


def test_refuses():
    with pytest.raises(InputError, match="at least one coil"):
        analytic_sensitivities(GRID, 0)
    with pytest.raises(InputError, match="odd number"):
        estimate_sensitivities(torch.ones(2, 4, 4, 1, dtype=torch.complex64), window=4)
    with pytest.raises(InputError, match="zero everywhere"):
        estimate_sensitivities(torch.zeros(2, 4, 4, 1, dtype=torch.complex64))
    with pytest.raises(InputError, match="at least one coil"):
        estimate_sensitivities(torch.zeros(0, 4, 4, 1, dtype=torch.complex64))
