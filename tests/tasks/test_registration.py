"""The pipeline: numbers against a known warp, and files that other programs read as the same map."""

import csv
import json

import numpy as np
import pytest
import torch

from scanfield.data.nifti import read_nifti
from scanfield.data.pair import Pair
from scanfield.data.points import Points, read_points
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.registration import idir
from scanfield.run import Run
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.tasks.registration import register
from scanfield.tasks.warp import map_points, mapping, moving_grid

SHIFT = torch.tensor([3.0, -4.0, 2.0])  # of the moving body
TINY = idir.Config.tiny()


def turned(shape, spacing, angle, centre=(12.0, -30.0, 50.0)):
    """A left-handed oblique grid around a point."""
    axis = np.array([1.0, 2.0, -0.5]) / np.linalg.norm([1.0, 2.0, -0.5])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    move = np.eye(4)
    move[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ np.diag([-1, 1, 1])
    move[:3, 3] = centre
    return Grid.centred(shape, spacing).moved(move)


def body(x):
    d = (x - torch.tensor([12.0, -30.0, 50.0])) / torch.tensor([14.0, 10.0, 12.0])
    return 100 * torch.exp(-(d**2).sum(-1)) + 5 * torch.sin(x / 6).sum(-1)


def pair(shape=(18, 16, 14)):
    fixed, moving = turned(shape, 2.5, 0.6), turned((20, 20, 18), (2.2, 2.6, 2.4), -0.2)
    a = body(fixed.points()).reshape(fixed.shape)
    b = body(moving.points() - SHIFT).reshape(moving.shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return Pair(Scan(a, fixed, "arbitrary", mask), Scan(b, moving))


def landmarks(data):
    x = data.fixed.grid.points()[data.fixed.mask.reshape(-1)][::97].double()
    names = {"name": tuple(f"p{k}" for k in range(len(x)))}
    return Points(x, names), Points(x + SHIFT)


def labels(data):
    fixed, moving = data.fixed, data.moving
    return (
        Scan(((fixed.values > 40).int() + (fixed.values > 70).int()), fixed.grid),
        Scan((moving.values > 40).float() + (moving.values > 70).float(), moving.grid),
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    data = pair()
    run = Run(folder, seed=2)
    outcome = register(
        data, "idir", TINY, run, preset="tiny", baselines="none", landmarks=landmarks(data), labels=labels(data)
    )
    return folder, data, outcome


def values(outcome, name):
    return next(row.values for row in outcome.table.rows if row.name == name)


def test_the_table_starts_where_there_is_no_registration(done):
    outcome = done[2]
    assert [row.name for row in outcome.table.rows] == ["identity", "idir"]
    before, after = values(outcome, "identity"), values(outcome, "idir")
    assert before["tre_mm"] == pytest.approx(float(SHIFT.norm()), abs=1e-4)
    assert after["tre_mm"] < 0.6 * before["tre_mm"] and after["dice"] > before["dice"] and after["ncc"] > before["ncc"]
    assert {"folding_percent", "sd_log_det", "inverse_mm", "tre_snapped_mm", "mi"} <= set(after)
    assert after["inverse_mm"] < 0.02
    assert {c.key for c in outcome.table.columns} >= set(after)


def test_images_lie_on_the_fixed_grid(done):
    folder, data, _ = done
    for name in ("fixed", "identity", "warped", "determinant"):
        assert read_nifti(folder / f"{name}.nii.gz").grid.same_as(data.fixed.grid)
    determinant = read_nifti(folder / "determinant.nii.gz").values
    assert determinant.mean() == pytest.approx(1, abs=0.2)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "complete" and facts["task"] == "registration" and facts["unit"] == "arbitrary"
    assert (folder / "report.html").read_text(encoding="utf-8").count("<figure>") >= 5


def test_itk_maps_the_same_points(done):
    """Fixed and moving grids are oblique, left-handed and different; both directions, to 0.01 mm."""
    sitk = pytest.importorskip("SimpleITK")
    folder, data, outcome = done
    phi = mapping(outcome.result)
    for stem, grid in (("displacement", data.fixed.grid), ("inverse_displacement", data.moving.grid)):
        field = sitk.ReadImage(str(folder / f"{stem}_itk.nii.gz"), sitk.sitkVectorFloat64)
        transform = sitk.DisplacementFieldTransform(field)
        x = grid.points().reshape(*grid.shape, 3)[3:-3:4, 3:-3:4, 3:-3:4].reshape(-1, 3).double()
        theirs = np.array([transform.TransformPoint(p) for p in (x.numpy() * [-1, -1, 1]).tolist()]) * [-1, -1, 1]
        theirs = torch.tensor(theirs)
        if stem == "displacement":
            assert (theirs - map_points(phi, x)).norm(dim=-1).max() < 0.01
        else:
            apart = (map_points(phi, theirs) - x).norm(dim=-1)
            assert apart.quantile(0.9) < 0.011  # the rest has no counterpart in the fixed image


def test_landmarks_carry_their_errors(done):
    folder, data, outcome = done
    found = read_points(folder / "landmarks.csv")
    fixed, moving = landmarks(data)
    assert found.columns["name"] == fixed.columns["name"]
    final = (found.x - moving.x).norm(dim=-1)
    assert np.allclose([float(v) for v in found.columns["final_mm"]], final, atol=2e-4)
    assert final.mean() == pytest.approx(values(outcome, "idir")["tre_mm"], abs=1e-4)
    assert torch.allclose(map_points(mapping(outcome.result), fixed.x), found.x, atol=1e-5)


def test_every_label_has_its_overlap(done):
    folder, _, outcome = done
    with (folder / "dice.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1", "2"]
    mean = np.mean([float(row["idir"]) for row in rows])
    assert mean == pytest.approx(values(outcome, "idir")["dice"], abs=1e-4)
    assert set(read_nifti(folder / "warped_labels.nii.gz").values.unique().tolist()) == {0, 1, 2}


def test_the_field_alone_is_the_map(done):
    folder, data, outcome = done
    back = open_result(folder / "field.safetensors")
    x = data.fixed.grid.points()
    assert torch.equal(mapping(back)(x), mapping(outcome.result)(x))
    assert moving_grid(back).same_as(data.moving.grid)


def test_rivals_stand_in_the_same_table(monkeypatch):
    from scanfield.baselines import registration

    monkeypatch.setattr(registration, "STEPS", 5)
    outcome = register(pair(), "idir", TINY, Run(), baselines="fast")
    assert [row.name for row in outcome.table.rows] == ["identity", "idir", "bspline"]
    assert [p.name for p in outcome.pictures] == ["fixed", "identity", "warped", "bspline"]
    assert "tre_mm" not in values(outcome, "bspline")


def test_a_rival_that_fails_is_a_note(monkeypatch):
    from scanfield.tasks import registration

    def refuse(*_):
        raise InputError("it is run on volumes only")

    rival = registration.BASELINES["bspline"]
    monkeypatch.setattr(registration, "BASELINES", {"b": type(rival)("B", "", True, refuse)})
    run = Run()
    assert len(register(pair(), "idir", TINY, run).table.rows) == 2
    assert run.notes[-1] == "B is missing from the table: it is run on volumes only."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (Points(a.x[:3]), b), "landmarks come in pairs, got 3 and"),
        (lambda a, b: (Points(a.x + 500), b), "lie outside the fixed image"),
        (lambda a, b: (a, Points(b.x * torch.tensor([-1.0, -1.0, 1.0]))), "lie outside the moving image"),
        (lambda a, b: (Points(torch.tensor([[1.0, 2, 3], [4, 5, 6]]).double()), Points(b.x[:2])), "voxel indices"),
    ],
)
def test_landmarks_of_other_images_are_refused_before_the_fit(change, message, tmp_path):
    data = pair()
    with pytest.raises(InputError, match=message):
        register(data, "idir", TINY, Run(tmp_path / "run"), landmarks=change(*landmarks(data)))
    assert not (tmp_path / "run").exists()


def test_labels_are_whole_numbers_and_other_methods_refuse_pairs():
    data = pair()
    a, b = labels(data)
    with pytest.raises(InputError, match="labels are whole numbers"):
        register(data, "idir", TINY, Run(), labels=(Scan(a.values / 2, a.grid), b))
    with pytest.raises(InputError, match="does not take data of kind 'image-pair'"):
        register(data, "siren", TINY, Run())


def test_folding_is_said():
    run = Run()
    config = idir.Config(width=32, hidden_layers=2, steps=1, learning_rate=0.1, regulariser="none", points_per_step=500)
    folded = register(pair(), "idir", config, run, baselines="none").table.rows[1].values["folding_percent"]
    assert folded > 0.1 and any("folds" in warning for warning in run.warnings)
