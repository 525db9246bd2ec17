"""What every method promises, checked for all that `discover()` finds, also in other packages. No skip list."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import inspect
import itertools
import json
import math
import re
import sys
import tempfile
import time
import typing
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from scanfield.data.labels import LabelTable
from scanfield.data.phantoms import Ellipsoid, Phantom
from scanfield.data.scan import Scan
from scanfield.data.sequences import read_sequence
from scanfield.fields import calculus
from scanfield.methods import api, config
from scanfield.run import Run, Shown
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model
from scanfield.tasks.result import Reconstruction


def _load(name: str) -> ModuleType:
    """A module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tiny_data = _load("data")
METHODS = sorted(api.discover())
ALL = [(name, kind) for name in METHODS for kind in api.card(name).accepts]
LEARNERS = ("segmentation", "synthesis")  # tasks of methods whose result is the trained model: they fit no single scan
CASES = [(name, kind) for name, kind in ALL if api.card(name).task not in LEARNERS]
SEGMENTERS = [(name, kind) for name, kind in ALL if api.card(name).task == "segmentation"]
SHAPERS = [(name, kind) for name, kind in ALL if api.card(name).task == "synthesis"]
PAIRS = [(name, kind) for name, kind in CASES if api.card(name).task == "registration"]
IMAGES = [case for case in CASES if case not in PAIRS]


class Watched:
    """A preview that looks after every seventh step."""

    def __init__(self) -> None:
        self.shown: Shown | None = None
        self.seen: list[torch.Tensor] = []

    def show(self, shown: Shown) -> None:
        self.shown = shown

    def look(self, stage: str, step: int, in_place: Any) -> None:
        if step % 7 == 0 and self.shown is not None:
            with in_place(), torch.no_grad():
                seen, shape = self.shown.prepare()(self.shown.grid), self.shown.grid.shape
            assert tuple(seen.shape[:3]) == shape and torch.isfinite(seen).all() and seen.device.type == "cpu"
            self.seen.append(seen)


@cache
def trained(name: str, kind: str, seed: int) -> Model | None:
    """A tiny model for methods that learn from cohorts."""
    module = api.load(name)
    if "train" not in vars(module):
        return None
    with tempfile.TemporaryDirectory() as folder:
        cohort = tiny_data.COHORTS[kind](Path(folder))
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        start = time.process_time()
        model: Model = module.train(module.Config.tiny(), cohort, Run(seed=seed))
    seconds = time.process_time() - start
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert seconds < 20, f"training with Config.tiny() took {seconds:.0f} s of CPU time"
    return model


@cache
def fitted(name: str, kind: str) -> tuple[Reconstruction, float, bool]:
    """One tiny fit for all tests: result, seconds, and whether a global random state moved."""
    module, case = api.load(name), tiny_data.KINDS[kind]()
    prior = trained(name, kind, 3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # Python's own moves by the type checker alone
    start = time.process_time()
    result = module.fit(module.Config.tiny(), case.data, Run(seed=3), held_out=case.held_out, prior=prior)
    seconds = time.process_time() - start
    moved = not (torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all())
    return result, seconds, moved


def output(result: Reconstruction, grid: Grid | None = None) -> torch.Tensor:
    """What a result is for: its image on a grid, or where its map takes the grid's points."""
    if api.card(result.method).task != "registration":
        return result.render(grid)
    with torch.no_grad():
        phi = api.load(result.method).transform(result)
        return phi((result.spec.grid if grid is None else grid).points())


# The card ------------------------------------------------------------------------------------------------------------


def test_there_are_methods():
    assert METHODS


@pytest.mark.parametrize("name", METHODS)
def test_card_is_complete(name):
    card = api.card(name)
    for key in ("title", "authors", "venue", "summary", "choose_when", "choose_not_when", "text"):
        assert getattr(card, key).strip(), f"the card's '{key}' is empty"
    assert 1980 <= card.year <= 2100
    assert card.link.startswith("https://"), "the card needs a doi, an arxiv number or a url"
    assert card.accepts and len(set(card.accepts)) == len(card.accepts)
    unknown = set(card.accepts) - set(tiny_data.COHORTS if card.task in LEARNERS else tiny_data.KINDS)
    assert not unknown, f"kinds without tiny data in tests/conformance/data.py: {unknown}"


@pytest.mark.parametrize("name", METHODS)
def test_bibtex_parses_and_agrees_with_the_card(name):
    card = api.card(name)
    assert re.fullmatch(r"@\w+\{[\w:.-]+,\s*.*\}", card.bibtex.strip(), re.DOTALL)
    depth = 0
    for character in card.bibtex:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    fields = dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\}\s*[,}]", card.bibtex, re.DOTALL))
    assert {"author", "title", "year"} <= set(fields)
    assert int(fields["year"]) == card.year

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    assert letters(fields["title"]) == letters(card.title)


