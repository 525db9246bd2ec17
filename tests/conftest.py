"""Shared by all tests: shape checks on every annotated function, one thread, the development data if there is any."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Every shape and type is checked at every call of the library; production pays nothing. The hook wants the checker's
# name, and ours lets an int stand for a float, as Python's typing does.
checker = types.ModuleType("scanfield_type_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules[checker.__name__] = checker
install_import_hook("scanfield", f"{checker.__name__}.check")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Bit-equal results do not depend on the machine's number of cores, and parallel test runs do not fight."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def development_data() -> Path:
    """The folder named by SCANFIELD_DATA; the test is skipped where it is not set."""
    folder = os.environ.get("SCANFIELD_DATA")
    if not folder:
        pytest.skip("needs the development data: set SCANFIELD_DATA to their folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"SCANFIELD_DATA names '{folder}', which is not a folder")
    return path


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> object:
    """A trained model of a method for segmentation that is there for the length of a test: 'thresholds' calls what is
    brighter than 50 'core' (value 7) and what is brighter than 20 'rim' (value 3), trilinear between voxels."""
    import dataclasses

    from scanfield.fields.image import ImageField
    from scanfield.methods import api
    from scanfield.tasks.model import Model

    @dataclasses.dataclass(frozen=True)
    class Config:
        sharpness: float = 0.5
        """of the logits, per unit of intensity"""

    def classifier(model: Model, image: object, device: torch.device) -> object:
        field = ImageField(image.values, image.grid).to(device)
        assert not torch.is_grad_enabled() and torch.equal(model.tensors["at"].cpu(), torch.tensor([20.0, 50.0]))

        def logits(x: torch.Tensor) -> torch.Tensor:
            v = field(x)[:, 0]
            return model.config.sharpness * torch.stack([0 * v, v - 20, 2 * v - 70], dim=1)  # equal at 20 and at 50

        return logits

    module = types.ModuleType("scanfield_thresholds")
    module.Config, module.classifier, module.train = Config, classifier, None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    words = dict.fromkeys(
        ("title", "authors", "venue", "summary", "choose_when", "choose_not_when", "bibtex", "text"), "-"
    )
    card = api.Card(
        name="thresholds",
        label="Thresholds",
        year=1979,
        task="segmentation",
        accepts=("labelled-image",),
        module=module.__name__,
        **words,
    )
    cards = {**api.discover(), card.name: card}
    monkeypatch.setattr(api, "discover", lambda: cards)
    facts = {"labels": {"values": [0, 3, 7], "names": ["background", "rim", "core"]}, "spacing_mm": [1.0, 1.0, 2.0]}
    facts["intensity"] = {"low_percentile": 1, "high_percentile": 99, "ends": [[0.0, 10.0], [40.0, 100.0]]}
    return Model("thresholds", Config(), {"at": torch.tensor([20.0, 50.0])}, facts, licence="CC0")
