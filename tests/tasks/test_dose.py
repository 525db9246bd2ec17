import json
from dataclasses import replace

import pytest
import torch

from scanfield.codec.field_file import read_field
from scanfield.data.dicomrt import read_rtdose
from scanfield.data.dose import Dose, PlanFacts
from scanfield.data.nifti import read_nifti
from scanfield.data.structures import Structure, StructureSet
from scanfield.errors import InputError
from scanfield.methods.dose.dose_inr import Config
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.dose import store_dose

GRID = Grid.centred((24, 22, 14), (3.0, 3.0, 3.0))
CONFIG = replace(Config.fast(), bits_per_voxel=3.0, steps=200, points_per_step=1024, learning_rate=2e-3)


def ball(radius: float) -> torch.Tensor:
    return (GRID.points().double().norm(dim=1) < radius).reshape(GRID.shape)


def planned(frame: str = "1.2.3", summation: str = "PLAN") -> Dose:
    x = GRID.points().double()
    values = (5 + 65 * torch.sigmoid((14 - x.norm(dim=1)) / 3)).float().reshape(GRID.shape) * ball(30)
    return Dose(values, GRID, plan=PlanFacts(frame, ("1.2.4",), summation), source="plan.dcm")


def structures(frame: str = "1.2.3") -> StructureSet:
    return StructureSet((Structure("PTV", (ball(10), GRID)),), frame, source="structures.dcm")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("runs") / "run", seed=0)
    outcome = store_dose(planned(), "dose_inr", CONFIG, run, structures=structures(), prescribed_gy=60.0)
    return outcome, run


def test_method_and_rivals_stand_in_one_table_at_the_same_bytes(stored):
    outcome, _ = stored
    rows = {row.name: row for row in outcome.table.rows}
    assert list(rows) == ["dose_inr", "sperr", "sz3", "downsampled", "sperr-mask", "sz3-mask", "downsampled-mask"]
    size = rows["dose_inr"].values["bytes"]
    assert size == (outcome.folder / "dose.sfz").stat().st_size
    assert all(row.values["bytes"] <= size for row in rows.values())
    assert rows["dose_inr"].values["psnr_db:box"] > 30
    assert rows["dose_inr"].values["gamma:3/3"] > 90


def test_the_numbers_are_those_of_the_file(stored):
    outcome, _ = stored
    decoded = read_field(outcome.folder / "dose.sfz").render(GRID)
    assert torch.equal(decoded, outcome.pictures[0].values)
    error = float((decoded - planned().values).abs().max())
    assert outcome.table.rows[0].values["max_gy"] == pytest.approx(error)


def test_the_folder_holds_everything(stored):
    outcome, _ = stored
    folder = outcome.folder
    names = {path.name for path in folder.iterdir()}
    assert {"dose.sfz", "dose.dcm", "dvh.csv", "dvh_curves.csv", "gamma.nii.gz", "report.html", "run.json"} <= names
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "complete" and facts["task"] == "dose" and facts["unit"] == "Gy"
    assert sum(facts["rate"]["parts"].values()) == facts["rate"]["bytes"]
    assert any("no dose in this folder is meant for treatment" in note for note in facts["notes"])
    assert any(note.startswith("Conformity") for note in facts["notes"])
    assert {"gamma.png", "dvh.png"} <= {path.name for path in (folder / "figures").iterdir()}
    assert "Gamma of the decoded dose" in (folder / "report.html").read_text()
    assert (folder / "dvh.csv").read_text().count("sub-voxel") == 1
    assert read_nifti(folder / "gamma.nii.gz").grid.same_as(GRID)


def test_a_dicom_dose_is_written_back_as_dicom_of_its_plan(stored):
    back = read_rtdose(stored[0].folder / "dose.dcm")
    assert back.plan.frame_of_reference == "1.2.3" and back.plan.plans == ("1.2.4",)
    x = GRID.points()[::101].double()
    i, j, k = back.grid.to_voxel(x).round().long().unbind(1)
    assert torch.allclose(back.values[i, j, k], stored[0].pictures[0].values.flatten()[::101], atol=1e-5)


def test_without_a_folder_nothing_is_written_and_the_numbers_are_the_same(stored):
    outcome = store_dose(planned(), "dose_inr", CONFIG, Run(seed=0), structures=structures(), baselines="none")
    assert outcome.folder is None and len(outcome.table.rows) == 1
    assert outcome.table.rows[0].values["psnr_db:box"] == stored[0].table.rows[0].values["psnr_db:box"]


def test_rendered_elsewhere_the_numbers_still_refer_to_the_plan(stored):
    fine = GRID.resampled(2.0)
    outcome = store_dose(planned(), "dose_inr", CONFIG, Run(seed=0), grid=fine, baselines="none")
    assert tuple(outcome.pictures[0].values.shape) == fine.shape and len(outcome.pictures) == 1
    assert outcome.table.rows[0].values["psnr_db:box"] == stored[0].table.rows[0].values["psnr_db:box"]


def test_a_part_of_a_dose_is_a_warning():
    run = Run(seed=0)
    store_dose(planned(summation="BEAM"), "dose_inr", replace(CONFIG, steps=20), run, baselines="none")
    assert any("summation type BEAM" in warning for warning in run.warnings)


def test_a_width_that_breaks_the_budget_is_a_warning():
    run = Run(seed=0)
    store_dose(planned(), "dose_inr", replace(CONFIG, steps=8, width=90, accounting="float32"), run, baselines="none")
    assert any("more than the" in warning for warning in run.warnings)


def test_wrong_inputs_are_refused_before_anything_is_written(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match="different frames of reference"):
        store_dose(planned(), "dose_inr", CONFIG, run, structures=structures("9.9"))
    away = Structure("PTV", (ball(10), Grid.centred(GRID.shape, 3.0).moved(_shifted(500.0))))
    with pytest.raises(InputError, match="lies outside the dose grid"):
        store_dose(planned(), "dose_inr", CONFIG, run, structures=StructureSet((away,), "1.2.3"))
    with pytest.raises(InputError, match="prescribed dose must be positive"):
        store_dose(planned(), "dose_inr", CONFIG, run, prescribed_gy=0.0)
    with pytest.raises(InputError, match="does not take data of kind 'dose'"):
        store_dose(planned(), "siren", CONFIG, run)
    assert not (tmp_path / "run").exists()


def _shifted(mm: float):
    matrix = torch.eye(4).double().numpy()
    matrix[0, 3] = mm
    return matrix
