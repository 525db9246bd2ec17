"""Figures of slices: read from a folder that is not trusted."""

import json

import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.report.pictures import encode
from scanfield.report.stacks import motion_figure, read_slices, slices_figure


def write(folder, change=None, images=None):
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    turned[:3, 3] = (3.0, 4.0, 0.0)
    entries = [
        {
            "stack": k % 2, "number": k, "pose": turned.tolist(), "initial_pose": np.eye(4).tolist(),
            "weight": 1 - 0.1 * k, "scale": 1.0, "soundness": 1 - 0.1 * k, "ncc": None if k == 3 else 0.9,
        }
        for k in range(8)
    ]  # fmt: skip
    entries[0] |= change or {}
    (folder / "slices.json").write_text(json.dumps({"slices": entries}))
    image = np.random.default_rng(0).random((9, 7))
    arrays = {"index": np.array([7, 2])} | {f"{n}{k}": image for n in ("measured", "before", "after") for k in (0, 1)}
    np.savez(folder / "slices.npz", **(arrays | (images or {})))


def test_motion_is_that_of_the_poses(tmp_path):
    write(tmp_path)
    records = read_slices(tmp_path)
    assert len(records.slices) == 8 and records.shown == (7, 2)
    assert records.slices[0].rotation_deg == pytest.approx(np.degrees(0.1))
    assert records.slices[0].translation_mm == pytest.approx(5.0)
    assert records.slices[3].ncc is None


def test_both_figures_are_drawn(tmp_path):
    write(tmp_path)
    records = read_slices(tmp_path)
    for figure in (slices_figure(records), motion_figure(records)):
        assert encode(figure, "png")[:4] == b"\x89PNG"
    labels = [text.get_text() for text in motion_figure(records).axes[2].get_yticklabels()]
    assert labels[-1] == "1:7  NCC 0.90"  # the least weight stands on top


def test_a_run_without_slices_has_no_figures(tmp_path):
    assert read_slices(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "images"),
    [
        ({"pose": [[1.0]]}, None),
        ({"pose": None}, None),
        ({"weight": 2.0}, None),
        ({"weight": "much"}, None),
        ({"initial_pose": (np.eye(4) * np.nan).tolist()}, None),
        (None, {"index": np.array([99])}),
        (None, {"after1": np.zeros((2, 2))}),
        (None, {"measured0": np.zeros(5)}),
    ],
)
def test_altered_files_are_refused(change, images, tmp_path):
    write(tmp_path, change, images)
    with pytest.raises(InputError, match="the slices of this run cannot be read"):
        read_slices(tmp_path)
