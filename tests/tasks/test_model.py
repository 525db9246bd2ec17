"""A model's file: what it keeps, what names it, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.errors import InputError
from scanfield.fitting.log import FitLog
from scanfield.fitting.state import save_state
from scanfield.methods.compression import coinpp
from scanfield.tasks.model import FILE, KIND, Model, built_from, check_model

RECORD = [{"sha256": "ab" * 32, "split": "train"}]


def model(**more) -> Model:
    tensors = {"network.a": torch.arange(6.0).reshape(2, 3).half(), "rates": torch.ones(2)}
    given = {"facts": {"dims": 3}, "cohort": RECORD, "licence": "CC0", "logs": [FitLog("base", steps=3)]}
    return Model("coinpp", coinpp.Config.tiny(), tensors, **(given | more))


def test_round_trip_by_file_and_by_folder(tmp_path):
    first = model()
    first.save(tmp_path / FILE)
    for name in (tmp_path, tmp_path / FILE):
        back = Model.load(name)
        assert back.key == first.key and back.config == first.config and back.cohort == RECORD
        assert back.licence == "CC0" and back.facts == {"dims": 3} and back.logs == first.logs
        for name_of, tensor in first.tensors.items():
            assert torch.equal(back.tensors[name_of], tensor) and back.tensors[name_of].dtype == tensor.dtype


def test_the_key_names_what_decoding_depends_on():
    key = model().key
    assert len(key) == 16 and int(key, 16) >= 0
    assert model(licence="other", cohort=[], logs=[]).key == key
    assert model(facts={"dims": 2}).key != key
    changed = model()
    changed.tensors["network.a"][0, 0] += 1
    assert changed.key != key
    other = model()
    other.config = replace(other.config, latent=9)
    assert other.key != key


def test_bytes_are_those_of_the_weights():
    assert 6 * 2 + 2 * 4 < model().size < 6 * 2 + 2 * 4 + 1200


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no model file"):
        Model.load(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="there is no model file"):
        Model.load(tmp_path)
    save_state(tmp_path / FILE, {}, {"kind": "field", "schema": 1})
    with pytest.raises(InputError, match="expected a model file, found a field"):
        Model.load(tmp_path)
    save_state(tmp_path / FILE, {}, {"kind": KIND, "schema": 1, "method": "coinpp"})
    with pytest.raises(InputError, match="header was altered"):
        Model.load(tmp_path)
    save_state(tmp_path / FILE, {}, {"kind": KIND, "schema": 2})
    with pytest.raises(InputError, match="schema 2"):
        Model.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    broken = model()
    broken.tensors["rates"][1] = value
    broken.save(tmp_path / FILE)
    with pytest.raises(InputError, match="weights are NaN or infinite: 'rates'"):
        Model.load(tmp_path)


@pytest.mark.parametrize("entry", [{"split": "train"}, {"sha256": "ab"}])
def test_a_record_of_images_without_checksum_or_split_is_refused(tmp_path, entry):
    model(cohort=[entry]).save(tmp_path / FILE)
    with pytest.raises(InputError, match="header was altered"):
        Model.load(tmp_path)


def test_what_goes_wrong_while_a_network_is_built_is_the_file_s_fault():
    for error in (KeyError("dims"), RuntimeError("size mismatch"), ZeroDivisionError()):
        with (
            pytest.raises(InputError, match=rf"do not suit method 'coinpp': {type(error).__name__}"),
            built_from(model()),
        ):
            raise error
    with pytest.raises(MemoryError), built_from(model()):
        raise MemoryError


def test_who_needs_a_model():
    check_model("sci", None)
    check_model("coinpp", model())
    with pytest.raises(InputError, match="needs a trained model") as caught:
        check_model("coinpp", None)
    assert "scanfield train coinpp" in caught.value.fix
    with pytest.raises(InputError, match="takes no model"):
        check_model("sci", model())
    with pytest.raises(InputError, match="model of 'other'"):
        check_model("coinpp", replace(model(), method="other"))
