"""The RUN folder: what every command that fits something leaves behind."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scanfield.data.files import checksum
from scanfield.data.nifti import write_nifti
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.run import Run
from scanfield.space.grid import Grid

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that belongs to a run: the method's, its field's, a rival's or a reference's.

    `note` completes a sentence about a reference: 'against the 720-view FBP, <note>, ...'.
    """

    name: str
    label: str
    kind: Literal["method", "read-out", "baseline", "reference"]
    values: Tensor
    note: str = ""


def open_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Makes the folder; a folder with a run in it is only entered to resume it or, with `force`, to replace it.

    Raises:
        InputError: the folder holds a run, is a file, or cannot be written.
    """
    record = folder / "run.json"
    if resume:
        if not record.is_file():
            raise InputError("there is no run to resume: run.json is missing", where=str(folder))
        return
    if record.exists() and not force:
        raise InputError(
            "the folder already holds a run",
            where=str(folder),
            fix=f"choose another -o, continue it with --resume {folder}, or replace it with --force",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").write_text("")
        for old in (folder / "state").glob("*.safetensors"):
            old.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the output folder: {error.strerror}", where=str(folder)) from None


def facts_of(run: Run, method: str, preset: str, config: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The part of run.json that is known before the fit.

    Args:
        request: what was asked for: `command` (the line to repeat it) and `inputs` (paths), plus whatever the caller
            needs to resume.
    """
    card = api.card(method)
    return {
        "schema": SCHEMA,
        "task": card.task,
        "method": method,
        "title": card.title,
        "citation": card.citation,
        "bibtex": card.bibtex.strip(),
        "command": request.get("command", ""),
        "request": request,
        "config": config,
        "preset": preset,
        "seed": run.seed,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "scanfield": version("scanfield"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "inputs": [{"path": Path(p).name, "sha256": checksum(p)} for p in request.get("inputs", [])],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "status": "running",
    }


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Writes run.json."""
    with write_atomically(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def write_pictures(folder: Path, pictures: list[Picture], grid: Grid, unit: str) -> list[dict[str, str]]:
    """Writes every picture as NIfTI and returns their records for run.json."""
    records = []
    for picture in pictures:
        file = f"{picture.name}.nii.gz"
        write_nifti(folder / file, picture.values, grid, unit=unit)
        record = {"name": picture.name, "label": picture.label, "kind": picture.kind, "file": file}
        records.append(record | ({"note": picture.note} if picture.note else {}))
    return records
