"""Ensembles of methods that know nothing of them, in the pipelines, in files and on the command line's behalf."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.data.nifti import read_nifti
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.field import Field
from scanfield.fitting.state import load_state
from scanfield.methods import api
from scanfield.methods.reconstruction import scope, siren
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.image_fit import fit_image
from scanfield.tasks.reconstruction import reconstruct
from scanfield.tasks.result import Reconstruction, render_field
from scanfield.tasks.uncertainty import calibration_of_projections, rendered

SCOPE = replace(scope.Config.tiny(), steps=20)
SIREN = replace(siren.Config.tiny(), steps=15)


@pytest.fixture(scope="module")
def slice_() -> Scan:
    scan = sample("ct_chest_slice")
    values = torch.nn.functional.avg_pool2d(scan.values.float().reshape(1, 512, 512), 16).reshape(32, 32, 1)
    return Scan(values, Grid.centred((32, 32, 1), (14.0, 14.0, 3.0)), "HU")


@pytest.fixture(scope="module")
def data(slice_) -> Measurement[ProjectionGeometry]:
    return simulate_ct(slice_, CtScanOptions(views=16, noise_percent=0.5), grid=slice_.grid)


@pytest.fixture(scope="module")
def folder(data, slice_, tmp_path_factory):
    """The folder of an ensemble of SCOPE, which has tensors and a step after its fit."""
    path = tmp_path_factory.mktemp("ensemble") / "run"
    run = Run(path, seed=4)
    outcome = reconstruct(data, "scope", SCOPE, run, baselines="none", reference=slice_, ensemble=3)
    return path, outcome, run


def test_member_k_is_the_method_s_own_fit_with_seed_s_plus_k(folder, data):
    members = folder[1].result.members
    fitted, held_out = data.hold_out(1)
    assert len(members) == 3
    for k in (0, 2):
        alone = scope.fit(SCOPE, fitted, Run(seed=4 + k), held_out=held_out)
        assert torch.equal(alone.render(), members[k].render())


def test_the_image_is_the_mean_of_the_members_after_all_their_steps(folder, data):
    _, outcome, _ = folder
    images = torch.stack([scope.render(member, outcome.grid) for member in outcome.result.members])
    torch.testing.assert_close(outcome.pictures[0].values, images.mean(dim=0))
    torch.testing.assert_close(outcome.uncertainty.image.deviation, images.std(dim=0))
    read_outs = torch.stack([render_field(member, outcome.grid) for member in outcome.result.members])
    torch.testing.assert_close(outcome.pictures[1].values, read_outs.mean(dim=0))
    predicted = torch.stack([scope.predict(member, data) for member in outcome.result.members])
    torch.testing.assert_close(outcome.result.predict(data), predicted.mean(dim=0))


def test_the_file_holds_the_set_and_says_so(folder):
    path, outcome, _ = folder
    back = Reconstruction.load(path / "field.safetensors")
    other = outcome.grid.resampled(9.0)
    assert torch.equal(back.posterior(other).samples, outcome.result.posterior(other).samples)
    assert back.provenance == outcome.result.provenance and back.has_posterior
    assert [log.stage for log in back.logs] == [f"member-{k}-slice-000" for k in range(3)]
    assert load_state(path / "field.safetensors", kind="field", schema=2)[1]["schema"] == 2
    with pytest.raises(InputError, match="schema 2"):
        load_state(path / "field.safetensors", kind="field", schema=1)


def test_a_single_result_is_written_as_before(folder, tmp_path):
    member = folder[1].result.members[0]
    member.save(tmp_path / "field.safetensors")
    assert load_state(tmp_path / "field.safetensors", kind="field", schema=1)[1]["schema"] == 1
    back = Reconstruction.load(tmp_path / "field.safetensors")
    assert not back.has_posterior and torch.equal(back.render(), member.render())
    with pytest.raises(InputError, match="at least two samples"):
        back.posterior()


def test_deviation_interval_and_samples_are_images_of_the_folder(folder):
    path, outcome, run = folder
    facts = json.loads((path / "run.json").read_text())["posterior"]
    assert facts["count"] == 3 and facts["level"] == 0.9
    posterior = outcome.uncertainty.image
    low, high = posterior.interval(0.9)
    for name, expected in {"deviation": posterior.deviation, "low": low, "high": high}.items():
        found = read_nifti(path / facts["files"][name])
        assert found.unit == "1/mm" and np.allclose(found.values, expected, atol=1e-7)
    samples = read_nifti(path / facts["files"]["samples"], channels=True).values
    assert np.allclose(samples.movedim(-1, 0), posterior.samples, atol=1e-7)
    assert set(facts["calibration"]) == {"reference", "held-out"}
    assert (path / "figures" / "calibration.png").is_file() and (path / "figures" / "uncertainty-axial.png").is_file()
    assert "Uncertainty" in (path / "report.html").read_text()
    assert sum("from 3 samples hold" in note for note in run.notes) == 2


def test_rendering_a_loaded_set_gives_what_the_run_wrote(folder):
    path, outcome, _ = folder
    back = Reconstruction.load(path / "field.safetensors")
    posterior = outcome.uncertainty.image
    assert torch.equal(rendered(back, outcome.grid, "deviation"), posterior.deviation)
    assert torch.equal(rendered(back, outcome.grid, "samples").movedim(-1, 0), posterior.samples)
    assert torch.equal(rendered(back, outcome.grid, "image"), posterior.mean)
    low, high = (rendered(back, outcome.grid, name, 0.5) for name in ("low", "high"))
    torch.testing.assert_close((high - low) / 2, 0.674490 * posterior.deviation)


def test_one_field_has_no_deviation(folder):
    member = folder[1].result.members[0]
    with pytest.raises(InputError, match="one field and has no deviation"):
        rendered(member, member.spec.grid, "deviation")


def test_noise_widens_what_is_said_of_projections(folder, data):
    result, held_out = folder[1].result, data.hold_out(4)[1]
    quiet, noisy = (
        calibration_of_projections(result, replace(held_out, noise=Noise("gaussian", sigma))) for sigma in (1e-3, 1.0)
    )
    spread = result.posterior_prediction(held_out).deviation.double()
    assert noisy.sharpness == pytest.approx(float((spread.square() + 1).mean().sqrt()), rel=1e-5)
    assert noisy.coverage[1] > quiet.coverage[1]


def test_an_interrupted_ensemble_is_a_set_of_what_was_finished(data, tmp_path):
    run = Run(tmp_path / "run", seed=4)

    def stop(event):
        if event.get("stage") == "member-1-slice-000":
            run.stop.set()

    run.observers = (stop,)
    outcome = reconstruct(data, "scope", SCOPE, run, baselines="none", ensemble=3)
    assert len(outcome.result.members) == 1 and outcome.uncertainty is None
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    again = Run(tmp_path / "run", seed=4, resume=True)
    resumed = reconstruct(data, "scope", SCOPE, again, baselines="none", ensemble=3)
    whole = reconstruct(data, "scope", SCOPE, Run(seed=4), baselines="none", ensemble=3)
    assert torch.equal(resumed.uncertainty.image.samples, whole.uncertainty.image.samples)


def test_images_have_ensembles_judged_on_held_out_voxels(slice_, tmp_path):
    run = Run(tmp_path / "run", seed=4)
    outcome = fit_image(slice_, "siren", SIREN, run, baselines="none", ensemble=2)
    posterior = outcome.uncertainty.image
    assert posterior.samples.shape == (2, 32, 32, 1)
    held_out = json.loads((tmp_path / "run" / "run.json").read_text())["posterior"]["calibration"]["held-out"]
    assert held_out["count"] == pytest.approx(0.05 * 32 * 32, rel=0.3)
    assert torch.equal(Reconstruction.load(tmp_path / "run" / "field.safetensors").render(), outcome.result.render())


def test_surfaces_have_no_ensembles(slice_):
    config = replace(SIREN, supervision="surface")
    with pytest.raises(InputError, match="no mean"):
        fit_image(slice_, "siren", config, Run(), ensemble=2)


def test_results_of_different_grids_make_no_set(folder):
    first, second = folder[1].result.members[:2]
    moved = replace(second, spec=replace(second.spec, grid=second.spec.grid.resampled(9.0)))
    with pytest.raises(ValueError, match="one grid"):
        Reconstruction.ensemble([first, moved])
    with pytest.raises(ValueError, match="one method"):
        Reconstruction.ensemble([first, replace(second, method="siren")])


def test_a_method_s_own_posterior_and_an_ensemble_of_it_are_one_set(data):
    module = api.load("uncertainr")
    config = replace(module.Config.tiny(), steps=5, samples=4)
    outcome = reconstruct(data, "uncertainr", config, Run(seed=1), baselines="none", ensemble=2)
    assert len(outcome.uncertainty.image.samples) == 8
    assert all(isinstance(one.field, Field) for one in outcome.result.samples())
