"""SCOPE on small real scans: the four steps do what the paper says, in parallel and fan beam, slice by slice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.baselines.ct import BASELINES
from scanfield.data.measurement import Measurement
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.reconstruction import scope
from scanfield.metrics.image import compare
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.fov import field_of_view
from scanfield.operators.siddon import project_voxels
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.operators.views import dense_geometry
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction

SMALL = scope.Config(
    levels=6,
    features=4,
    width=32,
    steps=400,
    views_per_step=8,
    bins_per_view=8,
    samples_per_ray=64,
    learning_rate=2e-3,
    table_learning_rate=2e-2,
    halvings=4,
    dense_factor=4,
    reprojection_oversampling=2.0,
)


@pytest.fixture(scope="module")
def volume() -> Scan:
    """Three slices of a real abdomen, 122 x 101 voxels of 3 mm."""
    whole = sample("ct_abdomen_volume")
    grid = Grid((*whole.grid.shape[:2], 3), whole.grid.slice(12).affine)
    return Scan(whole.values[:, :, 12:15], grid, "HU")


def _scan(volume: Scan, beam: str, slice_index: int | None = 1, views: int = 16) -> Measurement[ProjectionGeometry]:
    detector = "arc" if beam == "fan" else "flat"
    coarse = volume.grid if slice_index is None else volume.grid.slice(slice_index)
    spacing = coarse.spacing_mm
    grid = coarse.resampled((2 * spacing[0], 2 * spacing[1], spacing[2]))
    options = CtScanOptions(beam=beam, detector=detector, views=views, bin_mm=6.0 * (949 / 541 if beam == "fan" else 1))
    return simulate_ct(volume, options, slice_index=slice_index, grid=grid)


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_scope_beats_sparse_fbp_against_the_dense_one(volume: Scan, beam: str) -> None:
    data = _scan(volume, beam)
    result = scope.fit(SMALL, data, Run())
    grid = data.acquisition.volume
    dense = dense_geometry(data.acquisition, 15)
    mu = (0.01929 * (1 + volume.values[:, :, 1:2].float() / 1000)).clamp(min=0)
    reference = filtered_backprojection(project_voxels(mu, volume.grid.slice(1), dense), dense, grid)
    mask = field_of_view(data.acquisition, grid)
    ours = compare(scope.render(result, grid), reference, mask).psnr_db
    fbp = compare(BASELINES["fbp"].reconstruct(data, grid), reference, mask).psnr_db
    assert ours > fbp + 2.0, f"SCOPE {ours:.2f} dB, FBP {fbp:.2f} dB"


def test_measured_views_are_put_back_exactly(volume: Scan) -> None:
    data = _scan(volume, "parallel")
    result = scope.fit(scope.Config.tiny(), data, Run())
    assert torch.equal(result.tensors["sinogram"][:: result.config.dense_factor], data.values)


def test_image_is_the_fbp_of_the_dense_sinogram(volume: Scan) -> None:
    data = _scan(volume, "parallel")
    result = scope.fit(scope.Config.tiny(), data, Run())
    grid = data.acquisition.volume.resampled(9.0)
    expected = filtered_backprojection(result.tensors["sinogram"], dense_geometry(data.acquisition, 2), grid)
    assert torch.equal(scope.render(result, grid), expected)


def test_reprojecting_an_image_of_the_field_equals_reprojecting_the_field(volume: Scan) -> None:
    data = _scan(volume, "fan")
    by_image = scope.fit(SMALL, data, Run())
    by_field = scope.fit(replace(SMALL, reprojection_oversampling=None), data, Run())
    difference = by_image.tensors["sinogram"] - by_field.tensors["sinogram"]
    assert float(difference.square().mean().sqrt()) < 0.01 * float(data.values.max())


def test_every_detector_row_becomes_its_own_slice(volume: Scan) -> None:
    data = _scan(volume, "parallel", slice_index=None)
    config = replace(scope.Config.tiny(), steps=150)
    whole = scope.fit(config, data, Run())
    assert [log.stage for log in whole.logs] == ["slice-000", "slice-001", "slice-002"]
    image = scope.render(whole, data.acquisition.volume)
    fbp = BASELINES["fbp"].reconstruct(data, data.acquisition.volume)
    for k in range(3):  # every slice resembles its own FBP most
        similarity = [np.corrcoef(image[:, :, k].flatten(), fbp[:, :, m].flatten())[0, 1] for m in range(3)]
        assert int(np.argmax(similarity)) == k


def test_predicted_projections_approach_the_measured_ones(volume: Scan) -> None:
    data = _scan(volume, "parallel")
    result = scope.fit(SMALL, data, Run())
    error = (scope.predict(result, data) - data.values).square().mean().sqrt()
    assert float(error) < 0.05 * float(data.values.max())


def test_saved_result_renders_the_same_image_without_the_scan(volume: Scan, tmp_path: Path) -> None:
    data = _scan(volume, "fan")
    result = scope.fit(scope.Config.tiny(), data, Run())
    result.save(tmp_path / "field.safetensors")
    loaded = Reconstruction.load(tmp_path / "field.safetensors")
    assert torch.equal(loaded.render(), result.render())
    assert torch.equal(loaded.predict(data), result.predict(data))


def test_an_empty_scan_is_refused(volume: Scan) -> None:
    data = _scan(volume, "parallel")
    with pytest.raises(InputError, match="no attenuation"):
        scope.fit(scope.Config.tiny(), replace(data, values=torch.zeros_like(data.values)), Run())


def test_rows_that_do_not_fall_on_slices_are_refused(volume: Scan) -> None:
    data = _scan(volume, "parallel", slice_index=None)
    coarse = data.acquisition.volume.resampled((6.0, 6.0, 9.0))
    with pytest.raises(InputError, match="one detector row per slice"):
        scope.fit(scope.Config.tiny(), replace(data, acquisition=replace(data.acquisition, volume=coarse)), Run())