# The module ----------------------------------------------------------------------------------------------------------


PARTS = {"registration": ("build", "fit", "transform"), "segmentation": ("train", "classifier")}
PARTS |= {"synthesis": ("train", "codes", "draw", "shape", "canvas")}


@pytest.mark.parametrize("name", METHODS)
def test_module_defines_what_a_method_is_and_nothing_it_must_not(name):
    module = api.load(name)
    task = api.card(name).task
    parts = PARTS.get(task, ("build", "fit", "render", "predict"))
    assert all(callable(vars(module)[part]) for part in parts)
    if "fit" in parts:
        assert {"held_out", "prior"} <= set(inspect.signature(module.fit).parameters)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    banned = {
        "random.random",
        "torch.manual_seed",
        "torch.cuda.manual_seed_all",
        "np.random.seed",
        "random.seed",
        "hasattr",
        "print",
    }
    banned |= {"torch.set_default_device", "torch.set_default_dtype", "torch.set_num_threads"}
    assert not called & banned
    assert ast.get_docstring(tree)


def _undocumented(cls: type) -> list[str]:
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0].body
    documented = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    hints, missing = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if field.name not in documented:
            missing.append(f"{cls.__name__}.{field.name}")
        if dataclasses.is_dataclass(hints[field.name]):
            missing += _undocumented(hints[field.name])
    return missing


@pytest.mark.parametrize("name", METHODS)
def test_every_config_field_is_documented(name):
    assert _undocumented(api.load(name).Config) == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("preset", ["Config", "fast", "tiny"])
def test_configurations_are_frozen_and_travel_as_json(name, preset):
    cls = api.load(name).Config
    value = cls() if preset == "Config" else getattr(cls, preset)()
    assert type(value) is cls
    assert config.from_json(cls, json.loads(json.dumps(config.to_json(value)))) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(cls)[0].name, None)


# The fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tiny_fit_takes_seconds_and_uses_no_global_random_state(name, kind):
    _, seconds, moved = fitted(name, kind)
    assert seconds < 20, f"Config.tiny() took {seconds:.0f} s of CPU time"
    assert not moved, "a global random state was used: draw from run.generator(...)"


TRAINED = [(name, kind) for name, kind in ALL if "train" in vars(api.load(name))]


@pytest.mark.parametrize(("name", "kind"), TRAINED)
def test_training_watches_others_and_its_model_needs_no_data(name, kind, tmp_path):
    model = trained(name, kind, 3)
    assert model.method == name and model.config == api.load(name).Config.tiny() and model.cohort
    for log in model.logs:
        first, last = (sum(log.history[k]["loss"].values()) for k in (0, -1))
        assert last < first and log.history[-1]["held_out"] is not None
    model.save(tmp_path / "model.safetensors")
    back = Model.load(tmp_path)
    assert back.key == model.key
    if (name, kind) in CASES:
        case = tiny_data.KINDS[kind]()
        result = api.load(name).fit(back.config, case.data, Run(seed=3), held_out=case.held_out, prior=back)
        assert torch.equal(output(result), output(fitted(name, kind)[0]))


