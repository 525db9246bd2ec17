"""The figures of a segmentation: what is drawn, in which plane, and damaged folders."""

import numpy as np
import pytest
import torch

from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.report.notebook import segmentation_html
from scanfield.report.pictures import encode
from scanfield.report.segmentation import (
    class_colours,
    overlay_figure,
    planes,
    read_segmentation,
    segmentation_plates,
)
from scanfield.space.grid import Grid

GRID = Grid((20, 16, 12), np.diag([-1.0, 1.5, 2.0, 1.0]))
TABLE = LabelTable((0, 5, 900), ("background", "five", "nine_$hundred"))
FACTS = {"segmentation": {"file": "segmentation.nii.gz"}}


def values() -> torch.Tensor:
    labels = torch.zeros(GRID.shape, dtype=torch.int16)
    labels[3:9, 4:10, 8:11] = 5
    labels[9:12, 4:10, 8:10] = 900
    return labels


@pytest.fixture
def folder(tmp_path):
    write_nifti(tmp_path / "image.nii.gz", torch.rand(GRID.shape), GRID)
    write_nifti(tmp_path / "uncertainty.nii.gz", torch.rand(GRID.shape), GRID)
    write_nifti(tmp_path / "segmentation.nii.gz", values(), GRID)
    write_nifti(tmp_path / "reference.nii.gz", values().roll(1, 0), GRID)
    write_label_table(tmp_path / "labels.csv", TABLE)
    return tmp_path


def test_a_run_without_segmentation_has_no_figures(folder):
    assert read_segmentation(folder, {}) is None
    assert list(segmentation_plates(folder, {}, (0.0, 1.0))) == []


def test_planes_go_through_what_was_found(folder):
    record = read_segmentation(folder, FACTS)
    assert sorted(np.unique(record.classes)) == [0, 1, 2]
    found = {view.plane: view.index for view in planes(record)}
    assert found == {"axial": 9, "coronal": 7, "sagittal": 6}
    record.classes[:] = 0
    assert {view.plane: view.index for view in planes(record)}["axial"] == 9  # where the reference is
    record.reference[:] = 0
    assert {view.plane: view.index for view in planes(record)}["axial"] == 6  # the middle


def test_outlines_lie_at_half_height_around_the_pixels(folder):
    record = read_segmentation(folder, FACTS)
    view = planes(record)[0]
    axes = overlay_figure(record, view, (0.0, 1.0)).axes[0]
    outline = np.concatenate([line.get_xydata() for line in axes.lines if line.get_color() == class_colours(2)[0]])
    # 6 x 6 pixels of 1 x 1.5 mm; the first axis runs to the left in the world and to the right on screen
    assert outline.max(axis=0) - outline.min(axis=0) == pytest.approx([6.0, 9.0])
    assert outline.min(axis=0) == pytest.approx([3.0, (16 - 10) * 1.5])


def test_every_class_of_the_plane_is_in_the_legend_and_figures_are_the_same_each_time(folder):
    plates = list(segmentation_plates(folder, FACTS, (0.0, 1.0)))
    assert [plate.name for plate in plates] == ["segmentation-axial", "segmentation-coronal", "segmentation-sagittal"]
    texts = [text.get_text() for text in plates[0].figure.texts]
    assert {"five", "nine_$hundred"} <= set(texts)
    titles = [axes.get_title(loc="left") for axes in plates[0].figure.axes[:3]]
    assert titles == ["segmentation", "reference", "uncertainty"]
    again = next(iter(segmentation_plates(folder, FACTS, (0.0, 1.0))))
    assert encode(plates[0].figure, "png") == encode(again.figure, "png")
    (folder / "reference.nii.gz").unlink()
    plate = next(iter(segmentation_plates(folder, FACTS, (0.0, 1.0))))
    assert len(plate.figure.axes) == 3 and "reference" not in plate.caption  # two panels and the scale


def test_nothing_found_is_drawn_too(folder):
    write_nifti(folder / "segmentation.nii.gz", torch.zeros(GRID.shape, dtype=torch.uint8), GRID)
    (folder / "reference.nii.gz").unlink()
    assert len(list(segmentation_plates(folder, FACTS, (0.0, 1.0)))) == 3
    assert segmentation_html(read_segmentation(folder, FACTS)).startswith("<img alt=")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "uncertainty.nii.gz").unlink(), "no such file"),
        (lambda f: (f / "labels.csv").write_text("value\n1\n"), "no column 'name'"),
        (lambda f: write_nifti(f / "segmentation.nii.gz", 3 * values(), GRID), "values outside the table"),
        (lambda f: write_nifti(f / "uncertainty.nii.gz", torch.rand(4, 4, 4), Grid((4, 4, 4), np.eye(4))), "same grid"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(InputError, match=said):
        read_segmentation(folder, FACTS)


def test_colours_repeat_after_all_have_been_used():
    assert len(set(class_colours(13))) == 13 and class_colours(14)[13] == class_colours(1)[0]
