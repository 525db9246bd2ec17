import pytest
import torch

from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.report.dose import gamma_figure, histogram_figure, read_dose_record
from scanfield.report.pictures import encode
from scanfield.space.grid import Grid

GRID = Grid.centred((12, 10, 8), (2.0, 2.0, 3.0))
CURVES = "dose_Gy,A|b|plan,A|b|field,B|plan\n0.000,100,100,100\n10.000,50,49,0\n20.000,0,0,0\n"


def folder(path, curves: str | None = CURVES):
    write_nifti(path / "gamma.nii.gz", torch.rand(GRID.shape), GRID, unit="1")
    if curves is not None:
        (path / "dvh_curves.csv").write_text(curves)
    return path


def test_a_folder_without_a_dose_has_no_record(tmp_path):
    assert read_dose_record(tmp_path) is None


def test_both_figures_are_drawn_and_the_same_each_time(tmp_path):
    record = read_dose_record(folder(tmp_path))
    assert set(record.curves) == {("A|b", "plan"), ("A|b", "field"), ("B", "plan")}
    assert len(record.views) == 3 and record.gamma[0].shape == (10, 12)
    figure = histogram_figure(record, ("plan", "field"))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["A|b", "B"] and len(figure.axes[0].lines) == 3
    for draw in (lambda: gamma_figure(record), lambda: histogram_figure(record, ("plan", "field"))):
        assert encode(draw(), "png") == encode(draw(), "png")


def test_without_structures_there_is_a_gamma_map_alone(tmp_path):
    record = read_dose_record(folder(tmp_path, None))
    assert record.curves == {} and encode(gamma_figure(record), "svg").startswith(b"<?xml")


@pytest.mark.parametrize(
    "text", ["", "dose_Gy,A|plan\n0,x\n1,2\n", "dose_Gy,A|plan\n0,1\n", "dose_Gy,A|plan\n0,nan\n1,2\n"]
)
def test_damaged_histograms_are_refused(tmp_path, text):
    with pytest.raises(InputError, match="histograms"):
        read_dose_record(folder(tmp_path, text))
