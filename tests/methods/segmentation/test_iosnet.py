"""What makes it IOSNet: all levels at a point, one decoder for all points, any resolution, balanced points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.labels import LabelTable, write_label_table
from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.data.standard import Intensities, standard_image
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.losses.segmentation import mean_dice
from scanfield.methods.segmentation import iosnet
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model

TABLE = LabelTable((0, 4, 9), ("background", "ring", "core"))
CONFIG = replace(iosnet.Config.tiny(), steps=120, validate_every=40)


def oblique(shape=(26, 24, 1), spacing=(-1.5, 1.5, 4.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (60, -30, 15)
    return Grid(shape, affine)


def person(seed: int, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc with a core somewhere in the plane of the grid, and its class indices, at any resolution."""
    draws = torch.Generator().manual_seed(seed)
    u = grid.points().double() - torch.tensor(oblique().centre_mm)
    place = u @ torch.tensor(oblique().directions)[:, :2] - (8 * torch.rand(2, generator=draws, dtype=torch.double) - 4)
    radius = place.norm(dim=1)
    classes = (radius < 11).int() + (radius < 4.5).int()
    values = torch.tensor([20.0, 100.0, 60.0])[classes.long()] + 8 * torch.randn(grid.size, generator=draws)
    return values.reshape(grid.shape), classes.to(torch.uint8).reshape(grid.shape)


