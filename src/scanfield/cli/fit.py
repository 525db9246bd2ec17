"""Runs a request: fits with progress and interruption in a folder, and says what came out."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scanfield.cli.interrupt import stop_on_interrupt
from scanfield.cli.method_flags import How
from scanfield.cli.progress import progress
from scanfield.cli.request import Request
from scanfield.cli.text import hanging, remarks, voxel_text
from scanfield.cli.watch import watched
from scanfield.errors import InputError
from scanfield.kernels.backend import backend_for
from scanfield.methods import api
from scanfield.run import Run, choose_device
from scanfield.space.grid import Grid
from scanfield.tasks.outcome import Outcome

PRESET_NOTES = {
    "tiny": " (shows that everything works; no image worth looking at)",
    "fast": " (shorter than published; --preset paper is the published setting)",
    "paper": " (as published)",
}
FILES = {  # what lies in a folder beside the images, by heading
    "surfaces": ("surface*.*",),
    "maps": ("*displacement*.nii.gz", "determinant.nii.gz"),
    "landmarks": ("landmarks.csv",),
    "labels": ("warped_labels.nii.gz", "dice.csv"),
    "dose": ("dose.sfz", "dose.dcm", "dvh*.csv", "gamma.nii.gz"),
    "k-space": ("kspace.npz",),
    "slices": ("slices.json", "mask.nii.gz"),
    "uncertainty": ("deviation.nii.gz", "interval-*.nii.gz", "samples.nii.gz"),
}
RENDERED = "`scanfield render` puts it on any grid"
USES = {"reconstruct": RENDERED, "register": "`scanfield warp` moves images and points", "dose": RENDERED}

Start = Callable[[], Outcome]


def fit(
    request: Request,
    prepare: Callable[[Run], tuple[list[str], Start]],
    folder: Path,
    how: How,
) -> int:
    """Runs a request in a folder and returns the exit code.

    Args:
        prepare: reads what is missing and returns lines that describe the inputs, and the work itself.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    display = progress(quiet=how.quiet)
    device = choose_device(request.device)
    backend_for(device, request.backend)  # one that cannot run is refused before anything is written
    run = Run(folder, device, request.seed, how.resume, how.force, observers=(display,), backend=request.backend)
    described, start = prepare(run)
    new = not folder.exists()
    if not (how.quiet or how.as_json):
        print(_announce(request, described, run), flush=True)
    how_to_resume = f"continue with: scanfield {request.program} --resume {shlex.quote(str(folder))}"
    with watched(run, view=how.view):
        with nothing_left_of(folder, new), _saying(how_to_resume, folder), stop_on_interrupt(run.stop), display:
            outcome = start()
        if how.as_json:
            print(json.dumps(_facts(folder, outcome, run)))
        elif not how.quiet:
            print(_result(request, folder, outcome, run))
        if run.stop.is_set():
            print(f"stopped before the end; {how_to_resume}", file=sys.stderr)
            return 1
    return 0


def voxels(grid: Grid) -> str:
    """'512 x 512 x 1 voxels of 0.88 x 0.88 x 3 mm'."""
    return voxel_text(grid.shape, grid.spacing_mm)


@contextmanager
def nothing_left_of(folder: Path, new: bool) -> Iterator[None]:
    """Removes a folder made for this run if the input is refused before anything of worth is in it."""
    try:
        yield
    except InputError:
        if new and not (folder / "field.safetensors").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _saying(how_to_resume: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "run.json").exists():
            print(how_to_resume, file=sys.stderr)
        raise


def _announce(request: Request, described: list[str], run: Run) -> str:
    threads = torch.get_num_threads()
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if run.device.type == "cpu" else str(run.device)
    lines = [
        f"{request.method}: {api.card(request.method).title}",
        *(f"  {line}" for line in described),
        f"  settings  preset {request.preset}{PRESET_NOTES[request.preset]}; seed {run.seed}; {where}",
    ]
    if run.resume:
        assert run.folder is not None
        found = any((run.folder / "state").glob("*.safetensors"))
        lines.append("  continues from its last checkpoint" if found else "  starts again: there is no checkpoint yet")
    return "\n".join(lines) + "\n"


def _result(request: Request, folder: Path, outcome: Outcome, run: Run) -> str:
    lines = ["", outcome.table.to_text(), ""]
    said = remarks(run.warnings, run.notes)
    lines += [*said, ""] if said else []
    images = ", ".join(f"{picture.name}.nii.gz" for picture in outcome.pictures)
    lines += [
        f"{folder}/",
        "  report.html        pictures, numbers, convergence, how to repeat and cite it",
        hanging("  images             ", images),
    ]
    for heading, patterns in FILES.items():
        found = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
        lines += [hanging(f"  {heading:<19}", ", ".join(found))] if found else []
    return "\n".join(
        [
            *lines,
            f"  field.safetensors  the result; {USES[request.program]}",
            "  run.json           settings, seeds, versions, numbers",
        ]
    )


def _facts(folder: Path, outcome: Outcome, run: Run) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "status": "interrupted" if run.stop.is_set() else "complete",
        "table": outcome.table.to_json(),
        "warnings": run.warnings,
        "notes": run.notes,
        "images": {picture.name: f"{picture.name}.nii.gz" for picture in outcome.pictures},
        "report": "report.html",
        "timings": run.timings,
    }
