import csv

import numpy as np
import pytest
import torch

from scanfield.data.dose import Dose
from scanfield.data.structures import Structure, StructureSet
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.tasks.dosimetry import Dosimetry, masks_of, named

GRID = Grid.centred((20, 18, 12), (3.0, 3.0, 3.0))


def ball(radius: float, centre=(0.0, 0.0, 0.0)) -> torch.Tensor:
    return ((GRID.points().double() - torch.tensor(centre)).norm(dim=1) < radius).reshape(GRID.shape)


def planned() -> Dose:
    x = GRID.points().double()
    return Dose((70 * torch.exp(-((x.norm(dim=1) / 22) ** 4))).float().reshape(GRID.shape) * ball(25), GRID)


def structures() -> StructureSet:
    shapes = {"PTV": ball(10), "Cord": ball(6, (18.0, 0.0, 0.0))}
    return StructureSet(tuple(Structure(name, (mask, GRID)) for name, mask in shapes.items()), source="file")


@pytest.fixture
def judge() -> Dosimetry:
    masks, partly = masks_of(structures(), planned())
    assert partly == []
    return Dosimetry(planned(), masks, prescribed_gy=60.0)


def test_the_plan_itself_is_perfect(judge):
    row, found = judge.row("plan", "plan", "method", planned().values.clone(), 1000, 1.0)
    assert row.values["max_gy"] == 0 and row.values["gamma:3/3"] == 100 and row.values["dice:95"] == 1
    assert row.values["d95_gy"] == 0 and row.values["mean_percent"] == 0 and row.values["gradient"] == 0
    assert row.values["bits_per_voxel"] == pytest.approx(8000 / int(judge.box.sum()))
    assert found.passing_percent == 100


def test_an_even_shift_is_found_in_every_number(judge):
    dose = (planned().values + 2.9) * (planned().values > 0)
    values = judge.row("shifted", "shifted", "method", dose, 1000, 1.0)[0].values
    assert values["max_gy"] == pytest.approx(2.9, abs=1e-4) and values["d95_gy"] == pytest.approx(2.9, abs=1e-4)
    mean = float(planned().values[ball(10)].mean())
    assert values["mean_percent"] == pytest.approx(100 * 2.9 / mean, rel=1e-3)
    assert values["gamma:3/3"] < 100, "2.1 Gy are allowed where the dose is even"
    assert {column.key for column in judge.columns()} == set(values)


def test_targets_are_known_by_their_names(judge):
    assert judge.targets == ["PTV"]
    masks = {"Cord": ball(6)}
    assert Dosimetry(planned(), masks).targets == ["Cord"]
    assert Dosimetry(planned(), masks).coverage(planned().values) == {}
    coverage = judge.coverage(planned().values)
    assert set(coverage) == {"PTV"} and 0 < coverage["PTV"] < 1


def test_without_structures_there_are_no_columns_about_them():
    judge = Dosimetry(planned(), {})
    keys = {column.key for column in judge.columns()}
    values = judge.row("plan", "plan", "method", planned().values, 10, 0.0)[0].values
    assert keys == set(values) and "d95_gy" not in keys


def test_the_numbers_of_every_structure_are_written(judge, tmp_path):
    judge.collect("PTV", "plan", planned().values[ball(10)])
    judge.row("field", "field", "method", 0.9 * planned().values, 1000, 1.0)
    judge.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "dvh.csv").open()))
    assert [(row["structure"], row["dose"]) for row in rows] == [("PTV", "plan"), ("PTV", "field"), ("Cord", "field")]
    assert float(rows[1]["D95_Gy"]) == pytest.approx(0.9 * float(rows[0]["D95_Gy"]), rel=1e-3)
    assert float(rows[0]["V20Gy_percent"]) == 100
    with (tmp_path / "dvh_curves.csv").open() as file:
        head, *lines = list(csv.reader(file))
    assert head == ["dose_Gy", "PTV|plan", "PTV|field", "Cord|field"]
    curves = np.array(lines, dtype=float)
    assert (curves[0, 1:] == 100).all() and (np.diff(curves[:, 1:], axis=0) <= 0).all()


def test_structures_that_leave_the_grid_are_named():
    part = Grid((12, 18, 12), GRID.affine)
    dose = Dose(planned().values[:12].contiguous(), part)
    with pytest.raises(InputError, match="'Cord' lies outside"):
        masks_of(structures(), dose)
    partly = StructureSet((Structure("Body", (ball(26), GRID)),))
    _, sentences = masks_of(partly, dose)
    assert len(sentences) == 1 and "% of the structure 'Body' lies in the dose grid" in sentences[0]
    twice = StructureSet((structures().structures[0],) * 2)
    with pytest.raises(InputError, match="two structures are called 'PTV'"):
        masks_of(twice, planned())
    assert set(named(structures())) == {"PTV", "Cord"}
