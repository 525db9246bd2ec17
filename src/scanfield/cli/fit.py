"""Runs a request: reads, fits with progress and interruption, and says what came out."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scanfield.cli.inputs import output_grid, read_image, read_input
from scanfield.cli.interrupt import stop_on_interrupt
from scanfield.cli.progress import progress
from scanfield.cli.request import Request
from scanfield.cli.text import hanging
from scanfield.data.attenuation import attenuation, ct_unit
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.projections import read_facts
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.run import Run, choose_device
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.image_fit import fit_image
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.reconstruction import reconstruct

PRESET_NOTES = {
    "tiny": " (shows that everything works; no image worth looking at)",
    "fast": " (shorter than published; --preset paper is the published setting)",
    "paper": " (as published)",
}


def fit(request: Request, config: Any, folder: Path, *, force: bool, resume: bool, quiet: bool, as_json: bool) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    if len(request.inputs) > 1:
        raise InputError(f"{request.method} takes one scan, got {len(request.inputs)}", where=" ".join(request.inputs))
    data = read_input(request.inputs[0])
    api.check_accepts(request.method, data.kind)
    _check_options(request, data)
    grid = output_grid(_own_grid(data), request.like, request.spacing_mm)
    display = progress(quiet=quiet)
    run = Run(folder, choose_device(request.device), request.seed, resume, force, observers=(display,))
    truth = None if request.reference is None else _truth(request, data, run)
    new = not folder.exists()
    if not (quiet or as_json):
        print(_announce(request, data, run), flush=True)
    with _nothing_left_of(folder, new), _saying_how_to_resume(folder), stop_on_interrupt(run.stop), display:
        outcome = _outcome(request, data, config, run, truth, grid)
    if as_json:
        print(json.dumps(_facts(folder, outcome, run)))
    elif not quiet:
        print(_result(folder, outcome, run))
    if run.stop.is_set():
        print(f"stopped before the end; {_how_to_resume(folder)}", file=sys.stderr)
        return 1
    return 0


def _outcome(
    request: Request,
    data: Scan | Measurement[ProjectionGeometry],
    config: Any,
    run: Run,
    truth: Scan | None,
    grid: Grid,
) -> Outcome:
    if isinstance(data, Measurement):
        return reconstruct(
            data,
            request.method,
            config,
            run,
            preset=request.preset,
            holdout_views=request.holdout_views,
            baselines=request.baselines,
            reference=truth,
            grid=grid,
            scan_facts={"mu_water_per_mm": read_facts(request.inputs[0]).mu_water_per_mm},
            request=asdict(request),
        )
    return fit_image(
        data,
        request.method,
        config,
        run,
        preset=request.preset,
        holdout_fraction=request.holdout_fraction,
        baselines=request.baselines,
        reference=truth,
        grid=grid,
        request=asdict(request),
    )


def _own_grid(data: Scan | Measurement[ProjectionGeometry]) -> Grid:
    return data.acquisition.volume if isinstance(data, Measurement) else data.grid


def _check_options(request: Request, data: Scan | Measurement[ProjectionGeometry]) -> None:
    """Options that belong to the other kind of data are refused, not ignored."""
    if isinstance(data, Measurement) and request.holdout_fraction is not None:
        raise InputError("projections are held out by views, not by voxels", fix="--holdout-views N")
    if isinstance(data, Scan) and request.holdout_views is not None:
        raise InputError("an image has no views to hold out", fix="--holdout-fraction F")
    if isinstance(data, Scan) and request.reference_unit != "auto":
        raise InputError("--reference-unit is for CT projections; an image's reference has the image's unit")


def _truth(request: Request, data: Scan | Measurement[ProjectionGeometry], run: Run) -> Scan:
    """The reference; for CT in 1/mm, its HU read with the attenuation of water the scan was made with."""
    assert request.reference is not None
    image = read_image(request.reference)
    if isinstance(data, Scan):
        return image
    mu_water = read_facts(request.inputs[0]).mu_water_per_mm
    if mu_water is None and ct_unit(image, request.reference_unit) == "HU":
        mu_water = MU_WATER_PER_MM
        run.warn(f"the scan does not state the attenuation of water; the reference's HU refer to {mu_water:g} 1/mm")
    return attenuation(image, request.reference_unit, mu_water or MU_WATER_PER_MM)


@contextmanager
def _nothing_left_of(folder: Path, new: bool) -> Iterator[None]:
    """Removes a folder made for this run if the input is refused before anything of worth is in it."""
    try:
        yield
    except InputError:
        if new and not (folder / "field.safetensors").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _saying_how_to_resume(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "run.json").exists():
            print(_how_to_resume(folder), file=sys.stderr)
        raise


def _how_to_resume(folder: Path) -> str:
    return f"continue with: scanfield reconstruct --resume {shlex.quote(str(folder))}"


def _announce(request: Request, data: Scan | Measurement[ProjectionGeometry], run: Run) -> str:
    threads = torch.get_num_threads()
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if run.device.type == "cpu" else str(run.device)
    lines = [
        f"{request.method}: {api.card(request.method).title}",
        f"  input     {Path(request.inputs[0]).name}: {_described(data)}",
        f"  settings  preset {request.preset}{PRESET_NOTES[request.preset]}; seed {run.seed}; {where}",
    ]
    if run.resume:
        assert run.folder is not None
        found = any((run.folder / "state").glob("*.safetensors"))
        lines.append("  continues from its last checkpoint" if found else "  starts again: there is no checkpoint yet")
    return "\n".join(lines) + "\n"


def _described(data: Scan | Measurement[ProjectionGeometry]) -> str:
    size = " x ".join(map(str, _own_grid(data).shape))
    if isinstance(data, Scan):
        return f"image of {size} voxels of " + " x ".join(f"{s:.4g}" for s in data.grid.spacing_mm) + " mm"
    geometry = data.acquisition
    rows, bins = geometry.detector.shape
    return f"{geometry.beam} beam, {geometry.views} views of {rows} x {bins} bins, for {size} voxels"


def _result(folder: Path, outcome: Outcome, run: Run) -> str:
    lines = ["", outcome.table.to_text(), ""]
    said = [hanging("warning: ", text) for text in run.warnings] + [hanging("note: ", text) for text in run.notes]
    lines += [*said, ""] if said else []
    surfaces = sorted(path.name for path in folder.glob("surface*.*"))
    images = ", ".join(f"{picture.name}.nii.gz" for picture in outcome.pictures)
    lines += [
        f"{folder}/",
        "  report.html        pictures, numbers, convergence, how to repeat and cite it",
        hanging("  images             ", images),
        *([hanging("  surfaces           ", ", ".join(surfaces))] if surfaces else []),
        "  field.safetensors  the result; `scanfield render` puts it on any grid",
        "  run.json           settings, seeds, versions, numbers",
    ]
    return "\n".join(lines)


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
