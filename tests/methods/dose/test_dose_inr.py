"""What makes it Dose-INR: the rate decides the width, sines beat rectifiers, the file keeps to its bytes."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from scanfield.codec.field_file import read_field, write_field
from scanfield.data.dose import Dose, box_of
from scanfield.errors import InputError
from scanfield.fields.calculus import value_and_gradient
from scanfield.methods.dose import dose_inr
from scanfield.methods.dose.dose_inr import Config, parameters, widest
from scanfield.metrics.image import psnr_db
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction

GRID = Grid((36, 32, 24), np.array([[-3.0, 0, 0, 60], [0, 3.0, 0, -40], [0, 0, 3.0, 11], [0, 0, 0, 1]]))
QUICK = replace(Config.fast(), bits_per_voxel=1.5, steps=500, points_per_step=2048, learning_rate=2e-3)


@cache
def planned() -> Dose:
    """Two targets in a body, fast fall-off between them, nothing outside of the body."""
    x = GRID.points().double() - torch.tensor(GRID.centre_mm)
    a = (x - torch.tensor([12.0, 4, 2])).norm(dim=1)
    b = (x - torch.tensor([-14.0, -6, -4])).norm(dim=1)
    dose = 8 + 60 * torch.sigmoid((15 - a) / 3) + 45 * torch.sigmoid((12 - b) / 2)
    body = (x / torch.tensor([46.0, 40, 30])).norm(dim=1) < 1
    return Dose((dose * body).float().reshape(GRID.shape), GRID)


@cache
def fitted(accounting: str = "written", activation: str = "sine") -> Reconstruction:
    config = replace(QUICK, accounting=accounting, activation=activation)  # type: ignore[arg-type]
    return dose_inr.fit(config, planned(), Run(seed=1))


def quality(result: Reconstruction) -> float:
    return psnr_db(result.render(GRID), planned().values, None, planned().highest_gy)


def budget(config: Config) -> float:
    return config.bits_per_voxel * math.prod(high - low for low, high in box_of(planned())) / 8


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [5, 100, 4655, 21_000])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_width_is_the_largest_that_the_budget_allows(layers, count, dims):
    width = widest(count, layers, dims)
    assert width == 0 or parameters(width, layers, dims) <= count
    assert parameters(width + 1, layers, dims) > count


def test_the_number_of_parameters_is_that_of_the_network():
    result = fitted()
    width = result.spec.facts["width"]
    assert sum(p.numel() for p in result.field.parameters()) == parameters(width, QUICK.hidden_layers)


def test_published_accounting_counts_32_bits_a_parameter():
    result = fitted("float32")
    count = sum(p.numel() for p in result.field.parameters())
    assert 0.9 * budget(QUICK) < 4 * count <= budget(QUICK)
    assert "support" not in result.tensors and "rungs" not in result.spec.facts


def test_the_written_file_keeps_to_its_bytes_and_decodes_to_the_fit(tmp_path):
    result = fitted()
    report = write_field(tmp_path / "d.sfz", result, rungs=dose_inr.rungs(result))
    assert 0.9 * budget(QUICK) < report.total <= budget(QUICK)
    assert report.total == (tmp_path / "d.sfz").stat().st_size
    back = read_field(tmp_path / "d.sfz")
    assert torch.equal(back.render(GRID), result.render(GRID))
    assert torch.equal(back.tensors["support"], result.tensors["support"])


def test_weights_are_rounded_exactly_to_the_steps_of_the_file():
    result = fitted()
    steps = dose_inr.rungs(result)
    assert set(steps) == set(result.field.state_dict())
    for name, tensor in result.field.state_dict().items():
        whole = tensor.double() / 2 ** (steps[name] / 4)
        assert (whole - whole.round()).abs().max() < 1e-3 * max(1.0, float(whole.abs().max()) * 1e-3)


def test_rounded_weights_and_a_mask_are_worth_many_decibels_at_the_same_bytes():
    assert quality(fitted()) > quality(fitted("float32")) + 6


def test_a_sine_network_beats_a_rectifier_network_at_equal_bytes():
    assert quality(fitted()) > quality(fitted(activation="relu")) + 6
    assert quality(fitted()) > 36


def test_there_is_no_dose_where_there_was_none_and_none_below_zero():
    image = fitted().render(GRID)
    assert (image[planned().values == 0] == 0).all() and image.min() >= 0


def test_the_continuous_dose_has_the_gradient_of_its_values():
    dose = dose_inr.dose(fitted()).double()
    x = (GRID.points().double() - torch.tensor(GRID.centre_mm))[GRID.size // 2 :: 2311] * 0.4 + torch.tensor(
        GRID.centre_mm
    )
    value, gradient = value_and_gradient(dose, x)
    for axis in range(3):
        step = 1e-4 * torch.eye(3, dtype=torch.float64)[axis]
        with torch.no_grad():
            slope = (dose(x + step) - dose(x - step))[:, 0] / 2e-4
        assert torch.allclose(gradient[:, axis], slope, atol=1e-4)
    assert value.min() > 5 and gradient.abs().max() > 0.1
    dose.float()


def test_on_a_finer_grid_the_dose_is_the_same_function():
    fine = GRID.resampled(1.5)
    image = fitted().render(fine)
    inner = image[2:-2, 2:-2, 2:-2]
    coarse = torch.nn.functional.avg_pool3d(image[None, None], 2)[0, 0]
    known = planned().values > 0
    edge = torch.nn.functional.max_pool3d((~known).float()[None, None], 3, 1, 1)[0, 0] > 0
    assert inner.max() <= planned().highest_gy * 1.1
    assert float((coarse - planned().values)[known & ~edge].abs().mean()) < 0.6


def test_the_error_is_watched_in_gy_and_the_best_state_is_kept():
    logs = fitted().logs
    assert [log.stage for log in logs] == ["fit", "rounded"]
    assert logs[1].best_held_out == pytest.approx(
        float((fitted().render(GRID) - planned().values)[planned().values > 0].square().mean().sqrt()), rel=0.05
    )


def test_held_out_voxels_are_not_seen():
    unseen = torch.zeros(GRID.shape, dtype=torch.bool)
    unseen[::3, ::3, ::3] = True
    one = Dose(planned().values, GRID, ~unseen)
    values = planned().values.clone()
    values[unseen & (values > 0)] += 1.0  # a different dose where nobody looks
    other = Dose(values, GRID, ~unseen)
    config = replace(QUICK, steps=40)
    first, second = (dose_inr.fit(config, dose, Run(seed=1)) for dose in (one, other))
    assert first.spec.facts["width"] == second.spec.facts["width"]
    assert torch.equal(first.tensors["support"], second.tensors["support"])


def test_interrupted_before_the_rounded_stage_it_still_renders(tmp_path):
    run = Run(seed=1)
    run.observers = (lambda event: run.stop.set() if event.get("step", 0) >= 100 else None,)
    result = dose_inr.fit(QUICK, planned(), run)
    assert len(result.logs) == 1 and torch.isfinite(result.render(GRID)).all()
    report = write_field(tmp_path / "d.sfz", result, rungs=dose_inr.rungs(result))
    assert report.total == (tmp_path / "d.sfz").stat().st_size


def test_stopped_and_resumed_in_the_rounded_stage_gives_the_same_bits(tmp_path):
    config = replace(QUICK, steps=120)
    whole = dose_inr.fit(config, planned(), Run(seed=1))
    run = Run(tmp_path, seed=1)

    def stop(event):
        if event.get("stage") == "rounded" and event["step"] >= 15:
            run.stop.set()

    run.observers = (stop,)
    cut = dose_inr.fit(config, planned(), run)
    assert cut.logs[1].stopped == "interrupted"
    again = dose_inr.fit(config, planned(), Run(tmp_path, seed=1, resume=True))
    assert torch.equal(again.render(GRID), whole.render(GRID))


def test_too_few_bytes_and_impossible_settings_are_refused():
    with pytest.raises(InputError, match="too few"):
        dose_inr.fit(replace(QUICK, bits_per_voxel=0.01), planned(), Run())
    for wrong in ({"bits_per_voxel": 0.0}, {"hidden_layers": 0}, {"width": 0}, {"rounded_share": 1.0}):
        with pytest.raises(InputError):
            replace(QUICK, **wrong)


def test_candidates_are_settings_of_the_configuration():
    for settings in dose_inr.candidates(QUICK):
        assert replace(QUICK, **settings).bits_per_voxel == QUICK.bits_per_voxel