def cohort(folder: Path) -> Cohort:
    lines = ["path,label,subject,split"]
    for seed in range(7):
        grid = oblique((26 - seed % 2, 24, 1))
        values, classes = person(seed, grid)
        write_nifti(folder / f"{seed}.nii.gz", values, grid)
        write_nifti(folder / f"{seed}_label.nii.gz", TABLE.values_of(classes), grid)
        lines.append(f"{seed}.nii.gz,{seed}_label.nii.gz,p{seed},{'validation' if seed == 6 else 'train'}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    write_label_table(folder / "labels.csv", TABLE)
    return read_cohort(folder / "cohort.csv", labels=folder / "labels.csv")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Cohort:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def model(people) -> Model:
    return iosnet.train(CONFIG, people, Run(seed=0))


GRID = oblique()
VALUES, CLASSES = person(77, GRID)
SCAN = Scan(VALUES, GRID)


def test_it_learns_to_segment_people_it_has_not_seen(model):
    found = iosnet.classifier(model, SCAN, "cpu")(GRID.points()).argmax(dim=1)
    assert mean_dice(found, CLASSES.long().reshape(-1)) > 0.9
    log = model.logs[0]
    assert log.best_held_out < 0.15
    assert log.history[-1]["loss"]["cross_entropy"] < 0.5 * log.history[0]["loss"]["cross_entropy"]


def test_it_is_asked_at_any_resolution(model):
    """The class of a point on a grid four times finer, against the truth there and not the training's voxels."""
    fine = GRID.resampled((0.375, 0.375, 4.0))
    ask = iosnet.classifier(model, SCAN, "cpu")
    found = ask(fine.points()).argmax(dim=1)
    true = person(77, fine)[1].long().reshape(-1)
    blocks = ask(GRID.to_world(GRID.to_voxel(fine.points().double()).round()).float()).argmax(dim=1)
    assert mean_dice(found, true) > 0.9
    assert mean_dice(found, true) > mean_dice(blocks, true), "finer than its voxels"


def test_logits_are_the_decoder_of_all_levels_at_the_displaced_points(model):
    """phi written out with scipy, for random points of one image."""
    facts, config = model.facts, model.config
    standard = standard_image(SCAN, config.crops.intensities)
    network = iosnet.IOSNet(config, [tuple(s) for s in facts["strides"]], 3, generator=torch.Generator().manual_seed(9))
    network.load_state_dict(model.tensors)
    with torch.no_grad():
        levels = network.encoder(standard.values[None, None, :, :, 0])
    x = GRID.points()[::37].double()
    voxel = standard.grid.to_voxel(x)[:, :2].numpy()
    d = facts["displacement_mm"] / np.asarray(standard.grid.spacing_mm[:2])
    moves = [np.zeros(2), [d[0], 0], [0, d[1]], [-d[0], 0], [0, -d[1]]]
    phi = []
    for move in moves:
        for level, scale in zip(levels, network.encoder.scales, strict=True):
            for channel in level[0].numpy():
                place = np.clip((voxel + move) / scale, 0, np.asarray(channel.shape) - 1)
                phi.append(map_coordinates(channel, place.T, order=1, mode="nearest"))
    h = torch.tensor(np.stack(phi, axis=1)).float()
    layers = network.decoder.linears
    for layer in layers[:-1]:
        h = (h @ layer.weight.T + layer.bias).relu()
    expected = (h @ layers[-1].weight.T + layers[-1].bias).detach()
    torch.testing.assert_close(iosnet.classifier(model, SCAN, "cpu")(x.float()), expected, atol=2e-3, rtol=2e-3)


def test_how_an_image_was_stored_changes_nothing(model):
    """Voxel axes exchanged and mirrored: the same voxels at the same places."""
    stored = VALUES.transpose(0, 1).flip(0)
    index = np.array([[0.0, 1, 0, 0], [-1, 0, 0, VALUES.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    other = Scan(stored.contiguous(), Grid(tuple(stored.shape), GRID.affine @ index))
    x = GRID.points()
    torch.testing.assert_close(
        iosnet.classifier(model, other, "cpu")(x), iosnet.classifier(model, SCAN, "cpu")(x), atol=1e-3, rtol=1e-3
    )


def test_an_image_of_other_voxels_is_brought_to_those_learned_from(model):
    fine = oblique((78, 72, 1), (-0.5, 0.5, 4.0))
    centred = Grid(fine.shape, fine.affine.copy())
    values, classes = person(5, centred)
    found = iosnet.classifier(model, Scan(values, centred), "cpu")(centred.points()).argmax(dim=1)
    assert mean_dice(found, classes.long().reshape(-1)) > 0.85


def test_a_point_s_class_does_not_depend_on_what_else_is_asked(model, monkeypatch):
    ask, x = iosnet.classifier(model, SCAN, "cpu"), GRID.points()
    whole = ask(x)
    monkeypatch.setattr(iosnet, "CHUNK", 100)
    torch.testing.assert_close(ask(x), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ask(x[50:60]), whole[50:60], atol=1e-4, rtol=1e-4)
    assert not whole.requires_grad
    assert ask(x[:0]).shape == (0, 3)
    assert bool(torch.isfinite(ask(x + 1e4)).all())


def test_a_model_file_says_everything(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    back = Model.load(tmp_path / "model.safetensors")
    assert back.key == model.key
    assert LabelTable.from_json(back.facts["labels"]) == TABLE
    assert back.facts["dims"] == 2
    assert back.facts["spacing_mm"] == pytest.approx([1.5, 1.5, 4.0])
    (a, b), (c, d) = back.facts["intensity"]["ends"]
    assert a <= b < 20 < 100 < c <= d
    assert [entry["split"] for entry in back.cohort] == ["train"] * 6 + ["validation"]
    assert all(entry["label_sha256"] for entry in back.cohort)
    x = GRID.points()
    assert torch.equal(iosnet.classifier(back, SCAN, "cpu")(x), iosnet.classifier(model, SCAN, "cpu")(x))


SHORT = replace(CONFIG, steps=6, validate_every=3)


def test_the_seed_decides_everything(people):
    torch.manual_seed(0)
    first = iosnet.train(SHORT, people, Run(seed=3))
    torch.manual_seed(1)
    again, other = (iosnet.train(SHORT, people, Run(seed=seed)) for seed in (3, 4))
    assert first.key == again.key
    assert first.key != other.key


def test_stopped_and_resumed_is_the_same_bit_for_bit(people, tmp_path):
    plan = replace(SHORT, validate_every=1)
    whole = iosnet.train(plan, people, Run(seed=2))
    stopping = Run(tmp_path, seed=2)
    stopping.observers = (lambda event: stopping.stop.set() if event.get("step") == 3 else None,)
    assert iosnet.train(plan, people, stopping).logs[0].stopped == "interrupted"
    resumed = iosnet.train(plan, people, Run(tmp_path, seed=2, resume=True))
    assert resumed.logs[0].steps == 6
    assert resumed.key == whole.key


def test_without_people_to_watch_the_last_weights_are_kept(people):
    alone = Cohort(people.part("train"), people.source, people.labels)
    assert iosnet.train(SHORT, alone, Run()).logs[0].best_held_out is None


def test_the_coarsest_level_alone_and_the_whole_image_s_features(people):
    config = replace(SHORT, levels="last", displacement=0.0, whole=True)
    model = iosnet.train(config, people, Run())
    width = config.encoder.widths[-1]
    assert model.tensors["decoder.layers.0.weight"].shape[1] == 2 * width
    assert np.prod(model.facts["strides"], axis=0).tolist() == [4, 4]
    standard = standard_image(SCAN, Intensities())
    network = iosnet._restored(model)
    condition = iosnet._encoded(network, standard, 0.0, torch.device("cpu"))
    place = torch.tensor([[4.0, 8.0, 0.0], [6.0, 8.0, 0.0], [8.0, 8.0, 0.0]]).double()
    at, between, next_to = condition.at(standard.grid.to_world(place).float())  # two coarse voxels, and half-way
    torch.testing.assert_close(between, (at + next_to) / 2, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(at[:width], next_to[:width])
    assert torch.equal(at[width:], next_to[width:]), "the mean of the image is the same everywhere"


def test_with_detail_the_encoder_sees_less_than_the_points(people):
    """The encoder gets voxels of 3 mm, their means; the points the image as it is, 1.5 mm, at its place."""
    crops = replace(CONFIG.crops, spacing_mm=(3.0, 3.0, 4.0), detail=2)
    model = iosnet.train(replace(CONFIG, crops=crops), people, Run())
    found = iosnet.classifier(model, SCAN, "cpu")(GRID.points()).argmax(dim=1)
    assert mean_dice(found, CLASSES.long().reshape(-1)) > 0.9
    odd = oblique((25, 23, 1))
    scan = Scan(person(77, odd)[0], odd)
    standard = standard_image(scan, Intensities())
    network = iosnet._restored(model)
    condition = iosnet._encoded(network, standard, 0.0, torch.device("cpu"))
    seen = condition.at(odd.points())[:, 0]
    torch.testing.assert_close(seen, ImageField(standard.values, standard.grid)(odd.points())[:, 0], atol=1e-3, rtol=0)
    assert condition.levels[1].shape[2:] == (13, 12)
    coarse = torch.nn.functional.avg_pool2d(standard.values[None, None, :24, :22, 0], 2)
    inside = network.encoder.stem[0](coarse)[..., 1:-1, 1:-1]  # the first filters, away from the border
    padded = network.encoder.stem[0](torch.nn.functional.avg_pool2d(condition.levels[0], 2))
    torch.testing.assert_close(padded[..., 1:11, 1:10], inside, atol=1e-5, rtol=1e-5)


def test_volumes(tmp_path):
    lines = ["path,label,subject,split"]
    for k in range(3):
        grid = Grid.centred((9, 8 + k, 10), 2.0)
        inside = grid.points().norm(dim=1).reshape(grid.shape) < 7
        write_nifti(tmp_path / f"{k}.nii.gz", 50.0 * inside + k, grid)
        write_nifti(tmp_path / f"{k}_label.nii.gz", inside.to(torch.uint8), grid)
        lines.append(f"{k}.nii.gz,{k}_label.nii.gz,p{k},train")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    model = iosnet.train(replace(SHORT, steps=40), read_cohort(tmp_path / "cohort.csv"), Run())
    assert model.facts["dims"] == 3
    scan = Scan(50.0 * inside + 1, grid)
    found = iosnet.classifier(model, scan, "cpu")(grid.points()).argmax(dim=1)
    assert mean_dice(found, inside.long().reshape(-1)) > 0.8


def test_images_that_do_not_suit_the_model_are_refused(model):
    with pytest.raises(InputError, match="one channel"):
        iosnet.classifier(model, Scan(torch.randn(26, 24, 1, 2), GRID), "cpu")
    with pytest.raises(InputError, match="extends along right, anterior, superior"):
        iosnet.classifier(model, Scan(torch.randn(8, 8, 8), Grid.centred((8, 8, 8), 1.0)), "cpu")
    with pytest.raises(InputError, match="constant"):
        iosnet.classifier(model, Scan(torch.ones(GRID.shape), GRID), "cpu")
    with pytest.raises(InputError, match="not of 'iosnet'"):
        iosnet.classifier(replace(model, method="coinpp"), SCAN, "cpu")


@pytest.mark.parametrize(
    "more",
    [
        {"strides": [[0, 0]] * 3},
        {"strides": "abc"},
        {"axes": [7, 9]},
        {"encoder_spacing_mm": [1.0, 1.0]},
        {"displacement_mm": float("nan")},
        {"labels": {"values": [0, 1], "names": ["background", "one"]}},
    ],
)
def test_facts_that_do_not_suit_the_weights_are_refused(model, more):
    with pytest.raises(InputError, match="facts and weights do not suit"):
        iosnet.classifier(replace(model, facts=model.facts | more), SCAN, "cpu")
    few = {name: value for name, value in model.facts.items() if name not in more}
    with pytest.raises(InputError, match="KeyError"):
        iosnet.classifier(replace(model, facts=few), SCAN, "cpu")


@pytest.mark.parametrize("dice", [-0.1, 1.1])
def test_an_impossible_weight_is_refused(people, dice):
    with pytest.raises(InputError, match="lies in 0 to 1"):
        iosnet.train(replace(SHORT, dice=dice), people, Run())
