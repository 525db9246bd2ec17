import pytest
import torch

from scanfield.baselines.dose import LABELS, continued, downsampled, stored
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GRID = Grid.centred((30, 28, 20), (2.0, 2.0, 3.0))


def planned() -> torch.Tensor:
    """A smooth dose that steps to zero at the surface of a body."""
    x = GRID.points().double()
    smooth = 20 + 45 * torch.exp(-(((x - 4).norm(dim=-1) / 18) ** 2))
    return (smooth * (x.norm(dim=-1) < 27)).float().reshape(GRID.shape)


@pytest.mark.parametrize("name", LABELS)
def test_every_rival_keeps_to_the_bytes_and_says_how_many_it_used(name):
    dose = planned()
    values, size = stored(name, dose, GRID, 4000)
    assert values.shape == dose.shape and values.min() >= 0 and torch.isfinite(values).all()
    assert 2000 < size <= 4000
    assert float((values - dose).abs().mean()) < 0.2 * float(dose.mean())


@pytest.mark.parametrize("name", ["sperr", "sz3", "downsampled"])
def test_a_mask_of_the_body_pays_for_its_bytes(name):
    dose = planned()
    plain, masked = (stored(n, dose, GRID, 4000)[0] for n in (name, f"{name}-mask"))
    assert (masked[dose == 0] == 0).all()
    assert (masked - dose).square().mean() < 0.5 * (plain - dose).square().mean()


def test_more_bytes_are_a_finer_grid():
    dose = planned()
    errors = [float((downsampled(dose, GRID, size)[0] - dose).square().mean()) for size in (500, 2000, 8000)]
    assert errors[0] > errors[1] > errors[2]


def test_the_continued_dose_is_the_dose_where_there_is_any_and_smooth_beyond():
    dose = planned()
    whole = continued(dose, GRID)
    assert torch.equal(whole[dose > 0], dose[dose > 0])
    assert whole.min() > 10 and whole.max() <= dose.max()
    full = torch.full(GRID.shape, 3.0)
    assert torch.equal(continued(full, GRID), full)


def test_too_few_bytes_are_refused():
    with pytest.raises(InputError, match="do not even hold the mask"):
        stored("sperr-mask", planned(), GRID, 20)
    with pytest.raises(InputError):
        stored("downsampled", planned(), GRID, 17)
