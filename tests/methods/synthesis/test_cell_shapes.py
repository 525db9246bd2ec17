"""What makes it this method: one code for a sequence, one network for all, shapes between frames and between codes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.sequences import MaskSequence, read_sequence, write_sequence
from scanfield.errors import InputError
from scanfield.fields.space_time import frames_of
from scanfield.methods.synthesis import cell_shapes
from scanfield.methods.synthesis.cell_shapes import Config
from scanfield.metrics.shape_model import paired_dice
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model

OBLIQUE = np.array([[0.7, -0.4, 0.0, 40.0], [0.4, 0.7, 0.0, -90.0], [0.0, 0.0, -0.8, 7.0], [0, 0, 0, 1.0]])
CONFIG = replace(Config.tiny(), epochs=90, validate_every=200)


def ball(
    radius: float, growth: float, *, frames: int = 4, grid: Grid | None = None, shift: float = 0.0
) -> MaskSequence:
    """A ball that grows from one radius (mm) by a factor, off the middle of its image."""
    grid = grid or Grid((16, 17, 18), OBLIQUE)
    middle = torch.tensor(grid.centre_mm) + torch.tensor([shift, 0.3, -0.2])
    length = (grid.points().double() - middle).norm(dim=1).reshape(grid.shape)
    radii = np.linspace(radius, radius * growth, frames)
    return MaskSequence(torch.stack([length < r for r in radii]), grid, 30.0 / (frames - 1))


def cohort(folder: Path) -> Cohort:
    other = Grid.centred((20, 18, 16), (0.8, 0.8, 0.9))
    sequences = {
        "small,train": ball(2.2, 1.5),
        "large,train": ball(3.2, 1.5, shift=0.5),
        "still,train": ball(3.0, 1.02, grid=other, frames=5),
        "unseen,validation": ball(2.7, 1.4),
    }
    lines = ["path,subject,split"]
    for name, sequence in sequences.items():
        subject = name.split(",")[0]
        write_sequence(folder / f"{subject}.nii.gz", sequence)
        lines.append(f"{subject}.nii.gz,{name}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Cohort:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def model(people) -> Model:
    return cell_shapes.train(CONFIG, people, Run(seed=1))


@cache
def volumes(radius: float, growth: float, frames: int) -> list[float]:
    return [4 / 3 * math.pi * r**3 for r in np.linspace(radius, radius * growth, frames)]


def shown(model: Model, code: torch.Tensor, times: list[float]) -> torch.Tensor:
    grid, _ = cell_shapes.canvas(model)
    fine = grid.resampled(0.6)
    return frames_of(cell_shapes.shape(model, code), fine, times).flatten(1).sum(dim=1) * fine.voxel_volume_mm3


def test_the_published_setting_is_the_default():
    network = cell_shapes._network(Config(), torch.Generator())
    assert sum(p.numel() for p in network.parameters()) == 216_137
    assert network.omega == 30 and Config().prior == 1e-4 and Config().near_share == 0.7


def test_impossible_settings_are_refused():
    for name, value in {
        "omega": 0.0,
        "prior": -1.0,
        "ramp_epochs": -1,
        "points": 0,
        "clamp": 0.5,
        "near_share": 1.2,
        "frame_step": 0.0,
        "halve_epochs": 0,
    }.items():
        with pytest.raises(InputError):
            Config(**{name: value})
    with pytest.raises(InputError, match="enters hidden layers"):
        cell_shapes._network(replace(Config.tiny(), inject=(4,)), torch.Generator())


def test_sequences_are_learned_on_their_own_oblique_grids(model, people):
    log = model.logs[0]
    assert log.stopped == "steps" and log.best_held_out is not None
    first, last = log.history[0]["loss"]["distance"], log.history[-1]["loss"]["distance"]
    assert last < 0.3 * first
    for code, member in zip(cell_shapes.codes(model), people.part("train"), strict=True):
        sequence, shift = read_sequence(member.path), np.eye(4)
        shift[:3, 3] = -sequence.centre_mm
        grid = sequence.grid.moved(shift)
        found = frames_of(cell_shapes.shape(model, code), grid, sequence.times_s.tolist())
        assert paired_dice(found, sequence.frames).min() > 0.8


def test_between_frames_the_shape_goes_on_growing(model):
    small, still = (shown(model, cell_shapes.codes(model)[k], [0.0, 10.0, 15.0, 30.0]) for k in (0, 2))
    assert (small.diff() > 0).all() and small[-1] / small[0] > 2
    assert 0.7 < still[-1] / still[0] < 1.4
    torch.testing.assert_close(small[2].double(), torch.tensor(volumes(2.2, 1.5, 3)[1]).double(), rtol=0.25, atol=0)


def test_values_are_distances_in_mm(model):
    shape = cell_shapes.shape(model, cell_shapes.codes(model)[1])
    x = torch.zeros(50, 4)
    x[:, 0] = torch.linspace(0.5, 5.5, 50)
    slope = shape(x)[:, 0].diff() / x[:, 0].diff()
    assert 0.7 < slope.mean() < 1.3
    assert float(shape(torch.tensor([3.2, 0.0, 0.0, 0.0]))) == pytest.approx(0.0, abs=0.5)


def test_the_box_holds_every_object_with_its_margin(model):
    facts = model.facts
    assert facts["edge_mm"] * (1 - 2 * CONFIG.clamp) >= 2 * 3.2 * 1.5
    assert facts["clamp_mm"] == pytest.approx(CONFIG.clamp * facts["edge_mm"])
    assert facts["duration_s"] == pytest.approx(30.0) and facts["frames"] == 4
    grid, times = cell_shapes.canvas(model)
    assert grid.shape[0] * grid.spacing_mm[0] >= facts["edge_mm"] - 1e-6
    np.testing.assert_allclose(times, [0, 10, 20, 30], atol=1e-6)


def test_an_unseen_sequence_finds_its_code(model, people):
    (member,) = people.part("validation")
    sequence = read_sequence(member.path)
    long = Model(model.method, replace(model.config, infer_steps=150), model.tensors, model.facts)
    code = cell_shapes.encode(long, [sequence], Run())
    found, mean = (shown(model, c, [0.0, 30.0]) for c in (code[0], cell_shapes.codes(model).mean(dim=0)))
    truth = torch.tensor([volumes(2.7, 1.4, 2)[k] for k in (0, 1)])
    assert (found / truth - 1).abs().mean() < 0.25
    assert (found / truth - 1).abs().mean() < (mean / truth - 1).abs().mean()
    again = cell_shapes.encode(long, [sequence], Run())
    assert torch.equal(code, again)


def test_drawn_codes_spread_like_the_learned_ones(model):
    codes = cell_shapes.codes(model)
    drawn = cell_shapes.draw(model, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), codes.mean(dim=0), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), atol=0.02, rtol=0.05)
    near = cell_shapes.draw(model, 5, torch.Generator().manual_seed(0), spread=0.0)
    torch.testing.assert_close(near, codes.mean(dim=0).expand(5, -1))


def test_the_rectifier_is_the_same_network_without_sines(people):
    relu = cell_shapes.train(replace(CONFIG, activation="relu", epochs=8), people, Run(seed=1))
    assert relu.logs[0].steps > 0 and relu.tensors.keys()
    x = torch.randn(5, 4)
    code = cell_shapes.codes(relu)[0]
    shape = cell_shapes.shape(relu, code)
    doubled = cell_shapes.shape(relu, code)
    doubled.network.omega = 99.0
    assert torch.equal(shape(x), doubled(x)), "a rectifier has no frequency"


def test_what_does_not_fit_is_said_before_anything_is_trained(people, tmp_path, model):
    rows = [f"{member.path},{member.subject},train" for member in people.part("train")]
    big = Grid.centred((40, 40, 40), 0.9)
    write_sequence(tmp_path / "big.nii.gz", ball(12.0, 1.3, grid=big))
    write_sequence(tmp_path / "long.nii.gz", replace(ball(2.0, 1.1), step_s=99.0))
    for name, said in (("big", "does not fit into the cube"), ("long", "a moment would not mean the same")):
        (tmp_path / "cohort.csv").write_text("\n".join(["path,subject,split", *rows, f"{name}.nii.gz,x,validation"]))
        with pytest.raises(InputError, match=said) as caught:
            cell_shapes.train(CONFIG, read_cohort(tmp_path / "cohort.csv"), Run())
        assert f"{name}.nii.gz" in str(caught.value)
    with pytest.raises(InputError, match="do not suit a model of 30 s"):
        cell_shapes.encode(model, [replace(ball(2.0, 1.1), step_s=99.0)], Run())


@pytest.mark.parametrize(
    "more",
    [
        {"edge_mm": math.nan},
        {"frames": 1},
        {"spacing_mm": 0},
        {"spacing_mm": 1e-9},
        {"unit_mm": "x"},
        {"duration_s": 0},
    ],
)
def test_facts_that_make_no_shapes_are_refused(model, more):
    with pytest.raises(InputError, match="facts and weights do not suit"):
        cell_shapes.canvas(replace(model, facts=model.facts | more))


@pytest.mark.parametrize("codes", [None, torch.zeros(0, 6), torch.zeros(3, 9), torch.zeros(6)])
def test_codes_that_do_not_suit_the_network_are_refused(model, codes):
    tensors = {name: value for name, value in model.tensors.items() if name != "codes"}
    with pytest.raises(InputError, match="facts and weights do not suit"):
        cell_shapes.codes(replace(model, tensors=tensors if codes is None else tensors | {"codes": codes}))
