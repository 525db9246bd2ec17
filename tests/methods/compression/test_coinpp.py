"""What makes it COIN++: a base that a few steps adapt, codes that fill their bytes, and files that need the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scanfield.codec.field_file import read_field
from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.compression import coinpp
from scanfield.metrics.image import psnr_db
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.compression import compress, decompress
from scanfield.tasks.model import Model

GRID = Grid.centred((22, 19, 1), 1.5)
CONFIG = replace(coinpp.Config.tiny(), patch=6, latent=6, steps=150, encode_steps=3, refine=0)


def textured(seed: int, grid: Grid = GRID) -> Scan:
    """Stripes of any direction, with nothing at one side."""
    draws = torch.Generator().manual_seed(seed)
    x = grid.points().reshape(*grid.shape, 3)
    a, b, c = (3 * torch.rand(3, generator=draws)).tolist()
    values = 100 + 60 * torch.sin(x[..., 0] * (0.15 + a / 20) + x[..., 1] * (b - 1.5) / 8 + c)
    values[: grid.shape[0] // 3] = 0.0
    return Scan(values.round(), grid, "HU", source=f"person {seed}")


def cohort(folder: Path, grid: Grid = GRID) -> Cohort:
    lines = ["path,subject,split"]
    for seed in range(6):
        write_nifti(folder / f"{seed}.nii.gz", textured(seed, grid).values, grid, unit="HU")
        lines.append(f"{seed}.nii.gz,p{seed},{'validation' if seed == 5 else 'train'}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return coinpp.train(CONFIG, cohort(tmp_path_factory.mktemp("cohort")), Run(seed=0))


NEW = textured(77)


def fitted_db(model: Model, scan: Scan = NEW, **settings) -> float:
    result = coinpp.fit(replace(model.config, bits=12, **settings), scan, Run(seed=0), prior=model)
    return psnr_db(result.render(), scan.values)


def untrained(model: Model) -> Model:
    """The same network, as it was drawn."""
    drawn = coinpp.as_drawn(model.config, model.facts["dims"], Run(seed=0))
    return replace(model, tensors=drawn | {"rates": torch.full((6,), model.config.inner_rate)})


def test_three_steps_reach_what_fifty_reach_and_a_random_base_does_not(model):
    three, fifty = fitted_db(model, encode_steps=3), fitted_db(model, encode_steps=50)
    assert three > 0.85 * fifty, "of a training of seconds; the benchmark asks for 0.9"
    assert three > fitted_db(untrained(model), encode_steps=3) + 5


def test_validation_is_watched_and_the_model_is_small_and_anonymous(model):
    (log,) = model.logs
    assert log.history[-1]["held_out"] < 0.6 * log.history[0]["loss"]["after"] ** 0.5
    assert all(t.dtype == torch.float16 for name, t in model.tensors.items() if name != "rates")
    assert set(model.cohort[0]) == {"sha256", "split"} and model.facts["spacing_mm"] == pytest.approx(1.5)


def test_the_file_has_codes_only_and_needs_its_model(model, tmp_path):
    path = tmp_path / "a.sfz"
    config = replace(model.config, bits=5)
    found = compress(NEW, "coinpp", config, Run(seed=0), path, stored_type="int16", baselines=False, model=model)
    assert dict(found.report.parts)["weights"] < 6 * 16 * 5 / 8 + 6 * 10 < model.size / 3
    row = found.table.rows[0].values
    assert row["bytes"] == path.stat().st_size and row["model_bytes"] == model.size
    assert row["amortised_bytes"] == pytest.approx(row["bytes"] + model.size / 100)
    back = decompress(path, model=model)
    assert back.values.dtype.name == "int16"
    assert psnr_db(back.values, NEW.values) == pytest.approx(row["psnr_db"])
    part = decompress(path, box=((8, 20), (2, 9), (0, 1)), model=model)
    assert abs(part.values.astype(int) - back.values[8:20, 2:9].astype(int)).max() <= 1
    assert torch.equal(read_field(path, model=model).render(), found.result.render())
    with pytest.raises(InputError, match=f"needs the model {model.key}"):
        decompress(path)
    with pytest.raises(InputError, match="written with the model"):
        decompress(path, model=untrained(model))


def test_a_residual_bounds_the_error_of_a_trained_field_too(model, tmp_path):
    path = tmp_path / "a.sfz"
    options = {"stored_type": "int16", "baselines": False, "max_error": 2.0, "model": model}
    compress(NEW, "coinpp", model.config, Run(seed=0), path, **options)
    assert abs(decompress(path, model=model).values - NEW.values.numpy()).max() <= 2


@pytest.mark.parametrize("most", [380, 430])
def test_files_keep_their_budget(model, tmp_path, most):
    found = compress(
        NEW, "coinpp", model.config, Run(seed=0), tmp_path / "a.sfz", max_bytes=most, baselines=False, model=model
    )
    assert found.report.total <= most


def test_refined_codes_are_better_at_the_same_bytes(model, tmp_path):
    psnr = []
    for refine in (0, 2):
        config = replace(model.config, refine=refine, budget_bytes=400)
        found = compress(NEW, "coinpp", config, Run(seed=0), tmp_path / "a.sfz", baselines=False, model=model)
        psnr.append(found.table.rows[0].values["psnr_db"])
    assert psnr[1] > psnr[0]


def test_empty_patches_take_no_bytes_and_keep_their_value(model):
    result = coinpp.fit(model.config, NEW, Run(seed=0), prior=model)
    assert all(len(z) < 16 for z in result.field.latents)
    full = replace(NEW, values=100 * torch.rand(GRID.shape, generator=torch.Generator().manual_seed(5)))
    assert all(len(z) == 16 for z in coinpp.fit(model.config, full, Run(seed=0), prior=model).field.latents)


def test_settings_of_the_model_cannot_be_changed(model):
    with pytest.raises(InputError, match="trained with latent = 6, not 7"):
        coinpp.fit(replace(model.config, latent=7), NEW, Run(), prior=model)
    with pytest.raises(InputError, match="needs a trained model"):
        coinpp.fit(model.config, NEW, Run())


def test_images_that_do_not_suit_the_model(model):
    volume = Grid.centred((8, 8, 8), 1.5)
    with pytest.raises(InputError, match="2 axes, this one has 3"):
        coinpp.fit(model.config, textured(3, volume), Run(), prior=model)
    with pytest.raises(InputError, match="constant"):
        coinpp.fit(model.config, Scan(torch.ones(GRID.shape), GRID), Run(), prior=model)
    run = Run(seed=0)
    coinpp.fit(model.config, replace(NEW, grid=Grid.centred(GRID.shape, 4.0)), run, prior=model)
    assert any("trained on voxels of 1.5 mm" in warning for warning in run.warnings)


def test_slices_and_volumes_are_not_mixed(tmp_path):
    made = cohort(tmp_path)
    volume = Grid.centred((8, 8, 8), 1.5)
    write_nifti(tmp_path / "2.nii.gz", textured(2, volume).values, volume)
    with pytest.raises(InputError, match="not both"):
        coinpp.train(CONFIG, made, Run(seed=0))


def test_volumes_of_an_oblique_grid(tmp_path):
    grid = Grid((9, 8, 7), GRID.affine @ torch.diag(torch.tensor([1.0, -1.0, 2.0, 1.0])).double().numpy())
    config = replace(CONFIG, steps=100, patch=4)
    trained = coinpp.train(config, cohort(tmp_path, grid), Run(seed=0))
    scan = textured(9, grid)
    result = coinpp.fit(config, scan, Run(seed=0), prior=trained)
    assert trained.facts["dims"] == 3 and result.render().shape == grid.shape
    assert psnr_db(result.render(), scan.values) > 12
