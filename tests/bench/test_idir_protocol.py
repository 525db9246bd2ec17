"""The protocol's data, rows and checks, with fits too short to mean anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.bench.protocols import idir as protocol
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import MissingExtra
from scanfield.fields.calculus import determinant, jacobian
from scanfield.fields.image import ImageField
from scanfield.methods.registration import idir
from scanfield.run import Run
from scanfield.space.grid import Grid


def torso(shape: tuple[int, int, int] = (128, 112, 24)) -> Scan:
    """A body in HU with structure in it, wide enough for the protocol's borders."""
    grid = Grid.centred(shape, (2.5, 2.5, 8.0))
    x, y, z = grid.points().unbind(-1)
    body = (x / 130) ** 2 + (y / 115) ** 2 < 1
    inside = 60 * (x / 14).cos() * (y / 17).sin() + 40 * (z / 12 + x / 30).cos()
    return Scan(torch.where(body, inside, torch.tensor(-1000.0)).reshape(shape), grid, "HU")


def test_the_fixed_image_shows_what_the_moving_one_has_at_the_mapped_places() -> None:
    case = protocol.simulated(torso(), seed=1)
    x, y = case.marks["edges"]
    apart = (y - x).norm(dim=-1)
    assert len(x) == protocol.LANDMARKS and float(apart.mean()) > 1 and float(apart.max()) < 60
    fixed, moving = (ImageField(scan.values, scan.grid) for scan in (case.pair.fixed, case.pair.moving))
    there, here = ((fixed(x.float()) - moving(z.float())).square().mean().sqrt() for z in (y, x))
    assert float(there) < 0.25 * float(here)


def test_the_known_map_does_not_fold() -> None:
    grid = Grid.centred((60, 60, 40), (7.0, 7.0, 8.0))
    for seed in range(5):
        phi = protocol.KnownMap(grid, torch.Generator().manual_seed(seed))
        lowest = determinant(jacobian(phi, grid.points()[::37])[1]).min()
        assert float(lowest.detach()) > 0


def test_the_body_is_one_object_without_its_table() -> None:
    hu = np.full((40, 40, 5), -1000.0)
    hu[10:30, 8:28] = 40.0
    hu[15:20, 12:18] = -800.0  # a lung
    hu[5:35, 32:36] = 100.0  # a table, smaller
    body = protocol.body_mask(hu)
    assert body[17, 15].all() and body[12, 10].all() and not body[20, 34].any() and not body[2, 2].any()


def test_every_row_and_check_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(idir.Config.tiny(), steps=2, points_per_step=200)
    small = protocol.simulated(torso(), seed=1)
    liver = protocol.Case("liver", small.pair, {"liver": small.marks["edges"], "outside": small.marks["edges"]})
    names = protocol.methods("liver")
    assert names["published setting"] == replace(idir.Config(), steps=1200)
    assert names["fast"] == idir.Config.fast()
    monkeypatch.setattr(protocol, "methods", lambda case: dict.fromkeys(names, tiny))
    monkeypatch.setattr(protocol, "liver", lambda: liver)
    monkeypatch.setattr(protocol, "read_nifti", lambda path: torso())
    monkeypatch.setattr(protocol, "data_path", lambda path: path)
    monkeypatch.setattr(protocol, "BASELINES", {"still": Still()})
    monkeypatch.setattr(protocol, "RIVALS", {"elastix": lambda pair, run: torch.nn.Identity(), "ANTs": missing})
    monkeypatch.setattr(protocol, "mapped_by_ants", lambda phi, grid, x: phi(x).detach().double())
    monkeypatch.setattr(protocol, "POINTS", 50)
    result = protocol.run(Run())
    rows = [(row["pair"], row["row"]) for row in result.table if "pair" in row]
    for pair in ("liver", "CT"):
        assert (pair, "no registration") in rows and (pair, "SimpleITK B-spline") in rows and (pair, "fast") in rows
    assert next(row["step"] for row in result.table if "step" in row) == "autograd, jacobian"
    still, nothing = (
        next(r for r in result.table if r.get("row") == n) for n in ("SimpleITK B-spline", "no registration")
    )
    assert still["liver_tre_mm"] == nothing["liver_tre_mm"] > 0
    names = [check.name for check in result.checks]
    assert len(set(names)) == len(names) == 12 + 8 + 3
    assert sum("ANTs is missing" in note for note in result.notes) == 2
    assert not next(c for c in result.checks if "fall of the landmark error" in c.name).passed  # two steps fit nothing


def missing(pair: Pair, run: Run) -> torch.nn.Module:
    raise MissingExtra("antspyx", "rivals", "a rival")


class Still:
    """A rival that does nothing."""

    label = "SimpleITK B-spline"

    def register(self, pair: Pair, similarity: str, run: Run) -> torch.nn.Module:
        return torch.nn.Identity()


def test_a_plain_step_computes_the_same_loss() -> None:
    pair = protocol.simulated(torso(), seed=1).pair
    config = idir.Config(points_per_step=60, width=16)
    for regulariser in ("jacobian", "bending"):
        settings = replace(config, regulariser=regulariser)  # type: ignore[arg-type]
        ours, plain = (float(protocol._step(settings, pair, Run(seed=3), plain=p)()) for p in (False, True))  # type: ignore[arg-type]
        assert ours == pytest.approx(plain, rel=1e-3)
