"""Measurements as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.view.measured import FLOOR_DB, Measurements, measurements, pictures


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_sinogram_its_prediction_and_what_is_left(finished: Path) -> None:
    found = measurements(finished, facts_of(finished))
    shown, about = pictures(found, None, 0)
    with np.load(finished / "measurements.npz") as file:
        measured, predicted = file["measured"][:, 0], file["predicted"][:, 0]
    assert [series.name for series in found] == ["sinogram"]
    np.testing.assert_allclose(shown[0].values, measured)
    np.testing.assert_allclose(shown[2].values, predicted.astype(float) - measured.astype(float))
    assert shown[0].window == shown[1].window and shown[2].window[0] == -shown[2].window[1]
    assert shown[0].axes == ("view", "detector column") and "held out" in about["note"]


def write_projections(folder: Path, shape: tuple[int, int, int]) -> dict:
    draws = np.random.default_rng(0)
    measured = draws.random(shape)
    np.savez(folder / "measurements.npz", measured=measured, predicted=measured + 1, angles_deg=np.arange(shape[0]))
    return {"measurements": {"file": "measurements.npz", "held_out_views": [2], "unit": "1"}}


def test_of_many_rows_both_the_sinograms_and_the_views(tmp_path: Path) -> None:
    facts = write_projections(tmp_path, (4, 3, 5))
    found = measurements(tmp_path, facts)
    assert [(s.name, len(s.choices)) for s in found] == [("sinogram", 3), ("projection", 4)]
    shown, about = pictures(found, "projection", 2)
    assert shown[0].values.shape == (3, 5) and "held out of the fit" in about["note"] and about["index"] == 2
    np.testing.assert_allclose(shown[2].values, 1)
    for series, index, said in (("projection", 4, "none is number 4"), ("slice", 0, "no measurements called 'slice'")):
        with pytest.raises(InputError, match=said):
            pictures(found, series, index)


def test_k_space_in_decibels(tmp_path: Path) -> None:
    measured = np.array([[1.0, 10.0, 1e-9], [1.0, 100.0, 1.0]])
    np.savez(
        tmp_path / "kspace.npz", names=np.array(["nik", "gridding"]), measured=measured,
        predicted=np.stack([measured, 2 * measured]), residual=np.zeros((2, 2)), held_out=np.array([1]),
        bands=np.array([0.0, 1.0]), band_measured=np.ones(1), band_residual=np.ones((2, 1)), view=np.arange(2.0),
        unit=np.array("s"), moments=np.arange(3.0), step_s=np.array(0.1),
    )  # fmt: skip
    found = measurements(tmp_path, {})
    shown, about = pictures(found, "k-space", 1)
    np.testing.assert_allclose(shown[0].values, [[-40, -20, FLOOR_DB], [-40, 0, -40]], atol=1e-9)
    np.testing.assert_allclose(shown[2].values, shown[0].values, atol=1e-9), "twice as large leaves as much again"
    assert shown[1].label == "predicted by gridding" and shown[0].unit == "dB" and "held out" in about["note"]


def test_slices_before_and_after_the_fit_of_poses(tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[0, 3] = 3.0
    one = {
        "stack": 1,
        "number": 7,
        "pose": pose.tolist(),
        "initial_pose": np.eye(4).tolist(),
        "weight": 1.0,
        "soundness": 0.9,
    }
    (tmp_path / "slices.json").write_text(json.dumps({"slices": [one]}))
    image = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "slices.npz", index=np.array([0]), measured0=image, before0=image - 1, after0=image + 0.5)
    (series,) = measurements(tmp_path, {})
    shown, about = pictures([series], None, 0)
    assert series.choices == ("stack 1, slice 7",) and "moved by 3 mm" in about["note"]
    np.testing.assert_allclose(shown[0].values, np.rot90(image))
    np.testing.assert_allclose(shown[3].values, 0.5)


def test_they_are_read_once_and_again_when_they_changed(tmp_path: Path) -> None:
    kept, facts = Measurements(), write_projections(tmp_path, (4, 3, 5))
    first = kept.of(tmp_path, facts)
    assert kept.of(tmp_path, facts) is first
    write_projections(tmp_path, (5, 3, 5))
    assert kept.of(tmp_path, facts)[1].choices[-1].startswith("view 5 of 5")


def test_a_run_without_measurements(tmp_path: Path) -> None:
    assert measurements(tmp_path, {}) == []
    with pytest.raises(InputError, match="keeps no measurements"):
        pictures([], None, 0)
