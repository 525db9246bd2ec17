"""The pipeline around a classifier: what is written, on which grid, how it is judged, and what is refused or warned."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.labels import LabelTable, read_label_table
from scanfield.data.meshes import read_mesh
from scanfield.data.nifti import nifti_layout, read_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError, MissingExtra
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.segmentation import file_names, segment

TURN = np.array([[0.8, -0.6, 0, -150], [0.6, 0.8, 0, 40], [0, 0, -1, 90], [0, 0, 0, 1.0]])
GRID = Grid((26, 24, 14), TURN @ np.diag([1.0, 1.2, 2.0, 1.0]))
RADII = 9.0, 5.0  # mm where the intensity falls to 20 and to 50


def cone(grid: Grid) -> torch.Tensor:
    """87.5 in the middle, falling by 7.5 a mm: 20 at 9 mm, 50 at 5 mm."""
    distance = (grid.points().double() - torch.tensor(GRID.centre_mm)).norm(dim=-1)
    return (87.5 - 7.5 * distance).clamp(min=0).reshape(grid.shape).float()


def image(grid: Grid = GRID) -> Scan:
    return Scan(cone(grid), grid, source="cone.nii.gz")


def truth(grid: Grid = GRID) -> Scan:
    values = cone(grid)
    return Scan(torch.where(values > 50, 7.0, torch.where(values > 20, 3.0, 0.0)), grid, source="truth.nii.gz")


def test_a_folder_holds_classes_uncertainty_surfaces_and_volumes(thresholds, tmp_path):
    outcome = segment(image(), thresholds, Run(tmp_path / "run"), reference=truth())
    folder = tmp_path / "run"
    layout = nifti_layout(folder / "segmentation.nii.gz")
    assert layout.dtype == np.uint8 and layout.grid.same_as(GRID)
    assert torch.equal(read_nifti(folder / "segmentation.nii.gz").values, truth().values)
    assert read_label_table(folder / "labels.csv") == LabelTable((0, 3, 7), ("background", "rim", "core"))
    uncertainty = read_nifti(folder / "uncertainty.nii.gz").values
    assert 0 <= float(uncertainty.min()) < 0.1 and 0.5 < float(uncertainty.max()) <= 1
    assert torch.equal(read_nifti(folder / "image.nii.gz").values, cone(GRID))

    facts = json.loads((folder / "run.json").read_text())
    assert (facts["task"], facts["program"], facts["status"]) == ("segmentation", "segment", "complete")
    assert facts["model"] == thresholds.key and facts["licence"] == "CC0"
    rim, core = facts["segmentation"]["classes"]
    assert (rim["value"], rim["name"], core["surface"]) == (3, "rim", "surface_core.ply")
    assert core["volume_ml"] == pytest.approx(4 / 3 * np.pi * RADII[1] ** 3 / 1000, rel=0.05)
    assert outcome.volume_ml("rim") == pytest.approx(rim["volume_ml"])
    mesh = read_mesh(folder / "surface_core.ply")
    radius = np.linalg.norm(mesh.vertices - GRID.centre_mm, axis=1)
    assert mesh.closed and np.abs(radius - RADII[1]).max() < 0.35  # trilinear chords of voxels up to 2 mm
    assert read_mesh(folder / "surface_rim.ply").components == 2  # an outer and an inner surface
    page = (folder / "report.html").read_text()
    assert "Segmentation" in page and "Thresholds" in page and "HD95" in page


def test_every_voxel_right_means_dice_1_and_no_distance(thresholds):
    outcome = segment(image(), thresholds, Run(), reference=truth())
    head, rim, core = outcome.table.rows
    for row in (head, rim, core):
        assert row.values["dice"] == row.values["surface_dice"] == 1.0
        assert row.values["assd_mm"] < 1e-9 and row.values["hausdorff95_mm"] < 1e-9
    assert (head.label, head.kind, core.kind) == ("Thresholds", "method", "class")
    assert head.values["reference_ml"] == pytest.approx(rim.values["volume_ml"] + core.values["volume_ml"])
    assert outcome.warnings == []


def test_another_grid_asks_the_model_there_and_judges_on_the_reference_s_own(thresholds):
    fine = GRID.resampled(0.8)
    run = Run()
    outcome = segment(image(), thresholds, run, grid=fine, reference=truth(), surfaces="none")
    assert outcome.grid.same_as(fine) and outcome.surfaces == {}
    exact = truth(fine).values
    assert float((outcome.values() == exact).float().mean()) > 0.97
    assert outcome.reference is not None and outcome.reference.shape == fine.shape
    assert all(row.values["dice"] == 1.0 for row in outcome.table.rows)  # on the reference's voxels
    assert any("reference's own grid" in note for note in run.notes)
    assert outcome.found.asked == fine.size


def test_refinement_and_the_largest_part(thresholds):
    scan = image()
    scan.values[1:3, 1:3, 1:3] = 80.0
    plain = segment(scan, thresholds, Run())
    run = Run()
    largest = segment(scan, thresholds, run, largest=True)
    assert plain.volume_ml("core") - largest.volume_ml("core") == pytest.approx(8 * GRID.voxel_volume_mm3 / 1000)
    assert any("apart from its largest part" in note for note in run.notes)
    refined = segment(image(), thresholds, Run(), refine=True)
    assert torch.equal(refined.values(), truth().values.to(torch.uint8))
    assert refined.found.asked <= GRID.size


def test_classes_that_are_missing_are_said_and_do_not_count_twice(thresholds):
    dim = Scan(0.4 * cone(GRID), GRID)  # nothing above 50
    run = Run()
    outcome = segment(dim, thresholds, run, reference=truth())
    assert "no voxel is 'core'" in run.warnings
    assert any("'core' is in the reference alone" in sentence for sentence in run.warnings)
    head, rim, core = outcome.table.rows
    assert core.values["dice"] == 0.0 and "assd_mm" not in core.values
    assert head.values["dice"] == pytest.approx(rim.values["dice"] / 2)
    assert 2 not in outcome.surfaces
    only_rim = truth()
    only_rim.values[only_rim.values == 7] = 3
    run = Run()
    outcome = segment(dim, thresholds, run, reference=only_rim)
    assert any("'core' is neither in the reference nor" in note for note in run.notes)
    assert outcome.table.rows[0].values["dice"] == outcome.table.rows[1].values["dice"]


def test_images_far_from_the_training_s_are_warned_about(thresholds):
    coarse = Grid((10, 9, 8), TURN @ np.diag([2.5, 3.0, 4.0, 1.0]))
    run = Run()
    segment(image(coarse), thresholds, run, surfaces="none")
    assert any("voxels of 2.5 x 3 x 4 mm are far" in sentence for sentence in run.warnings)
    turned = Grid((14, 26, 24), GRID.affine[:, [2, 0, 1, 3]])  # the same voxels in another order
    run = Run()
    segment(image(turned), thresholds, run, surfaces="none")
    assert run.warnings == []
    run = Run()
    segment(Scan(40 * cone(GRID), GRID), thresholds, run, surfaces="none")
    assert any("unlike all that the model has learned from" in sentence for sentence in run.warnings)
    run = Run()
    segment(Scan(cone(GRID) + 1000, GRID), thresholds, run, surfaces="none")
    assert any("intensities from 1000" in sentence for sentence in run.warnings)
    run = Run()
    segment(Scan(0.8 * cone(GRID), GRID), thresholds, run, surfaces="none")
    assert run.warnings == []


def test_slices_have_no_surfaces_and_a_report(thresholds, tmp_path):
    flat = GRID.slice(7)
    outcome = segment(image(flat), thresholds, Run(tmp_path / "run"), reference=truth(flat))
    assert outcome.surfaces == {} and not list((tmp_path / "run").glob("surface*"))
    assert outcome.table.rows[0].values["assd_mm"] < 1e-9
    assert (tmp_path / "run" / "report.html").is_file()


def test_wrong_input_is_refused_before_anything_is_written(thresholds, tmp_path):
    def refused(match, scan=None, model=None, **more):
        with pytest.raises(InputError, match=match):
            segment(scan or image(), model or thresholds, Run(tmp_path / "run"), **more)
        assert not (tmp_path / "run").exists()

    refused("one channel", Scan(torch.zeros(*GRID.shape, 2), GRID))
    refused("values outside the table: 9", reference=Scan(torch.full(GRID.shape, 9.0), GRID, source="labels.nii.gz"))
    far = GRID.moved(np.array([[1, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    refused("reference does not overlap", reference=Scan(truth().values, far))
    refused("grid that was asked for does not overlap", grid=far)
    refused("tolerance .* must be positive", reference=truth(), tolerance_mm=0.0)
    refused("two axes of more than one voxel", image(Grid((26, 1, 1), GRID.affine)))  # the classifier's own complaint
    refused("label table needs", model=replace_facts(thresholds, labels=None))


def replace_facts(model, **more):
    return replace(model, facts=model.facts | more)


def test_a_model_of_another_task_is_refused(thresholds):
    thresholds.method = "coinpp"
    with pytest.raises(InputError, match="which does not segment") as refused:
        segment(image(), thresholds, Run())
    assert "thresholds" in refused.value.fix


def test_a_second_run_needs_another_folder_or_force(thresholds, tmp_path):
    segment(image(), thresholds, Run(tmp_path), surfaces="surf.gii")
    assert {p.name for p in tmp_path.glob("surface*")} == {"surface_core.surf.gii", "surface_rim.surf.gii"}
    with pytest.raises(InputError, match="already holds a run") as taken:
        segment(image(), thresholds, Run(tmp_path))
    assert "--resume" not in taken.value.fix
    segment(image(), thresholds, Run(tmp_path, replace=True), surfaces="none")
    assert not list(tmp_path.glob("surface*"))


@pytest.mark.parametrize("replace_run", [False, True])
def test_a_folder_of_other_files_is_left_alone(thresholds, tmp_path, replace_run):
    (tmp_path / "image.nii.gz").write_bytes(b"the only copy")
    with pytest.raises(InputError, match="holds no run, but 'image"):
        segment(image(), thresholds, Run(tmp_path, replace=replace_run))
    assert (tmp_path / "image.nii.gz").read_bytes() == b"the only copy" and len(list(tmp_path.iterdir())) == 1


def test_surfaces_have_names_that_every_file_system_takes():
    table = LabelTable((0, 1, 2, 3, 4), ("background", "left lung (upper)", "a/b", "A b", "../x"))
    names = file_names(table, [1, 2, 3, 4], "ply")
    assert names[1] == "surface_left_lung_upper.ply"
    assert names[2] == "surface_a_b_2.ply" and names[3] == "surface_A_b_3.ply"
    assert names[4] == "surface_x.ply"


def test_it_shows_itself_in_a_notebook(thresholds, tmp_path, monkeypatch):
    class Widget:
        def load_volumes(self, volumes):
            self.volumes = volumes

    module = types.ModuleType("ipyniivue")
    module.NiiVue = Widget
    monkeypatch.setitem(sys.modules, "ipyniivue", module)
    outcome = segment(image(), thresholds, Run(tmp_path / "run"), surfaces="none")
    shown = outcome._repr_html_()
    assert shown.count("data:image/png;base64,") == 1 and "rim" in shown and "volume [ml]" in shown
    volumes = outcome.view().volumes
    assert [Path(v["path"]).name for v in volumes] == ["image.nii.gz", "segmentation.nii.gz", "uncertainty.nii.gz"]
    assert all(Path(v["path"]).is_file() for v in volumes)
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(MissingExtra, match="ipyniivue"):
        outcome.view()
    monkeypatch.setitem(sys.modules, "ipyniivue", module)
    outcome.folder = None
    with pytest.raises(InputError, match="in memory"):
        outcome.view()


def test_a_class_that_does_not_exist_has_no_volume(thresholds):
    with pytest.raises(InputError, match="no class 'liver'"):
        segment(image(), thresholds, Run(), surfaces="none").volume_ml("liver")