@pytest.mark.parametrize(("name", "kind"), TRAINED)
@pytest.mark.parametrize("validation", [True, False])
def test_training_that_is_looked_at_shows_a_member_and_is_the_same_bit_for_bit(name, kind, validation, tmp_path):
    module, preview, cohort = api.load(name), Watched(), tiny_data.COHORTS[kind](tmp_path)
    config = module.Config.tiny()
    if not validation:
        cohort = dataclasses.replace(cohort, members=cohort.part("train"))
    model = module.train(config, cohort, Run(seed=3, preview=preview))
    alone = trained(name, kind, 3) if validation else module.train(config, cohort, Run(seed=3))
    assert model.key == alone.key
    assert len(preview.seen) >= 3 and not torch.equal(preview.seen[0], preview.seen[-1]), "it forms while one looks"
    assert preview.seen[-1].float().std() > 0


@pytest.mark.parametrize(("name", "kind"), TRAINED)
def test_training_killed_and_resumed_is_bit_equal(name, kind, tmp_path):
    module, run = api.load(name), Run(tmp_path, seed=3)
    half = trained(name, kind, 3).logs[0].steps // 2

    def stop(event: dict[str, Any]) -> None:
        if event.get("step", 0) >= half:
            run.stop.set()

    run.observers = (stop,)
    (tmp_path / "cohort").mkdir()
    cohort = tiny_data.COHORTS[kind](tmp_path / "cohort")
    cut = module.train(module.Config.tiny(), cohort, run)
    assert cut.logs[0].stopped == "interrupted" and cut.logs[0].steps < trained(name, kind, 3).logs[0].steps
    again = module.train(module.Config.tiny(), cohort, Run(tmp_path, seed=3, resume=True))
    assert again.key == trained(name, kind, 3).key


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_loss_falls_and_held_out_data_are_watched(name, kind):
    result, _, _ = fitted(name, kind)
    assert result.logs, "a method returns the log of every stage"
    for log in result.logs:
        first, last = (sum(log.history[k]["loss"].values()) for k in (0, -1))
        assert last < first, f"stage '{log.stage}': {first:.4g} -> {last:.4g}"
        assert log.history[-1]["held_out"] is not None


@pytest.mark.parametrize(("name", "kind"), IMAGES)
def test_result_says_what_it_is(name, kind):
    result, _, _ = fitted(name, kind)
    assert result.method == name and result.config == api.load(name).Config.tiny()
    case = tiny_data.KINDS[kind]()
    assert result.spec.unit == case.unit and (case.grid is None or result.spec.grid.same_as(case.grid))
    image = result.render()
    assert tuple(image.shape[:3]) == result.spec.grid.shape and torch.isfinite(image).all()
    assert image.device.type == "cpu" and not image.requires_grad
    assert 0.01 < image.max() < 0.04, "the object has 0.02 per mm"


@pytest.mark.parametrize(("name", "kind"), [case for case in IMAGES if api.card(case[0]).takes_prior])
def test_a_prior_is_made_use_of(name, kind):
    """The best of all priors is the object itself: with it the image is nearer to the truth than without."""
    case, truth = tiny_data.KINDS[kind](), tiny_data.true_values(tiny_data.GRID)
    prior = Scan(truth, tiny_data.GRID, case.unit)
    module, without = api.load(name), fitted(name, kind)[0].render()
    image = module.fit(module.Config.tiny(), case.data, Run(seed=3), held_out=case.held_out, prior=prior).render()
    assert (image - truth).square().mean() < 0.95 * (without - truth).square().mean()


@pytest.mark.parametrize(("name", "kind"), IMAGES)
@pytest.mark.parametrize("grid", [tiny_data.GRID, tiny_data.OTHER_GRID], ids=["own grid", "another grid"])
def test_image_lies_at_its_place_in_the_world(name, kind, grid):
    image = fitted(name, kind)[0].render(grid)
    assert tuple(image.shape) == grid.shape
    fine = tiny_data.GRID.resampled(0.5)
    expected = tiny_data.centre_of_mass_mm(tiny_data.true_values(fine), fine)
    found = tiny_data.centre_of_mass_mm(image, grid)
    assert np.linalg.norm(found - expected) < tiny_data.SPACING_MM


