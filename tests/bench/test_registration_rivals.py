"""elastix and ANTs map as we do, where they are installed; and who lacks them is told what to install."""

import pytest
import torch

from scanfield.bench import registration_rivals as rivals
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import MissingExtra
from scanfield.fields.motion import Displacement
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((36, 32, 24), (3.0, 3.0, 4.0))
SHIFT = torch.tensor([4.0, -3.0, 2.0])


def image(x: torch.Tensor) -> torch.Tensor:
    """Structure everywhere, and an outline."""
    p, q, r = (x / torch.tensor([9.0, 8.0, 10.0])).unbind(-1)
    inside = torch.sigmoid((38 - x.norm(dim=-1)) / 2)
    return (inside * (3 + p.cos() * q.sin() + (q + r).cos() + (p - r).sin())).reshape(GRID.shape)


class Wave(torch.nn.Module):
    """A smooth displacement."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 1] / 9, 3 * (x[:, 2] / 20).sin(), x[:, 0] / 15], -1)


@pytest.mark.parametrize(("module", "name"), [("itk", "elastix"), ("ants", "ANTs")])
def test_a_shift_is_found_in_the_right_direction(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    monkeypatch.setattr(rivals, "ITERATIONS", (20, 10, 0, 0))
    monkeypatch.setattr(rivals, "LEVELS", 2)
    x = GRID.points()
    pair = Pair(Scan(image(x + SHIFT), GRID), Scan(image(x), GRID))
    phi = rivals.RIVALS[name](pair, Run())
    near = x[(x.norm(dim=-1) < 20)]
    assert float((phi(near) - near - SHIFT).norm(dim=-1).mean()) < 0.35 * float(SHIFT.norm())


def test_ants_reads_our_file() -> None:
    pytest.importorskip("ants")
    phi = Displacement(Wave())
    x = GRID.points()[::97]
    assert float((rivals.mapped_by_ants(phi, GRID, x) - phi(x)).norm(dim=-1).max()) < 0.01


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "itk", None)
    pair = Pair(Scan(image(GRID.points()), GRID), Scan(image(GRID.points()), GRID))
    with pytest.raises(MissingExtra, match="itk-elastix"):
        rivals.elastix(pair, Run())
