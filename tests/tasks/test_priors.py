"""A prior brought to a scan: placed, judged by the measurement itself, refused where it cannot be the same object."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.operators.siddon import project_voxels
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.tasks.folder import Picture
from scanfield.tasks.priors import agreement, placed_prior, score_change
from scanfield.tasks.table import Row, Table

GRID = Grid.centred((24, 20, 1), (2.0, 2.0, 3.0))
GEOMETRY = ProjectionGeometry("parallel", np.arange(12) * 15.0, Detector("flat", (1, 34), (3.0, 2.0)), GRID)


def body(grid, value=0.02):
    x = grid.points()
    disc = ((x[:, :2] - torch.tensor([3.0, -2.0])).norm(dim=1) < 14) * value
    return Scan(disc.reshape(grid.shape).float(), grid, "1/mm", source="earlier.nii.gz")


DATA = Measurement(project_voxels(body(GRID).values, GRID, GEOMETRY), GEOMETRY)


def test_the_same_body_on_the_same_grid_is_left_as_it_is():
    run = Run()
    placed = placed_prior(body(GRID), DATA, run)
    assert torch.equal(placed.values, body(GRID).values) and placed.mask is None
    factor, misfit = agreement(placed, DATA, "cpu")
    assert factor == pytest.approx(1.0, abs=0.01) and misfit < 0.05  # Joseph's integrals against exact ones
    assert run.warnings == [] and any("unexplained" in note for note in run.notes)


def test_another_grid_is_resampled_and_said():
    run = Run()
    fine = Grid.centred((60, 50, 3), (1.0, 1.0, 1.5))
    placed = placed_prior(body(fine), DATA, run)
    assert placed.grid.same_as(GRID)
    assert float((placed.values - body(GRID).values).abs().mean()) < 0.001
    assert any("resampled" in note for note in run.notes) and run.warnings == []


def test_a_prior_that_covers_a_part_is_warned_about_and_masked():
    run = Run()
    part = Grid.centred((16, 20, 1), (2.0, 2.0, 3.0))
    placed = placed_prior(body(part), DATA, run)
    assert placed.mask is not None and int(placed.mask.sum()) == 16 * 20
    assert any("covers 66.7 %" in warning for warning in run.warnings)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (body(GRID.moved(np.array([[1, 0, 0, 40.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))), "covers only 17 %"),
        (body(GRID, value=0.2), "attenuates 9.98 times as much as the scan: it has another unit"),  # 1/cm
        (body(GRID, value=0.002), "attenuates 0.0998 times"),
        (body(GRID, value=0.0), "the prior is empty"),
    ],
)
def test_what_cannot_be_this_object_is_refused(prior, message):
    with pytest.raises(InputError, match=message) as error:
        placed_prior(prior, DATA, Run())
    assert error.value.where == "earlier.nii.gz"


def test_another_patient_and_another_energy_are_warned_about():
    run = Run()
    x = GRID.points()
    other = ((x[:, :2] + torch.tensor([8.0, -6.0])).norm(dim=1) < 14).reshape(GRID.shape) * 0.02
    placed_prior(replace(body(GRID), values=other), DATA, run)
    assert any("may be out of place, or of another patient" in warning for warning in run.warnings)
    run = Run()
    placed_prior(body(GRID, value=0.025), DATA, run)
    assert any("attenuates 1.25 times as much" in warning for warning in run.warnings)


def test_the_table_says_what_of_the_change_is_shown():
    old = body(GRID).values
    new = old.clone()
    new[10:13, 8:11] += 0.004
    images = {"all": new, "half": (old + new) / 2, "prior": old}
    table = Table([], [Row(name, name, "baseline") for name in images])
    pictures = [Picture(name, name, "baseline", values) for name, values in images.items()]
    pictures.append(Picture("reference", "reference", "reference", new))
    score_change(table, pictures, old, new, torch.ones(GRID.shape, dtype=torch.bool))
    shown = [row.values["recovered:reference"] for row in table.rows]
    assert shown == pytest.approx([100, 50, 0], abs=1e-3)
    errors = [row.values["psnr_db_changed:reference"] for row in table.rows]
    assert errors[0] == float("inf") and errors[1] - errors[2] == pytest.approx(6.02, abs=0.01)
    assert {column.key for column in table.columns} == {"psnr_db_changed:reference", "recovered:reference"}
    unchanged = Table([], [Row("prior", "prior", "baseline")])
    score_change(unchanged, pictures[2:], old, old, torch.ones(GRID.shape, dtype=torch.bool))
    assert unchanged.columns == []
