"""The type of an image's voxels in its file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.stored import stored_type
from scanfield.space.grid import Grid

GRID = Grid.centred((4, 3, 2), 1.0)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32"])
def test_nifti_files_keep_their_type(kind, tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(24, dtype=kind).reshape(4, 3, 2), np.eye(4)), path)
    assert stored_type(path, read_nifti(path)) == kind


def test_scaled_nifti_files_are_what_their_values_are(tmp_path):
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.3, 1.0)
    nib.save(image, path)
    assert stored_type(path, read_nifti(path)) == "float32"


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 255, "uint8"), (-1024, 3071, "int16"), (0, 65535, "uint16"), (-1, 40_000, "int32"), (0, 2**40, "float32")],
)
def test_elsewhere_the_smallest_type_that_holds_them(low, high, kind):
    values = torch.linspace(low, high, 24, dtype=torch.float64).round().reshape(4, 3, 2)
    assert stored_type(Path("folder"), Scan(values, GRID)) == kind
    assert stored_type(Path("folder"), Scan(values + 0.5, GRID)) == "float32"
