from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fitting.log import FitLog
from scanfield.fitting.state import load_state, save_state
from scanfield.methods.reconstruction import siren
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction, Spec, render_field

AFFINE = np.array([[-1.0, 0, 0, 40], [0, 0, 2, -30], [0, 1.5, 0, 7], [0, 0, 0, 1]])
GRID = Grid((6, 5, 4), AFFINE)


@pytest.fixture(scope="module")
def result() -> Reconstruction:
    spec = Spec(
        Domain.of_grid(GRID), GRID, "HU", 100.0, {"weights_seed": 1, "channels": 1, "offset": -50.0, "octaves": 1}
    )
    config = siren.Config.tiny()
    logs = [FitLog("fit", 3, 0.5, [{"step": 3, "loss": {"values": 0.1}}], "steps")]
    extra = {"rows": torch.arange(4), "table": torch.rand(2, 3, generator=torch.Generator().manual_seed(0))}
    return Reconstruction("siren", config, spec, siren.build(config, spec), extra, logs, {"seed": 3})


@pytest.fixture
def file(result, tmp_path) -> Path:
    result.save(tmp_path / "field.safetensors")
    return tmp_path / "field.safetensors"


def test_round_trip(result, file):
    back = Reconstruction.load(file)
    assert torch.equal(back.render(), result.render())
    assert back.config == result.config and back.provenance == {"seed": 3} and back.logs == result.logs
    assert back.spec.unit == "HU" and back.spec.grid.same_as(GRID) and back.spec.facts == result.spec.facts
    for name, tensor in result.tensors.items():
        assert torch.equal(back.tensors[name], tensor)


def test_render_on_any_grid_and_spacing(result):
    assert result.render().shape == (6, 5, 4)
    assert result.render(spacing_mm=0.5).shape == (12, 15, 16)
    voxel = Grid((1, 1, 1), GRID.moved(np.eye(4)).affine)
    torch.testing.assert_close(result.render(voxel)[0, 0, 0], result.render()[0, 0, 0])
    turned = GRID.affine.copy()
    turned[:3, 3] += turned[:3, 0] * 5
    turned[:3, 0] *= -1
    torch.testing.assert_close(result.render(Grid((6, 5, 4), turned)).flip(0), result.render(), atol=1e-3, rtol=0)


def test_render_field_is_zero_outside_the_box(result):
    far = GRID.moved(np.array([[1.0, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert (render_field(result, far) == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"spec": None},
        {"spec": {}},
        {"spec": "x"},
        {"config": 3},
        {"config": {"stepz": 1}},
        {"config": {"width": "wide"}},
        {"config": {"width": 33}},
        {"method": "nothing"},
        {"method": None},
        {"logs": [{"unknown": 1}]},
        {"logs": 5},
        {"schema": 99},
        {"schema": 0},
        {"kind": "other"},
    ],
    ids=json.dumps,
)
def test_an_altered_header_is_one_clear_error(file, change):
    tensors, facts = load_state(file, kind="field", schema=1)
    save_state(file, tensors, facts | change)
    with pytest.raises(InputError):
        Reconstruction.load(file)


@pytest.mark.parametrize("key", ["method", "config", "spec", "logs", "provenance"])
def test_a_missing_part_is_one_clear_error(file, key):
    tensors, facts = load_state(file, kind="field", schema=1)
    del facts[key]
    save_state(file, tensors, facts)
    with pytest.raises(InputError):
        Reconstruction.load(file)


def test_missing_weights(file):
    tensors, facts = load_state(file, kind="field", schema=1)
    save_state(file, {k: v for k, v in tensors.items() if not k.endswith("weight")}, facts)
    with pytest.raises(InputError, match="weights do not fit"):
        Reconstruction.load(file)


def test_nothing_huge_is_built_for_a_header_that_lies(file):
    """A header may announce any width; the file's own size bounds what is believed."""
    tensors, facts = load_state(file, kind="field", schema=1)
    facts["config"]["width"] = 2**20
    save_state(file, tensors, facts)
    with pytest.raises(InputError):
        Reconstruction.load(file)


def test_an_endless_stack_of_slices_is_refused(file):
    facts = load_state(file, kind="field", schema=1)[1]
    facts |= {"method": "scope", "config": {"levels": 1, "features": 1, "width": 8, "log2_table": 12, "base_cells": 2}}
    facts["spec"]["grid"]["shape"] = [4, 4, 2**40]
    save_state(file, {}, facts)
    with pytest.raises(InputError, match="larger field"):
        Reconstruction.load(file)
