"""From a cohort to a model: train, keep what is needed to continue, write one file.

A training's folder holds `model.safetensors`, `run.json`, `log.jsonl` and, until it is deleted, `state/` to continue
from. Models carry no names and no paths: of the images they keep the SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scanfield.data.cohort import SPLITS, Cohort
from scanfield.data.labelled import check_labelled
from scanfield.data.scan import Scan
from scanfield.data.sequences import check_sequences
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.run import Run, on_the_run_s_backend
from scanfield.tasks.folder import begin, facts_of, write_record
from scanfield.tasks.model import FILE, Model

NOT_STATED = "not stated"
LABELLED = "labelled-image"
CHECKS: dict[str, Callable[[Cohort], None]] = {  # what a cohort must hold, by the kind of data a method accepts
    Scan.kind: lambda cohort: None,
    LABELLED: check_labelled,
    "mask-sequence": check_sequences,
}


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
        InputError: the method is fitted to every image by itself; the cohort does not suit it.
    """
    module = api.load(method)
    if "train" not in vars(module):
        others = [name for name in api.discover() if "train" in vars(api.load(name))]
        raise InputError(
            f"method '{method}' is fitted to every image by itself: there is nothing to train",
            fix=f"methods that are trained: {', '.join(others) or 'none yet'}",
        )
    check_cohort(method, cohort)
    facts = facts_of(run, method, preset, to_json(config), request or {})
    facts |= {"program": "train", "licence": licence, "cohort": cohort.record()}
    facts["subjects"] = {split: cohort.subjects(split) for split in SPLITS}
    facts["processes"] = run.workers.count
    if run.writes:
        begin(run, facts)
    with run.timed("train"):
        model: Model = module.train(config, cohort, run)
    if run.workers.count > 1 and not run.workers.shared:
        run.warn(
            f"Method '{method}' does not share its batches: all {run.workers.count} processes computed the same, "
            "and one would have taken as long."
        )
    model.licence = licence
    model.provenance = {"scanfield": facts["versions"]["scanfield"], "created": facts["created"], "seed": run.seed}
    if run.folder is not None and run.writes:
        model.save(run.folder / FILE)
        status = "interrupted" if run.stop.is_set() else "complete"
        facts |= {"status": status, "timings": run.timings, "warnings": run.warnings, "notes": run.notes}
        write_record(run.folder, facts | {"model": model.key})
    return model


def check_cohort(method: str, cohort: Cohort) -> None:
    """Raises `InputError` if a cohort lacks what a method learns from, such as label maps; reads what it has to."""
    kinds = [kind for kind in api.card(method).accepts if kind in CHECKS]
    if not kinds:
        api.check_accepts(method, Scan.kind)
    if cohort.labels is not None and kinds[0] != LABELLED:
        raise InputError(f"method '{method}' does not learn from label maps: it takes no table of labels")
    CHECKS[kinds[0]](cohort)


def check_same_cohort(cohort: Cohort, started: list[dict[str, str]], where: str) -> None:
    """Raises `InputError` if the images are not those that a training was started with."""
    if cohort.record() != started:
        raise InputError(
            "the cohort has changed since the training was started",
            where=where,
            fix="put it back, or start again with another -o",
        )
