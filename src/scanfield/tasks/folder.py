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


def begin(run: Run, facts: dict[str, Any]) -> None:
    """Opens the run's folder, if it has one, and writes what is known before the fit.

    Raises:
        InputError: the folder holds a run (and the run neither resumes nor replaces it), is a file, or cannot be
            written.
    """
    if run.folder is None:
        return
    record = run.folder / "run.json"
    if run.resume and not record.is_file():
        raise InputError("there is no run to resume: run.json is missing", where=str(run.folder))
    if record.exists() and not (run.resume or run.replace):
        raise InputError(
            "the folder already holds a run",
            where=str(run.folder),
            fix=f"choose another -o, continue it with --resume {run.folder}, or replace it with --force",
        )
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        if not run.resume:
            _clear(run.folder)
            (run.folder / "log.jsonl").write_text("")
    except OSError as error:
        raise InputError(f"cannot write to the output folder: {error.strerror}", where=str(run.folder)) from None
    write_record(run.folder, facts)


def _clear(folder: Path) -> None:
    """Removes what an earlier run left, and nothing else."""
    surfaces = ("surface*.ply", "surface*.surf.gii")
    for pattern in ("state/*.safetensors", "figures/*", "*.nii.gz", "slices/*.nii.gz", "meshes/*.ply", *surfaces):
        for old in folder.glob(pattern):
            old.unlink()
    tables = ("landmarks.csv", "dice.csv", "labels.csv", "slices.json", "slices.npz", "dvh.csv", "dvh_curves.csv")
    shapes = ("descriptors.csv", "canvas.npz", "contact_sheet.png")
    files = ("dose.sfz", "dose.dcm", "model.safetensors", "energies.json")
    pages = ("run.json", "report.html", "measurements.npz", "kspace.npz", "field.safetensors")
    for name in (*pages, *tables, *shapes, *files):
        (folder / name).unlink(missing_ok=True)


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
    """The 1st and the 99.5th percentile of an image's values, of 100,000 of them where there are more."""
    shown = values.float().flatten()
    shown = shown[:: max(1, shown.numel() // 100_000)]  # quantile refuses large tensors
    return float(shown.quantile(0.01)), float(shown.quantile(0.995))
