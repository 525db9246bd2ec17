"""The protocol's data, rows and checks, with fits too short to mean anything."""

from dataclasses import replace

import pytest
import torch

from scanfield.bench.protocols import nir as protocol
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.fitting import align
from scanfield.methods.registration import nir
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((24, 22, 20), (4.0, 4.0, 4.0))


def person(shift: float) -> tuple[Scan, Scan]:
    """A ball with a core, and its labels on a finer grid."""

    def distance(grid: Grid) -> torch.Tensor:
        return (grid.points() - torch.tensor([shift, 0.0, 0.0])).norm(dim=-1).reshape(grid.shape)

    near, fine = distance(GRID), GRID.resampled(2.0)
    values = torch.where(near < 32, 100.0 + 20 * (near / 4).cos(), torch.tensor(0.0))
    labels = (distance(fine) < 30).long() + (distance(fine) < 15).long()
    return Scan(values, GRID, mask=values > 0), Scan(labels, fine)


def case(name: str = "a and b", *, affine: bool = True) -> protocol.Case:
    (fixed, first), (moving, second) = person(0.0), person(6.0)
    return protocol.Case(name, Pair(fixed, replace(moving, mask=None)), (first, second), affine)


def test_the_bias_field_is_smooth_and_as_strong_as_stated() -> None:
    scan = case().pair.fixed
    field = (protocol.biased(scan, 3).values / scan.values)[scan.values > 0].log()
    assert 0.3 < float(field.max() - field.min()) <= 2 * protocol.BIAS + 1e-4
    whole = protocol.biased(replace(scan, values=torch.ones(GRID.shape)), 3).values.log()
    assert float(whole.abs().max()) == pytest.approx(protocol.BIAS, abs=1e-4)
    assert float(whole.diff(n=3, dim=0).abs().max()) < 1e-3  # of second degree


def test_every_row_and_check_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(nir.Config.tiny(), steps=2, patch_size=6)
    monkeypatch.setattr(align, "STEPS", 25)
    monkeypatch.setattr(nir.Config, "fast", staticmethod(lambda: tiny))
    monkeypatch.setattr(protocol, "brains", lambda a, b: case(a + b))
    monkeypatch.setattr(protocol, "slabs", lambda a, b: case("slabs", affine=False))
    monkeypatch.setattr(protocol, "BASELINES", {})
    monkeypatch.setattr(protocol, "RIVALS", {"still": lambda pair, run: torch.nn.Identity()})
    monkeypatch.setattr(protocol, "PROBES", 500)
    result = protocol.run(Run())
    names = [check.name for check in result.checks]
    assert len(set(names)) == len(names) == 18
    first = {row["row"]: row for row in result.table if row["pair"] == "10071113"}
    assert first["affine"]["dice"] > first["no registration"]["dice"] + 0.02
    assert first["still"]["dice"] == pytest.approx(first["affine"]["dice"], abs=0.02)  # the rivals start from there
    assert len(first) == 3 + 2 * 6 - 1
    assert not next(c for c in result.checks if "Dice over the start" in c.name).passed  # two steps fit nothing
