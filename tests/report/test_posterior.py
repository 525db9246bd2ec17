"""The figures of a posterior, from a RUN folder written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.report.pictures import encode
from scanfield.report.posterior import calibration_figure, deviation_figure, posterior_plates, read_posterior
from scanfield.report.record import read_record
from scanfield.space.grid import Grid

LEVELS = [round(0.05 * k, 2) for k in range(20)]
CURVE = {"levels": LEVELS, "observed": [0.9 * p for p in LEVELS], "ece": 0.0475, "rank_correlation": 0.42}
FACTS = {
    "posterior": {"count": 50, "calibration": {"reference": CURVE, "held-out": CURVE | {"rank_correlation": None}}}
}


def _folder(path, shape=(12, 10, 1), **changes):
    grid = Grid.centred(shape, (2.0, 2.0, 3.0))
    generator = torch.Generator().manual_seed(0)
    for name in ("truth", "ours", "deviation"):
        write_nifti(path / f"{name}.nii.gz", torch.rand(shape, generator=generator), grid, unit="1/mm")
    kinds = {"truth": "reference", "ours": "method"}
    images = [{"name": n, "label": n, "kind": k, "file": f"{n}.nii.gz"} for n, k in kinds.items()]
    facts = {
        "schema": 1,
        "method": "uncertainr",
        "status": "complete",
        "unit": "1/mm",
        "images": images,
        **FACTS,
        **changes,
    }
    (path / "run.json").write_text(json.dumps(facts))
    return path


def test_a_run_without_a_posterior_has_no_plates(tmp_path):
    folder = _folder(tmp_path, posterior=None)
    assert read_posterior(folder, {"posterior": None}) is None
    assert list(posterior_plates(folder, read_record(folder), (0.0, 1.0))) == []


@pytest.mark.parametrize(("shape", "count"), [((12, 10, 1), 2), ((12, 10, 8), 4)])
def test_a_figure_a_view_and_one_of_the_calibration(tmp_path, shape, count):
    folder = _folder(tmp_path, shape)
    plates = list(posterior_plates(folder, read_record(folder), (0.0, 1.0)))
    assert len(plates) == count and plates[-1].name == "calibration"
    assert "50 samples" in plates[0].caption and "how far the mean is from the truth" in plates[0].caption
    legend = plates[-1].figure.axes[0].get_legend().get_texts()
    assert [text.get_text().split("\n")[0] for text in legend] == ["against the reference", "on held-out data"]
    assert "rank correlation 0.42" in legend[0].get_text() and "rank" not in legend[1].get_text()


def test_figures_show_the_numbers_and_are_the_same_each_time(tmp_path):
    found = read_posterior(_folder(tmp_path), FACTS)
    line = calibration_figure(found).axes[0].lines[1]
    assert np.allclose(line.get_xdata(), np.array(LEVELS) * 100) and np.allclose(
        line.get_ydata(), np.array(LEVELS) * 90
    )
    mean, truth = np.full((10, 12), 0.5), np.full((10, 12), 0.25)
    figures = [deviation_figure(found, 0, mean, truth, (0.0, 1.0), "1/mm") for _ in range(2)]
    assert encode(figures[0], "png", 60) == encode(figures[1], "png", 60)
    shown = [axes.images[0].get_array() for axes in figures[0].axes if axes.images]
    assert np.allclose(shown[2], 0.25)
    assert len(deviation_figure(found, 0, mean, None, (0.0, 1.0), "1/mm").axes) == 3  # two panels and the bar


@pytest.mark.parametrize(
    "posterior",
    [
        {"count": "many", "calibration": {}},
        {"count": 5, "calibration": {"reference": {"levels": [0.5], "observed": []}}},
        {"count": 5, "calibration": {"reference": {"levels": [0.5], "observed": [7]}}},
        {"count": 5, "calibration": []},
        [],
    ],
)
def test_a_damaged_record_is_refused(tmp_path, posterior):
    with pytest.raises(InputError, match="'posterior' cannot be read"):
        read_posterior(_folder(tmp_path), {"posterior": posterior})
