import pytest
import torch
from torch import nn

from scanfield.data.dose import Dose, PlanFacts
from scanfield.errors import InputError
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.tasks import dose_sum
from scanfield.tasks.dose_sum import accumulated
from scanfield.tasks.result import Reconstruction, Spec

GRID = Grid.centred((30, 28, 20), (2.0, 2.0, 3.0))


def blob(centre, grid: Grid = GRID, frame: str = "1") -> Dose:
    x = grid.points().double() - torch.tensor(centre)
    values = (40 * torch.exp(-((x.norm(dim=1) / 9) ** 2))).float().reshape(grid.shape)
    return Dose(values, grid, plan=PlanFacts(frame), source="blob")


def test_in_one_space_doses_add_also_from_another_grid():
    other = Grid.centred((50, 48, 40), 1.5)
    run = Run()
    total = accumulated(blob((0.0, 0.0, 0.0)), blob((4.0, 0.0, 0.0), other), None, run)
    expected = blob((0.0, 0.0, 0.0)).values + blob((4.0, 0.0, 0.0)).values
    assert (total.values - expected).abs().max() < 0.9
    assert dose_sum.PHYSICS in run.notes
    share = float(next(note for note in run.notes if "integral" in note).split(",")[1].split("%")[0])
    assert share == pytest.approx(100, abs=1.5)


class Shift(nn.Module):
    """phi(x) = x + s."""

    def __init__(self, s):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s))

    def forward(self, x):
        return x + self.s


def test_through_a_map_the_second_dose_comes_to_where_the_body_was(monkeypatch):
    """The body lies 5 mm further along x in the second image: there is its dose, and it comes back."""
    monkeypatch.setattr(dose_sum, "mapping", lambda result: result.field)
    first, second = blob((1.0, 2.0, 0.0)), blob((6.0, 2.0, 0.0), frame="2")
    with pytest.raises(InputError, match="different frames of reference"):
        accumulated(first, second, None, Run())
    spec = Spec(Domain.of_grid(GRID), GRID, "mm")
    total = accumulated(first, second, Reconstruction("shift", None, spec, Shift([5.0, 0.0, 0.0])), Run())
    assert (total.values - 2 * first.values).abs().max() < 1.2
