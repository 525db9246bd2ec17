"""From a cohort to a model's folder, and again after a stop."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.labelled import label_table
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.compression import coinpp
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.model import FILE, Model
from scanfield.tasks.training import check_same_cohort, train

GRID = Grid.centred((16, 16, 1), 1.0)
CONFIG = replace(coinpp.Config.tiny(), steps=40, validate_every=20, latent=4)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("secret_name")
    draws, lines = torch.Generator().manual_seed(0), ["path,subject,split"]
    x = GRID.points().reshape(*GRID.shape, 3)
    for k, split in enumerate(("train", "train", "validation")):
        a, b = (torch.rand(2, generator=draws) * 0.6).tolist()
        write_nifti(folder / f"{k}.nii.gz", torch.sin(a * x[..., 0] + b * x[..., 1]), GRID)
        lines.append(f"{k}.nii.gz,person{k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


@pytest.fixture(scope="module")
def whole(cohort) -> Model:
    return train(cohort, "coinpp", CONFIG, Run(seed=1))


def test_the_folder_has_the_model_and_its_record(cohort, whole, tmp_path):
    model = train(cohort, "coinpp", CONFIG, Run(tmp_path / "m", seed=1), preset="tiny", licence="CC0")
    back = Model.load(tmp_path / "m")
    assert back.key == model.key == whole.key and back.licence == "CC0"
    assert back.provenance["seed"] == 1
    facts = json.loads((tmp_path / "m" / "run.json").read_text())
    assert facts["status"] == "complete" and facts["program"] == "train" and facts["model"] == model.key
    assert facts["cohort"] == cohort.record() and facts["subjects"] == {"train": 2, "validation": 1, "test": 0}
    assert (tmp_path / "m" / "log.jsonl").read_text().count("\n") >= 2


def test_the_model_does_not_say_who_was_in_it(cohort, tmp_path):
    train(cohort, "coinpp", CONFIG, Run(tmp_path / "m", seed=1))
    content = (tmp_path / "m" / FILE).read_bytes()
    assert b"secret_name" not in content and b"person" not in content and b".nii.gz" not in content


def test_stopped_and_resumed_is_the_same_model(cohort, whole, tmp_path):
    run = Run(tmp_path / "m", seed=1)
    run.observers = (lambda event: run.stop.set() if event.get("step", 0) >= 15 else None,)
    half = train(cohort, "coinpp", CONFIG, run)
    assert json.loads((tmp_path / "m" / "run.json").read_text())["status"] == "interrupted"
    assert Model.load(tmp_path / "m").key == half.key != whole.key
    again = train(cohort, "coinpp", CONFIG, Run(tmp_path / "m", seed=1, resume=True))
    assert again.key == whole.key


def test_what_cannot_be_trained_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="nothing to train") as caught:
        train(cohort, "sci", None, Run(tmp_path / "m"))
    assert "coinpp" in caught.value.fix and not (tmp_path / "m").exists()
    train(cohort, "coinpp", CONFIG, Run(tmp_path / "m", seed=1))
    with pytest.raises(InputError, match="already holds a run"):
        train(cohort, "coinpp", CONFIG, Run(tmp_path / "m", seed=1))


def test_what_a_method_accepts_decides_what_a_cohort_must_hold(cohort, tmp_path, monkeypatch):
    """A stand-in that needs label maps: refused before the folder is made, trained once they are there."""
    trained = []

    def train_it(config, cohort, run):
        trained.append(label_table(cohort))
        return Model("standin", CONFIG, {"w": torch.zeros(1)})

    card = replace(api.card("coinpp"), name="standin", accepts=("labelled-image",), module="standin")
    monkeypatch.setitem(sys.modules, "standin", SimpleNamespace(train=train_it, Config=coinpp.Config))
    monkeypatch.setattr(api, "discover", lambda: {"standin": card})
    with pytest.raises(InputError, match="has no label map"):
        train(cohort, "standin", CONFIG, Run(tmp_path / "m"))
    assert trained == [] and not (tmp_path / "m").exists()
    members = []
    for k, member in enumerate(cohort.members):
        label = tmp_path / f"{k}.nii.gz"
        write_nifti(label, torch.arange(256).reshape(GRID.shape) % (k + 2), GRID)
        members.append(replace(member, label=label))
    labelled = replace(cohort, members=tuple(members[:2]))
    train(labelled, "standin", CONFIG, Run(tmp_path / "m"))
    assert trained[0].values == (0, 1, 2) and (tmp_path / "m" / FILE).is_file()
    with pytest.raises(InputError, match="outside the table: 3"):
        train(replace(cohort, members=tuple(members)), "standin", CONFIG, Run(tmp_path / "n"))


def test_methods_for_other_data_are_refused(cohort, monkeypatch):
    card = replace(api.card("coinpp"), name="standin", accepts=("kspace",), module="standin")
    monkeypatch.setitem(sys.modules, "standin", SimpleNamespace(train=None))
    monkeypatch.setattr(api, "discover", lambda: {"standin": card})
    with pytest.raises(InputError, match="does not take data of kind 'image'; it takes kspace"):
        train(cohort, "standin", CONFIG, Run())


def test_another_cohort_is_noticed(cohort):
    check_same_cohort(cohort, cohort.record(), "run")
    with pytest.raises(InputError, match="cohort has changed"):
        check_same_cohort(cohort, cohort.record()[1:], "run")


def test_a_constant_image_is_named(cohort, tmp_path):
    write_nifti(tmp_path / "flat.nii.gz", torch.ones(GRID.shape), GRID)
    bad = replace(cohort, members=(replace(cohort.members[0], path=tmp_path / "flat.nii.gz"), *cohort.members[1:]))
    with pytest.raises(InputError, match="constant") as caught:
        train(bad, "coinpp", CONFIG, Run(seed=1))
    assert "flat.nii.gz" in caught.value.where
