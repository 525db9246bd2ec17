"""UncertaINR on a small real scan: four ways to a set of fields, the same set from its file, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.data.samples import sample
from scanfield.errors import InputError
from scanfield.fields.field import Field
from scanfield.fields.networks.dropout import Dropout
from scanfield.methods.reconstruction import uncertainr
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.result import Reconstruction, render_field

TINY = replace(uncertainr.Config.tiny(), steps=60, samples=6)
POSTERIORS: dict[str, dict[str, Any]] = {
    "dropout": {"posterior": "dropout"},
    "ensemble": {"posterior": "ensemble", "members": 3},
    "sgld": {"posterior": "sgld", "langevin_rate": 1e-3},
    "hmc": {"posterior": "hmc"},
    "pixels": {"posterior": "sgld", "representation": "pixels", "learning_rate": 0.1},
}


@pytest.fixture(scope="module")
def data() -> Measurement[ProjectionGeometry]:
    """A real chest slice of 24 x 24 pixels from 16 views."""
    scan = sample("ct_chest_slice")
    spacing = scan.grid.spacing_mm[0] * 512 / 24
    grid = scan.grid.resampled((spacing, spacing, scan.grid.spacing_mm[2]))
    clean = simulate_ct(scan, CtScanOptions(views=16, bin_mm=spacing, noise_percent=1.0), grid=grid)
    return replace(clean, noise=Noise("gaussian", 0.05))


@pytest.fixture(scope="module", params=POSTERIORS)
def fitted(request, data) -> tuple[str, Reconstruction]:
    return request.param, uncertainr.fit(replace(TINY, **POSTERIORS[request.param]), data, Run(seed=2))


def test_the_result_is_a_set_of_different_fields(fitted, data):
    name, result = fitted
    posterior = result.posterior()
    assert result.has_posterior and len(posterior.samples) == (3 if name == "ensemble" else 6)
    assert posterior.samples.flatten(1).unique(dim=0).shape[0] == len(posterior.samples)
    assert (posterior.deviation >= 0).all() and posterior.deviation.max() > 0
    assert torch.equal(result.render(), posterior.mean)
    predicted = result.posterior_prediction(data)
    assert predicted.samples.shape[1:] == data.values.shape
    assert torch.equal(result.predict(data), predicted.mean)


def test_the_same_set_comes_from_the_file_on_any_grid(fitted, tmp_path):
    result = fitted[1]
    result.save(tmp_path / "field.safetensors")
    back = Reconstruction.load(tmp_path / "field.safetensors")
    other = result.spec.grid.resampled(9.0)
    assert torch.equal(back.posterior(other).samples, result.posterior(other).samples)
    assert torch.equal(back.posterior().deviation, result.posterior().deviation)
    assert [log.to_json() for log in back.logs] == [log.to_json() for log in result.logs]


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_stopped_fit_continues_to_the_same_set(name, data, tmp_path: Path):
    """Stopped in its last stage: the chain, or the last member."""
    config = replace(TINY, **POSTERIORS[name])
    whole = uncertainr.fit(config, data, Run(seed=2))
    run, last = Run(tmp_path, seed=2), whole.logs[-1].stage

    def stop(event: dict[str, Any]) -> None:
        if event.get("stage") == last and event.get("step", 0) >= whole.logs[-1].steps // 2:
            run.stop.set()

    run.observers = (stop,)
    cut = uncertainr.fit(config, data, run)
    assert torch.isfinite(cut.render()).all()
    again = uncertainr.fit(config, data, Run(tmp_path, seed=2, resume=True))
    assert torch.equal(again.posterior().samples, whole.posterior().samples)


def test_a_dropout_sample_is_one_network_for_all_pixels(data):
    result = uncertainr.fit(TINY, data, Run(seed=2))
    first = next(uncertainr.samples(result))
    assert isinstance(first, Field) and not isinstance(first.network, Dropout)
    whole = render_field(replace(result, field=first), result.spec.grid)
    x = result.spec.grid.points()
    parts = torch.cat([first(part) for part in x.split(100)]).detach()
    torch.testing.assert_close(parts.reshape(result.spec.grid.shape), whole)


def test_predictions_are_projections_of_the_image(data):
    result = uncertainr.fit(TINY, data, Run(seed=2))
    sample_of = next(result.samples())
    image = uncertainr.render(sample_of, result.spec.grid)
    projected = VoxelProjector(data.acquisition, result.spec.grid).apply(image)
    torch.testing.assert_close(uncertainr.predict(sample_of, data), projected)


def test_a_member_is_the_fit_of_its_seed_and_stays_when_the_ensemble_grows(data):
    config = replace(TINY, posterior="ensemble", steps=10)
    two = uncertainr.fit(replace(config, members=2), data, Run(seed=2))
    three = uncertainr.fit(replace(config, members=3), data, Run(seed=2))
    assert torch.equal(three.posterior().samples[:2], two.posterior().samples)


def test_a_chain_moves_further_at_a_higher_rate(data):
    spread = []
    for rate in (1e-5, 1e-3):
        config = replace(TINY, posterior="sgld", langevin_rate=rate)
        spread.append(float(uncertainr.fit(config, data, Run(seed=2)).posterior().deviation.mean()))
    assert spread[1] > 3 * spread[0]


def test_more_noise_makes_a_wider_posterior(data):
    """The chain of the pixels from one minimum, with the noise five times as large."""
    spread = []
    for sigma in (0.02, 0.5):
        config = replace(TINY, **POSTERIORS["pixels"], noise_sigma=sigma, burn_in=100, thinning=10)
        spread.append(float(uncertainr.fit(config, data, Run(seed=2)).posterior().deviation.mean()))
    assert spread[1] > 1.5 * spread[0]


def test_long_chains_of_large_networks_are_warned_of(data):
    run = Run(seed=2)
    uncertainr.fit(replace(TINY, posterior="hmc", width=160, steps=1, burn_in=0, samples=2, leapfrog=1), data, run)
    assert any("for small fields" in warning for warning in run.warnings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"representation": "pixels"}, "no units to drop"),
        ({"posterior": "ensemble", "members": 1}, "at least two members"),
        ({"noise_sigma": 0.0}, "must be positive"),
        ({"dropout": 1.0}, "dropout rate"),
        ({"posterior": "sgld", "thinning": 0, "steps": 1}, "a chain needs"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message, data):
    with pytest.raises(InputError, match=message):
        uncertainr.fit(replace(TINY, **changes), data, Run())


def test_an_empty_scan_is_refused(data):
    with pytest.raises(InputError, match="no attenuation"):
        uncertainr.fit(TINY, replace(data, values=torch.zeros_like(data.values)), Run())
