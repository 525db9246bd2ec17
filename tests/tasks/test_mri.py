"""The pipeline from k-space to a judged series: held-out data, rows, files, and what is refused."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.data.cardiac import cardiac_gated
from scanfield.data.samples import sample
from scanfield.errors import InputError
from scanfield.methods.reconstruction import nik
from scanfield.operators.simulate_kspace import KSpaceScanOptions, simulate_kspace
from scanfield.run import Run
from scanfield.shortcuts import open_result, reconstruct
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry
from scanfield.tasks.mri import check_reference, held_out_views, reconstruct_kspace

pytest.importorskip("finufft")
TINY = replace(nik.Config.tiny(), steps=100)


@pytest.fixture(scope="module")
def made():
    image = sample("mr_head_volume")
    index = image.grid.shape[2] // 2
    own = image.grid.slice(index)
    sizes = (own.shape[a] * own.spacing_mm[a] / 16 for a in range(2))
    options = KSpaceScanOptions(coils=3, frames=5, views_per_frame=16, samples=32, repetition_s=0.01, motion="beating")
    return simulate_kspace(image, options, slice_index=index, grid=own.resampled((*sizes, own.spacing_mm[2])))


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"preset": "tiny", "reference": made.truth, "request": {"command": "x"}}
    return folder, reconstruct_kspace(made.kspace, "nik", TINY, Run(folder, seed=2), **options)


def test_every_row_has_every_number(done):
    table = done[1].table
    assert [row.name for row in table.rows] == ["nik", "gridding", "cg-sense", "temporal-tv"]
    keys = {"held_out", "seconds", "psnr_db:reference", "ssim:reference", "nrmse:reference", "psnr_moving_db"}
    for row in table.rows:
        assert set(row.values) - {"held_out_field"} == keys and all(np.isfinite(list(row.values.values())))
        assert {column.key for column in table.columns} >= set(row.values)
    assert 0 < table.rows[0].values["held_out_field"] < 100


def test_images_are_four_dimensional_with_a_step_of_time(done):
    folder, _ = done
    for name in ("nik", "gridding", "cg-sense", "temporal-tv", "reference"):
        header = nib.load(folder / f"{name}.nii.gz").header
        assert header.get_data_shape() == (16, 16, 1, 5)
        assert header.get_zooms()[3] == pytest.approx(0.16) and header.get_xyzt_units() == ("mm", "sec")


def test_record_and_report_tell_the_story(done):
    folder, _ = done
    facts = json.loads((folder / "run.json").read_text())
    assert facts["facts"]["K-space"] == "80 views of 32 samples, 3 coils"
    assert facts["facts"]["Held out of the fit"] == "4 views"
    assert facts["facts"]["Coil sensitivities"] == "from the scan's file"
    page = (folder / "report.html").read_text()
    assert "data:image/gif;base64," in page and "Series and k-space" in page
    for name in ("cine.gif", "frames.png", "profile.png", "frame-errors.png", "k-space.png"):
        assert (folder / "figures" / name).stat().st_size > 1000
    with np.load(folder / "kspace.npz") as file:
        assert file["names"].tolist() == ["nik", "gridding", "cg-sense", "temporal-tv", "nik (own)"]
        assert file["predicted"].shape == (5, 80, 32) and len(file["held_out"]) == 4


def test_the_numbers_are_those_of_the_images(done, made):
    outcome = done[1]
    truth = made.truth.abs().movedim(0, -1)
    for row, picture in zip(outcome.table.rows, outcome.pictures, strict=False):
        rms = float((picture.values - truth).square().mean().sqrt())
        assert row.values["psnr_db:reference"] == pytest.approx(20 * np.log10(float(truth.max()) / rms), abs=0.01)


def test_the_truth_leaves_nothing_of_the_held_out_views_but_what_moves_within_a_frame(made):
    """A row that is the truth would be judged well: the scale, the coils and the views are right."""
    from scanfield.tasks.mri import _encoded

    data = made.kspace
    left = (_encoded(made.truth, data, data.acquisition.volume) - data.values).norm() / data.values.norm()
    assert left < 0.08


def test_the_result_renders_from_its_file(done):
    folder, outcome = done
    result = open_result(folder)
    assert torch.allclose(result.render(), outcome.result.render())


def test_whole_frames_held_out_are_interpolated_for_rivals(made, tmp_path):
    run = Run(tmp_path / "run", seed=2)
    outcome = reconstruct_kspace(made.kspace, "nik", TINY, run, holdout_frames=1, baselines="fast")
    assert any("interpolated linearly in time" in note for note in run.notes)
    images = next(picture.values for picture in outcome.pictures if picture.name == "gridding")
    assert images[..., 2].abs().max() > 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["facts"]["Held out of the fit"] == "16 views (all of 1 frames)"


def test_phases_and_another_grid_and_no_maps(made):
    """Sensitivities estimated, a finer grid, eight phases: rivals come to the grid by their Fourier series."""
    gated = cardiac_gated(replace(made.kspace, sensitivities=None), 4)
    fine = gated.acquisition.volume.resampled(2.0 * gated.acquisition.volume.spacing_mm[0] / 3)
    run = Run()
    outcome = reconstruct_kspace(gated, "nik", TINY, run, baselines="fast", grid=fine, holdout_views=0)
    assert [picture.values.shape for picture in outcome.pictures] == [(*fine.shape, 4)] * 3
    assert outcome.pictures[0].step_s == pytest.approx(0.2)
    assert [column.key for column in outcome.table.columns] == ["seconds"]


def test_a_still_scan_has_one_image_and_no_temporal_rival(made):
    still = replace(made.kspace, acquisition=made.kspace.acquisition.cut(1))
    outcome = reconstruct_kspace(still, "nik", TINY, Run(), reference=made.truth[:1])
    assert [row.name for row in outcome.table.rows] == ["nik", "gridding", "cg-sense"]
    assert outcome.pictures[0].values.shape == (16, 16, 1)
    assert "psnr_moving_db" not in outcome.table.rows[0].values


VOLUME = Grid.centred((64, 64, 1), 1.0)


def cartesian_lines(count):
    k = np.zeros((count, 4, 3))
    k[..., 1] = ((np.arange(count) - count // 2) / 64)[:, None]
    return KSpaceGeometry(k, 1, VOLUME)


def test_held_out_lines_spare_the_centre_of_k_space():
    held = held_out_views(cartesian_lines(64), 6, None)
    assert len(held) == 6 and (np.abs(held - 32) > 12).all()
    few = held_out_views(cartesian_lines(20), None, None)
    assert few.tolist() == [10], "where all lines are central, any of them judges"


@pytest.mark.parametrize(
    ("views", "frames", "message"),
    [
        (2, 1, "not both"),
        (None, 3, "3 frames cannot be held out of 5"),
        (80, None, "cannot hold out 80 of 80 views"),
    ],
)
def test_impossible_requests_are_refused(made, views, frames, message):
    with pytest.raises(InputError, match=message):
        held_out_views(made.kspace.acquisition, views, frames)


def test_frames_held_out_are_inner_ones(made):
    geometry = made.kspace.acquisition
    assert set(geometry.frame_of_view[held_out_views(geometry, None, 2)]) <= {1, 2, 3}


def test_other_data_and_other_references_are_refused(made):
    with pytest.raises(InputError, match="does not take data of kind 'kspace'"):
        reconstruct_kspace(made.kspace, "scope", None, Run())
    with pytest.raises(InputError, match="takes CT projections"):
        reconstruct(made.kspace, "nik")
    with pytest.raises(InputError, match="the reference has 4 frames of 16x16x1 voxels"):
        check_reference(made.truth[:4], 5, made.kspace.acquisition.volume)
