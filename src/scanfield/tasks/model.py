"""What a training returns: weights that several images share, in one file that needs no training data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanfield.errors import InputError
from scanfield.fitting.log import FitLog
from scanfield.fitting.state import load_state, save_state
from scanfield.methods import api
from scanfield.methods.config import from_json, to_json

KIND, SCHEMA = "model", 1
FILE = "model.safetensors"  # in the folder of a training


@dataclass(eq=False)
class Model:
    """A trained model. Its tensors are not changed after it was made: `key` names them.

    Args:
        method: name of the method.
        config: the configuration it was trained with.
        tensors: the weights, by the names they have in the method's field.
        facts: what else the method needs to use them, JSON-able: dimensions, recipe for intensities.
        cohort: SHA-256 and split of every image (`data.cohort.Cohort.record`).
        licence: of the images it was trained on, as its user stated it.
        logs: one per stage.
        provenance: versions, command.
    """

    method: str
    config: Any
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    cohort: list[dict[str, str]] = field(default_factory=list)
    licence: str = ""
    logs: list[FitLog] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of method, configuration, facts and weights: what files that
        need this model call it. Notes such as the licence do not change it."""
        text = json.dumps([self.method, to_json(self.config), self.facts], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def size(self) -> int:
        """Bytes of the weights and of what is needed to use them, as in the file; records and logs do not count."""
        text = json.dumps([self.method, to_json(self.config), self.facts])
        return len(text) + sum(t.numel() * t.element_size() for t in self.tensors.values())

    def save(self, path: Path) -> None:
        """Writes one safetensors file."""
        facts = {
            "kind": KIND,
            "schema": SCHEMA,
            "method": self.method,
            "config": to_json(self.config),
            "facts": self.facts,
            "cohort": self.cohort,
            "licence": self.licence,
            "logs": [log.to_json() for log in self.logs],
            "provenance": self.provenance,
        }
        save_state(path, self.tensors, facts)

    @staticmethod
    def load(path: str | Path) -> Model:
        """Reads a file of `save`, or the one in the folder of a training.

        Raises:
            InputError: the file is missing, truncated, altered or newer, its method is unknown, or a weight is NaN or
                infinite.
        """
        path = model_file(path)
        tensors, facts = load_state(path, kind=KIND, schema=SCHEMA)
        try:
            name, settings, own = str(facts["method"]), facts["config"], dict(facts["facts"])
            cohort = [entry | {name: str(entry[name]) for name in ("sha256", "split")} for entry in facts["cohort"]]
            licence = str(facts["licence"])
            logs, provenance = [FitLog(**log) for log in facts["logs"]], dict(facts["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the model file's header was altered: {error!r}", where=str(path)) from None
        wrong = [key for key, values in tensors.items() if not bool(values.isfinite().all())]
        if wrong:
            raise InputError(f"weights are NaN or infinite: '{wrong[0]}'", where=str(path), fix="train it again")
        config = from_json(api.load(name).Config, settings, where=f"{path}: config")
        return Model(name, config, tensors, own, cohort, licence, logs, provenance)


def model_file(path: str | Path) -> Path:
    """The model's file itself, where the folder of a training was named."""
    found = Path(path)
    return found / FILE if found.is_dir() else found


def check_model(method: str, model: Model | None) -> None:
    """Raises `InputError` if a method needs a model and has none, needs none, or has another method's."""
    trained = "train" in vars(api.load(method))
    if model is None and trained:
        raise InputError(
            f"method '{method}' needs a trained model",
            fix=f"scanfield train {method} --cohort cohort.csv -o MODEL, then --model MODEL",
        )
    if model is not None and not trained:
        raise InputError(f"method '{method}' is fitted to every image by itself: it takes no model")
    if model is not None and model.method != method:
        raise InputError(f"this is a model of '{model.method}', not of '{method}'")


@contextmanager
def built_from(model: Model) -> Iterator[None]:
    """Around the lines of a method that read a model's facts and fill a network with its weights.

    Raises:
        InputError: they do not suit each other, or a fact is missing: another version wrote the file, or somebody.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model's facts and weights do not suit method '{model.method}': {type(error).__name__}: {said}",
            fix="train it with this version of scanfield",
        ) from error


def check_settings(config: Any, model: Model, *, left_open: Sequence[str] = ()) -> None:
    """Raises `InputError` if a configuration contradicts the one that a model was trained with.

    Args:
        left_open: settings that a model says nothing about.
    """
    for setting in fields(config):
        name = setting.name
        if name not in left_open and getattr(config, name) != getattr(model.config, name):
            raise InputError(
                f"the model was trained with {name} = {getattr(model.config, name)}, not {getattr(config, name)}",
                fix="leave this setting to the model, or train another",
            )
