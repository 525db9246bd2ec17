"""From a cohort to a model: train, keep what is needed to continue, write one file.

A training's folder holds `model.safetensors`, `run.json`, `log.jsonl` and, until it is deleted, `state/` to continue
from. Models carry no names and no paths: of the images they keep the SHA-256.
"""

from __future__ import annotations

from typing import Any

from scanfield.data.cohort import SPLITS, Cohort
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.run import Run, on_the_run_s_backend
from scanfield.tasks.folder import begin, facts_of, write_record
from scanfield.tasks.model import FILE, Model

NOT_STATED = "not stated"


@on_the_run_s_backend
def train(
    cohort: Cohort,
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "paper",
    licence: str = NOT_STATED,
    request: dict[str, Any] | None = None,
) -> Model:
    """Trains a method on a cohort; with a folder in `run`, writes it there.

    Args:
        method: name of a method that is trained.
        config: its configuration.
        preset: where the configuration came from, for the record.
        licence: of the images, for whoever receives the model.
        request: what was asked for, for the record (see `tasks.folder.facts_of`).

    Returns:
        The model; of an interrupted training, as far as it came.

    Raises:
        InputError: the method is fitted to every image by itself; the cohort does not suit it, or is not the one that
            the run was started with.
    """
    module = api.load(method)
    if "train" not in vars(module):
        others = [name for name in api.discover() if "train" in vars(api.load(name))]
        raise InputError(
            f"method '{method}' is fitted to every image by itself: there is nothing to train",
            fix=f"methods that are trained: {', '.join(others) or 'none yet'}",
        )
    api.check_accepts(method, Scan.kind)
    facts = facts_of(run, method, preset, to_json(config), request or {})
    facts |= {"program": "train", "licence": licence, "cohort": cohort.record()}
    facts["subjects"] = {split: cohort.subjects(split) for split in SPLITS}
    begin(run, facts)
    with run.timed("train"):
        model: Model = module.train(config, cohort, run)
    model.licence = licence
    model.provenance = {"scanfield": facts["versions"]["scanfield"], "created": facts["created"], "seed": run.seed}
    if run.folder is not None:
        model.save(run.folder / FILE)
        status = "interrupted" if run.stop.is_set() else "complete"
        facts |= {"status": status, "timings": run.timings, "warnings": run.warnings, "notes": run.notes}
        write_record(run.folder, facts | {"model": model.key})
    return model


def check_same_cohort(cohort: Cohort, started: list[dict[str, str]], where: str) -> None:
    """Raises `InputError` if the images are not those that a training was started with."""
    if cohort.record() != started:
        raise InputError(
            "the cohort has changed since the training was started",
            where=where,
            fix="put it back, or start again with another -o",
        )
