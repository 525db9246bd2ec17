"""The RUN folder: what every command that fits something leaves behind."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator
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
from scanfield.kernels.backend import backend_for
from scanfield.methods import api
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.table import Kind

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that belongs to a run: the method's, its field's, a rival's or a reference's.

    `note` completes a sentence about a reference: 'against the 720-view FBP, <note>, ...'. Frames of a series are the
    last axis of `values`; `step_s` is the time from one to the next, where it is known.
    """

    name: str
    label: str
    kind: Kind | Literal["reference"]
    values: Tensor
    note: str = ""
    step_s: float | None = None


def begin(run: Run, facts: dict[str, Any], *, resumes: bool = True) -> None:
    """Opens the run's folder, if it has one, and writes what is known before the fit.

    Args:
        resumes: whether the task can continue a run: not where nothing is fitted.

    Raises:
        InputError: the folder holds a run (and the run neither resumes nor replaces it), or none but files
            that a run would write over; it is a file, or cannot be written.
    """
    if run.folder is None:
        return
    record = run.folder / "run.json"
    if run.resume and not record.is_file():
        raise InputError("there is no run to resume: run.json is missing", where=str(run.folder))
    if record.exists() and not (run.resume or run.replace):
        go_on = f"continue it with --resume {run.folder}, " if resumes else ""
        raise InputError(
            "the folder already holds a run",
            where=str(run.folder),
            fix=f"choose another -o, {go_on}or replace it with --force",
        )
    if not record.exists():
        _check_whose(run.folder)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        if not run.resume:
            for old in list(_left(run.folder)):  # of an earlier run, and nothing else
                old.unlink()
            (run.folder / "log.jsonl").write_text("")
    except OSError as error:
        raise InputError(f"cannot write to the output folder: {error.strerror}", where=str(run.folder)) from None
    write_record(run.folder, facts)


def _left(folder: Path) -> Iterator[Path]:
    """The files in a folder that a run writes."""
    surfaces = ("surface*.ply", "surface*.surf.gii")
    for pattern in ("state/*.safetensors", "figures/*", "*.nii.gz", "slices/*.nii.gz", "meshes/*.ply", *surfaces):
        yield from folder.glob(pattern)
    tables = ("landmarks.csv", "dice.csv", "labels.csv", "slices.json", "slices.npz", "dvh.csv", "dvh_curves.csv")
    shapes = ("descriptors.csv", "canvas.npz", "contact_sheet.png")
    files = ("dose.sfz", "dose.dcm", "model.safetensors", "energies.json")
    pages = ("run.json", "report.html", "measurements.npz", "kspace.npz", "field.safetensors")
    for name in (*pages, *tables, *shapes, *files):
        if (folder / name).exists():
            yield folder / name


def _check_whose(folder: Path) -> None:
    """Raises `InputError` if a folder without a run holds files that a run would remove or write over."""
    others = sorted(found.relative_to(folder).as_posix() for found in _left(folder))
    if others:
        raise InputError(
            f"the folder holds no run, but '{others[0]}', which a run would remove or write over",
            where=str(folder),
            fix="choose a new or empty folder as -o",
        )


def facts_of(run: Run, method: str, preset: str, config: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The part of run.json that is known before the fit.

    Args:
        request: what was asked for: `command` (the line to repeat it) and `inputs` (paths), plus whatever the caller
            needs to resume.
    """
    card = api.card(method)
    backend = backend_for(run.device, run.backend)
    if run.backend == "auto" and backend.name == "reference":
        run.note(f"The kernels did not run, so this took longer than it could: {backend.why}.")
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
        "backend": {"name": backend.name, "why": backend.why},
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
        write_nifti(folder / file, picture.values, grid, unit=unit, step_s=picture.step_s)
        record = {"name": picture.name, "label": picture.label, "kind": picture.kind, "file": file}
        records.append(record | ({"note": picture.note} if picture.note else {}))
    return records


def usual_range(values: Tensor) -> tuple[float, float]:
    """Black and white for an image: the 1st and the 99.5th percentile of its values, of 100,000 of them where there are
    more; around the value where both are the same."""
    shown = values.float().flatten()
    shown = shown[:: max(1, shown.numel() // 100_000)]  # quantile refuses large tensors
    low, high = float(shown.quantile(0.01)), float(shown.quantile(0.995))
    return (low, high) if high > low else (low - 0.5, low + 0.5)
