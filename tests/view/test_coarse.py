"""A first look at a large image."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scanfield.data.nifti import write_nifti
from scanfield.space.grid import Grid
from scanfield.view.coarse import MOST, coarse_image


@pytest.mark.parametrize("frames", [0, 3])
def test_it_lies_where_the_image_lies_and_has_its_values(tmp_path: Path, frames: int) -> None:
    affine = np.diag([-1.5, 2.0, 1.0, 1.0])
    affine[:3, 3] = (100.0, -40.0, 7.0)
    grid = Grid((2 * MOST + 1, 40, 3 * MOST), affine)
    x = grid.points()[:, 2].reshape(grid.shape)
    values = x if not frames else torch.stack([x + 1000 * t for t in range(frames)], dim=-1)
    write_nifti(tmp_path / "large.nii", values, grid)
    (tmp_path / "coarse.nii.gz").write_bytes(coarse_image(tmp_path / "large.nii"))
    image = nibabel.load(tmp_path / "coarse.nii.gz")
    assert image.shape == (64, 40, MOST), "a rest of less than a block is left out"
    coarse = Grid(image.shape, image.affine)
    np.testing.assert_allclose(image.get_fdata(), coarse.points()[:, 2].reshape(coarse.shape), atol=1.0)
    np.testing.assert_allclose(coarse.spacing_mm, (4.5, 2.0, 3.0))


def test_labels_stay_labels(tmp_path: Path) -> None:
    grid = Grid.centred((300, 8, 8), 1.0)
    labels = (torch.arange(grid.size) % 3).to(torch.uint8).reshape(grid.shape) * 7
    write_nifti(tmp_path / "labels.nii.gz", labels, grid)
    (tmp_path / "coarse.nii.gz").write_bytes(coarse_image(tmp_path / "labels.nii.gz"))
    image = nibabel.load(tmp_path / "coarse.nii.gz")
    assert image.get_data_dtype() == np.uint8 and set(np.unique(image.get_fdata())) == {0, 7, 14}
