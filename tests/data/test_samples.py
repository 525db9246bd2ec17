"""The packaged scans: present, credited, small, and what they claim to be."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scanfield.data.samples import sample, sample_names, sample_path
from scanfield.errors import InputError

CREDITS = sample_path("ct_chest_slice").with_name("CREDITS.md").read_text(encoding="utf-8")


def test_names() -> None:
    assert sample_names() == ["ct_abdomen_volume", "ct_chest_slice", "mr_head_volume"]


def test_all_together_are_small() -> None:
    assert sum(sample_path(name).stat().st_size for name in sample_names()) < 3 * 2**20


@pytest.mark.parametrize("name", sample_names())
def test_every_scan_has_its_credit_and_licence(name: str) -> None:
    section = CREDITS.split(f"## {name}.nii.gz")[1].split("\n## ")[0]
    for fact in ("- Source: ", "- Licence: ", "- Changes: ", "https://"):
        assert fact in section


def test_chest_slice_shows_water_fat_lung_and_bone() -> None:
    scan = sample("ct_chest_slice")
    hu = scan.values.numpy()[..., 0]
    assert scan.grid.shape == (512, 512, 1) and scan.unit == "HU"
    np.testing.assert_allclose(scan.grid.spacing_mm, (0.8828125, 0.8828125, 3.0), rtol=1e-6)
    assert nib.aff2axcodes(scan.grid.affine) == ("L", "P", "S")
    histogram, edges = np.histogram(hu[(hu > -200) & (hu < 200)], bins=80)
    muscle_and_blood, fat = histogram[edges[:-1] > 0].argmax(), histogram[edges[:-1] < 0].argmax()
    assert 20 < edges[edges > 0][muscle_and_blood] < 180 and -130 < edges[fat] < -70
    assert 0.03 < np.mean((hu > -950) & (hu < -700)) < 0.3 and np.mean(hu > 400) > 0.002


def test_the_whole_chest_slice_lies_in_its_inscribed_circle() -> None:
    hu = sample("ct_chest_slice").values.numpy()[..., 0]
    radius = np.hypot(*(np.indices(hu.shape) - 255.5))
    assert (hu[radius > 256] == -1000).all()
    parts, _ = ndimage.label(hu > -300)
    body = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    assert radius[body].max() < 240 and body.sum() * 0.8828**2 > 40_000  # mm^2: a whole chest, away from the edge


@pytest.mark.parametrize("name", sample_names())
def test_headers_hold_nothing_but_geometry_and_unit(name: str) -> None:
    header = nib.load(sample_path(name)).header
    assert not header.extensions and bytes(header["db_name"].item()) == b"" and bytes(header["aux_file"].item()) == b""
    assert bytes(header["descrip"].item()).startswith(b"scanfield unit=")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'ct_chest_slice'") as caught:
        sample_path("chest_slice")
    assert "mr_head_volume" in caught.value.fix
    with pytest.raises(InputError):
        sample_path("../CREDITS.md")


def test_the_packaged_slice_is_the_source(development_data: Path) -> None:
    source = np.load(development_data / "ct/slices_512.npz", allow_pickle=False)["hu"][2].T
    packaged = sample("ct_chest_slice").values.numpy()[..., 0]
    inside = np.hypot(*(np.indices(source.shape) - 255.5)) <= 256
    np.testing.assert_array_equal(packaged[inside], source[inside])
    # and lies where the half-resolution volume says: 2 x 2 means at the same world points
    half = nib.load(development_data / "ct/chest_cptac_pda_C3N-00249.nii.gz")
    means = packaged.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    voxel = np.linalg.inv(half.affine) @ sample("ct_chest_slice").grid.affine @ [2 * 100 + 0.5, 2 * 120 + 0.5, 0, 1]
    i, j, k = np.round(voxel[:3]).astype(int)
    np.testing.assert_allclose(voxel[:3], [i, j, k], atol=1e-4)
    assert abs(np.asarray(half.dataobj)[i, j, k] - means[100, 120]) <= 1
