"""The truth about simulated stacks survives its file and finds its slices."""

import json

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.data.stack_truth import StackTruth, read_truth, truth_of, write_truth
from scanfield.data.stacks import Stack
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def truth(name="a.nii", slices=4, seed=0):
    poses = np.random.default_rng(seed).normal(size=(slices, 4, 4))
    return StackTruth(name, poses, {2: "void"}, tuple(range(slices)))


def test_there_and_back(tmp_path):
    write_truth(tmp_path / "truth.json", [truth(), truth("b.nii", 3, 1)], {"command": "x"})
    back = read_truth(tmp_path / "truth.json")
    for a, b in zip(back, [truth(), truth("b.nii", 3, 1)], strict=True):
        assert (a.file, a.outliers, a.shots) == (b.file, b.outliers, b.shots)
        assert np.array_equal(a.poses, b.poses)  # JSON keeps every bit of a double
    assert json.loads((tmp_path / "truth.json").read_text())["command"] == "x"


def test_slices_find_their_truth():
    mask = torch.ones(5, 5, 4, dtype=torch.bool)
    mask[:, :, 1] = False
    scan = Scan(torch.rand(5, 5, 4), Grid.centred((5, 5, 4), (1.0, 1.0, 3.0)), mask=mask, source="/some/where/a.nii")
    poses, spoilt = truth_of(slice_set([Stack(scan, 3.0)]), [truth("b.nii"), truth()])
    assert np.array_equal(poses.numpy(), truth().poses[[0, 2, 3]]) and spoilt.tolist() == [False, True, False]
    with pytest.raises(InputError, match=r"nothing about slice 0 of a.nii"):
        truth_of(slice_set([Stack(scan, 3.0)]), [truth("b.nii")])
    with pytest.raises(InputError, match="nothing about slice 3"):
        truth_of(slice_set([Stack(scan, 3.0)]), [truth(slices=3)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not hold the truth"),
        ("[]", "does not hold the truth"),
        ('{"schema": 1}', "does not hold the truth"),
        ('{"schema": 9, "stacks": []}', "schema 9 is not known"),
        ('{"schema": 1, "stacks": [{"file": "a", "poses": [1], "outliers": {}, "shots": []}]}', "does not hold"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_truth(tmp_path / "t.json")
    assert "t.json" in caught.value.where
