"""Files of a run: how each is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scanfield.view.layers import Class, layer_of_file, layers_of_run


def test_layers_are_told_apart_by_their_names(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    others = ("determinant", "mask", "deviation", "displacement_ras", "uncertainty", "samples", "interval-low")
    for name in others:
        shutil.copy(folder / "fbp.nii.gz", folder / f"{name}.nii.gz")
    (folder / "surface_left_lung.ply").write_text("ply")
    layers = {
        layer.name.split(".")[0]: layer
        for layer in layers_of_run(folder, json.loads((folder / "run.json").read_text()))
    }
    kinds = {name: layer.kind for name, layer in layers.items()}
    assert kinds["determinant"] == kinds["deviation"] == kinds["uncertainty"] == "map" and kinds["mask"] == "labels"
    assert kinds["samples"] == kinds["interval-low"] == "file", "images of the run's quantity"
    assert layers["determinant"].colours == "determinant" and layers["determinant"].unit == "1"
    assert layers["deviation"].unit == layers["scope"].unit == "1/mm"
    assert layers["uncertainty"].range == (0.0, 1.0)
    assert layers["surface_left_lung"].label == "left lung" and "displacement_ras" not in kinds


def test_a_segmentation_has_names_and_colours(segmented: Path) -> None:
    facts = json.loads((segmented / "run.json").read_text())
    layers = {layer.name: layer for layer in layers_of_run(segmented, facts)}
    core = Class(1, "core", "#0072B2")
    assert layers["segmentation.nii.gz"].classes == (core, Class(2, "rim", "#E69F00"))
    assert layers["surface_core.ply"].classes == (core,) and layers["surface_core.ply"].label == "core"
    assert layers["image.nii.gz"].kind == "reference"


def test_generated_sequences_are_images_in_their_order(moving: Path, tmp_path: Path) -> None:
    for name in ("sequence_02", "sequence_10", "other"):
        shutil.copy(moving, tmp_path / f"{name}.nii.gz")
    entries = [{"file": "sequence_10.nii.gz"}, {"file": "sequence_02.nii.gz"}]
    found = list(layers_of_run(tmp_path, {"synthesis": {"sequences": entries}}))
    assert [(layer.name, layer.label, layer.kind) for layer in found[:2]] == [
        ("sequence_10.nii.gz", "sequence 1", "file"),
        ("sequence_02.nii.gz", "sequence 2", "file"),
    ]
    assert found[2].kind == "map"
    for nonsense in (None, 3, {"sequences": "x"}, {"sequences": [None, {"file": 7}]}):
        assert {layer.kind for layer in layers_of_run(tmp_path, {"synthesis": nonsense})} == {"map"}


@pytest.mark.parametrize(
    "classes",
    [None, "two", [1, None], [{"value": "1", "colour": "#000000"}], [{"value": 1, "colour": "url(http://x)"}]],
)
def test_classes_that_make_no_sense_are_left_out(segmented: Path, classes: object) -> None:
    facts = json.loads((segmented / "run.json").read_text())
    facts["segmentation"]["classes"] = classes
    assert all(layer.classes == () for layer in layers_of_run(segmented, facts))


def test_files_by_themselves() -> None:
    assert layer_of_file(Path("a.sfz")).rendered
    assert layer_of_file(Path("a.nii")).kind == "file" and layer_of_file(Path("a.stl")).kind == "surface"
    assert layer_of_file(Path("a.txt")) is None