@pytest.mark.parametrize(("name", "kind"), IMAGES)
def test_prediction_has_the_shape_and_size_of_the_data(name, kind):
    result, _, _ = fitted(name, kind)
    for data in (tiny_data.KINDS[kind]().data, tiny_data.KINDS[kind]().held_out):
        predicted = result.predict(data)
        measured = tiny_data.measured(data)
        assert predicted.shape == measured.shape and torch.isfinite(predicted).all()
        if measured.is_complex():
            predicted, measured = predicted.abs(), measured.abs()
        assert predicted.sum().item() == pytest.approx(measured.sum().item(), rel=0.5)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_map_says_what_it_is(name, kind):
    result, _, _ = fitted(name, kind)
    assert result.method == name and result.config == api.load(name).Config.tiny()
    assert result.spec.unit == "mm" and result.spec.grid.same_as(tiny_data.FIXED_GRID)
    for grid in (tiny_data.FIXED_GRID, tiny_data.FIXED_GRID.resampled(20.0).moved(np.diag([3.0, 3.0, 3.0, 1.0]))):
        mapped = output(result, grid)
        assert mapped.shape == (grid.size, 3) and torch.isfinite(mapped).all(), "also far beyond the images"


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_map_takes_points_of_the_fixed_image_to_the_moving_one(name, kind):
    """On oblique, left-handed, different grids, far from the origin: half of the way at least."""
    phi = api.load(name).transform(fitted(name, kind)[0])
    fixed, moving = tiny_data.pair_landmarks()
    with torch.no_grad():
        mapped = phi(fixed.float()).double()
    before, after = ((x - moving).norm(dim=-1).mean().item() for x in (fixed, mapped))
    assert after < 0.5 * before, f"{before:.2f} mm before, {after:.2f} mm after"
    normal = torch.tensor(tiny_data.FIXED_GRID.directions[:, 2])
    assert ((mapped - fixed) @ normal).abs().max() < 1e-3, "a slice's motion stays in its plane"


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_map_has_the_derivatives_of_its_values(name, kind):
    """The Jacobian that the map carries along, against differences of its values."""
    phi = copy.deepcopy(api.load(name).transform(fitted(name, kind)[0])).double()
    x = tiny_data.pair_landmarks()[0][::7]
    with torch.no_grad():
        _, matrix = calculus.jacobian(phi, x)
        for axis in range(3):
            step = 1e-4 * torch.eye(3, dtype=torch.float64)[axis]
            slope = (phi(x + step) - phi(x - step)) / 2e-4
            assert torch.allclose(matrix[..., axis], slope, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_and_loaded_renders_the_same(name, kind, tmp_path):
    result, _, _ = fitted(name, kind)
    result.save(tmp_path / "field.safetensors")
    back = Reconstruction.load(tmp_path / "field.safetensors")
    assert back.config == result.config and back.method == name
    assert torch.equal(output(back), output(result))
    assert torch.equal(output(back, tiny_data.OTHER_GRID), output(result, tiny_data.OTHER_GRID))
    if (name, kind) in IMAGES:
        data = tiny_data.KINDS[kind]().held_out
        assert torch.equal(back.predict(data), result.predict(data))
    assert [log.to_json() for log in back.logs] == [log.to_json() for log in result.logs]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_seed_decides_everything(name, kind):
    module, case = api.load(name), tiny_data.KINDS[kind]()

    def image(seed: int, preview: Watched | None) -> Any:
        prior, run = trained(name, kind, seed), Run(seed=seed, preview=preview)
        return output(module.fit(module.Config.tiny(), case.data, run, held_out=case.held_out, prior=prior))

    torch.manual_seed(11)  # what others do with the global generator, or who looks on, must not matter
    first = output(fitted(name, kind)[0])
    assert torch.equal(image(3, Watched()), first)
    assert not torch.equal(image(4, None), first)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_killed_and_resumed_is_bit_equal(name, kind, tmp_path):
    """The run is stopped in the middle of its first stage, after its last event but one was logged."""
    module, case = api.load(name), tiny_data.KINDS[kind]()
    whole = fitted(name, kind)[0]
    half = whole.logs[0].steps // 2

    run = Run(tmp_path, seed=3)

    def stop(event: dict[str, Any]) -> None:
        if event.get("step", 0) >= half:
            run.stop.set()

    run.observers = (stop,)
    cut = module.fit(module.Config.tiny(), case.data, run, held_out=case.held_out, prior=trained(name, kind, 3))
    assert cut.logs[0].stopped == "interrupted"
    assert torch.isfinite(output(cut)).all()
    run = Run(tmp_path, seed=3, resume=True)
    again = module.fit(module.Config.tiny(), case.data, run, held_out=case.held_out, prior=trained(name, kind, 3))
    assert torch.equal(output(again), output(whole))


# Segmentation --------------------------------------------------------------------------------------------------------


def logits(model: Model, grid: Grid) -> torch.Tensor:
    """What a model says of a person that it has not seen, at the voxel centres of a grid."""
    image = Scan(tiny_data.labelled_discs(*tiny_data.UNSEEN)[0], tiny_data.GRID, "1/mm")
    with torch.no_grad():
        classify = api.load(model.method).classifier(model, image, torch.device("cpu"))
        return classify(grid.points())


@pytest.mark.parametrize(("name", "kind"), SEGMENTERS)
def test_model_says_which_classes_it_knows(name, kind):
    model = trained(name, kind, 3)
    assert LabelTable.from_json(model.facts["labels"]) == tiny_data.LABELS
    said = logits(model, tiny_data.GRID)
    assert said.shape == (tiny_data.GRID.size, len(tiny_data.LABELS)) and torch.isfinite(said).all()
    assert not said.requires_grad
    far = tiny_data.GRID.resampled(20.0).moved(np.diag([3.0, 3.0, 3.0, 1.0]))
    assert torch.isfinite(logits(model, far)).all(), "also far beyond the image"


@pytest.mark.parametrize(("name", "kind"), SEGMENTERS)
@pytest.mark.parametrize("grid", [tiny_data.GRID, tiny_data.OTHER_GRID], ids=["own grid", "another grid"])
def test_classes_lie_at_their_place_in_the_world(name, kind, grid):
    """Of a person that was not learned from, on an oblique, left-handed grid and on another one of the same slice."""
    found = logits(trained(name, kind, 3), grid).argmax(dim=1)
    x = grid.points().double()
    a, b, radius = tiny_data.UNSEEN
    disc = Phantom((Ellipsoid((a, b, 0.0), (radius, radius, math.inf), value=1.0),))
    true = tiny_data.true_values(grid, disc).flatten() > 0
    bright = found == 1
    dice = 2 * int((bright & true).sum()) / int(bright.sum() + true.sum())
    assert dice > 0.7, f"Dice {dice:.2f}"
    assert (x[bright].mean(dim=0) - x[true].mean(dim=0)).norm() < tiny_data.SPACING_MM


@pytest.mark.parametrize(("name", "kind"), SEGMENTERS)
def test_saved_and_loaded_classifies_the_same(name, kind, tmp_path):
    model = trained(name, kind, 3)
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(logits(Model.load(tmp_path), tiny_data.OTHER_GRID), logits(model, tiny_data.OTHER_GRID))


@pytest.mark.parametrize(("name", "kind"), SEGMENTERS)
def test_the_seed_decides_a_training(name, kind):
    torch.manual_seed(12)  # what others do with the global generator must not matter
    first, grid = logits(trained(name, kind, 3), tiny_data.GRID), tiny_data.GRID
    trained.cache_clear()
    assert torch.equal(logits(trained(name, kind, 3), grid), first)
    assert not torch.equal(logits(trained(name, kind, 4), grid), first)


# Synthesis -----------------------------------------------------------------------------------------------------------


def distances(model: Model, code: torch.Tensor, grid: Grid, time_s: float) -> torch.Tensor:
    """The shape of a code at one moment, at the voxel centres of a grid."""
    x = torch.cat([grid.points(), torch.full((grid.size, 1), time_s)], dim=1)
    with torch.no_grad():
        return api.load(model.method).shape(model, code, torch.device("cpu"))(x)


@pytest.mark.parametrize(("name", "kind"), SHAPERS)
def test_shapes_are_those_of_the_training_sequences_around_their_centres(name, kind, tmp_path):
    """Each on its own oblique, left-handed grid, far from the origin."""
    module, model = api.load(name), trained(name, kind, 3)
    members = tiny_data.COHORTS[kind](tmp_path).part("train")
    codes = module.codes(model)
    assert len(codes) == len(members)
    for code, member in zip(codes, members, strict=True):
        sequence, centred = read_sequence(member.path), np.eye(4)
        centred[:3, 3] = -sequence.centre_mm
        grid = sequence.grid.moved(centred)
        for mask, moment in zip(sequence.frames, sequence.times_s, strict=True):
            found = distances(model, code, grid, float(moment)).reshape(grid.shape) < 0
            dice = 2 * int((found & mask).sum()) / int(found.sum() + mask.sum())
            assert dice > 0.7, f"{member.path.name} at {moment:g} s: Dice {dice:.2f}"


@pytest.mark.parametrize(("name", "kind"), SHAPERS)
def test_shapes_are_distances_everywhere_and_the_canvas_holds_them(name, kind):
    module, model = api.load(name), trained(name, kind, 3)
    grid, times = module.canvas(model)
    assert np.allclose(grid.centre_mm, 0, atol=1e-6) and times[0] == 0 and all(np.diff(times) > 0)
    far = grid.resampled(3.0 * grid.spacing_mm[0]).moved(np.diag([5.0, 5.0, 5.0, 1.0]))
    for code in module.codes(model):
        for moment in times:
            inside = distances(model, code, grid, moment).reshape(grid.shape) < 0
            assert inside.any() and not inside[[0, -1]].any() and not inside[:, [0, -1]].any()
        assert torch.isfinite(distances(model, code, far, 10 * times[-1])).all()
    assert distances(model, code, grid, 0.0).shape == (grid.size, 1)


@pytest.mark.parametrize(("name", "kind"), SHAPERS)
def test_drawn_codes_follow_the_generator_and_their_spread(name, kind):
    module, model = api.load(name), trained(name, kind, 3)
    drawn = [module.draw(model, 5, torch.Generator().manual_seed(seed), spread=1.0) for seed in (0, 0, 1)]
    assert drawn[0].shape == (5, module.codes(model).shape[1]) and torch.isfinite(drawn[0]).all()
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    none = module.draw(model, 2, torch.Generator().manual_seed(0), spread=0.0)
    assert torch.equal(none[0], none[1])


@pytest.mark.parametrize(("name", "kind"), SHAPERS)
def test_saved_and_loaded_shapes_are_the_same_and_the_seed_decides(name, kind, tmp_path):
    module, model = api.load(name), trained(name, kind, 3)
    model.save(tmp_path / "model.safetensors")
    back, (grid, times) = Model.load(tmp_path), module.canvas(model)
    assert torch.equal(module.codes(back), module.codes(model))
    first = distances(model, module.codes(model)[0], grid, times[-1])
    assert torch.equal(distances(back, module.codes(back)[0], grid, times[-1]), first)
    torch.manual_seed(13)  # what others do with the global generator must not matter
    trained.cache_clear()
    again, other = trained(name, kind, 3), trained(name, kind, 4)
    assert again.key == model.key and other.key != model.key
