"""What makes it NeRP: the prior is the start and nothing else, and the measurement moves the field from there."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction import nerp
from scanfield.operators.siddon import project_voxels
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.tasks.result import Reconstruction

GRID = Grid.centred((24, 24, 1), (4.0, 4.0, 5.0))
CONFIG = nerp.Config(
    frequencies=24,
    sigma=2.0,
    width=48,
    hidden_layers=3,
    omega=15.0,
    prior_steps=250,
    prior_learning_rate=1e-3,
    steps=200,
    learning_rate=2e-4,
    scratch_learning_rate=1e-3,
)


@cache
def scene(beam="parallel"):
    """The object before and now, and seven views of now."""
    x = GRID.points()[:, :2]

    def disc(centre, radius):
        return torch.sigmoid(radius - (x - torch.tensor(centre)).norm(dim=1)).reshape(GRID.shape)

    before = 0.02 * disc([0.0, 0.0], 38.0) - 0.01 * disc([-14.0, 10.0], 10.0) + 0.01 * disc([15.0, 12.0], 7.0)
    now = before + 0.01 * disc([8.0, -16.0], 8.0)
    sizes = {} if beam == "parallel" else {"source_to_axis_mm": 250.0, "source_to_detector_mm": 400.0}
    turn, pitch = (180.0, 3.0) if beam == "parallel" else (360.0, 5.0)
    geometry = ProjectionGeometry(beam, np.arange(7) * turn / 7, Detector("flat", (1, 46), (5.0, pitch)), GRID, **sizes)
    return Scan(before, GRID, "1/mm"), now, Measurement(project_voxels(now, GRID, geometry), geometry)


def rms(x, y):
    return float((x - y).square().mean().sqrt())


@cache
def fitted(prior, **changes):
    before, _, data = scene()
    return nerp.fit(replace(CONFIG, **changes), data, Run(seed=4), prior=before if prior else None)


def test_before_the_fit_the_field_is_the_prior():
    before, now, _ = scene()
    image = nerp.render(fitted(True, steps=0), GRID)
    assert rms(image, before.values) < 0.1 * rms(torch.zeros(GRID.shape), before.values)
    assert rms(image, before.values) < rms(image, now)


def test_with_the_prior_it_is_better_than_without_and_than_the_prior_itself():
    before, now, _ = scene()
    ours, scratch = nerp.render(fitted(True), GRID), nerp.render(fitted(False), GRID)
    assert rms(ours, now) < 0.7 * rms(scratch, now)
    assert rms(ours, now) < 0.9 * rms(before.values, now)
    place = now - before.values > 0.006
    assert float((ours - before.values)[place].mean() / (now - before.values)[place].mean()) > 0.5


def test_stages_are_logged_and_the_frequencies_are_those_of_the_prior(tmp_path):
    result = fitted(True)
    assert [log.stage for log in result.logs] == ["prior", "fit"]
    assert [log.stage for log in fitted(False).logs] == ["fit"]
    assert torch.equal(result.field.encoding.frequencies, fitted(True, steps=0).field.encoding.frequencies)
    result.save(tmp_path / "field.safetensors")
    again = Reconstruction.load(tmp_path / "field.safetensors")
    assert torch.equal(nerp.render(again, GRID), nerp.render(result, GRID))


def test_with_and_without_a_prior_the_network_starts_alike():
    start = [
        nerp.fit(replace(CONFIG, steps=0, prior_steps=0), scene()[2], Run(seed=4), prior=p) for p in (None, scene()[0])
    ]
    first, second = (result.field.state_dict() for result in start)
    assert all(torch.equal(first[name], second[name]) for name in first) and start[0].spec.scale == start[1].spec.scale


def test_rays_and_whole_images_find_the_same(beam="fan"):
    before, now, data = scene(beam)
    errors = []
    for rays in (None, 160):
        config = replace(CONFIG, rays_per_step=rays, samples_per_ray=48)
        result = nerp.fit(config, data, Run(seed=4), prior=before)
        errors.append(rms(nerp.render(result, GRID), now))
        assert rms(nerp.predict(result, data), data.values) < 0.05 * float(data.values.square().mean().sqrt())
    assert errors[1] == pytest.approx(errors[0], rel=0.35)


def test_parts_of_a_prior_that_are_not_known_stay_open():
    before, now, data = scene()
    known = torch.ones(GRID.shape, dtype=torch.bool)
    known[:8] = False
    spoilt = Scan(torch.where(known, before.values, 5.0), GRID, "1/mm", known)
    result = nerp.fit(CONFIG, data, Run(seed=4), prior=spoilt)
    assert rms(nerp.render(result, GRID), now) < 0.25 * float(now.max())


def test_the_best_check_is_kept_where_asked():
    before, _, data = scene()
    fit, held = data.hold_out(1)
    result = nerp.fit(
        replace(CONFIG, keep_best=True, learning_rate=3e-3), fit, Run(seed=4), held_out=held, prior=before
    )
    log = result.logs[-1]
    residual = rms(nerp.predict(result, held), held.values)
    assert residual == pytest.approx(log.best_held_out, rel=1e-3)
    assert log.best_held_out <= log.history[-1]["held_out"]
