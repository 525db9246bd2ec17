"""Runs what `scanfield dose` was asked to: reads doses and structures, adds, fits, judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scanfield.cli.fit import fit, voxels
from scanfield.cli.inputs import output_grid
from scanfield.cli.method_flags import How
from scanfield.cli.request import DoseRequest
from scanfield.data.dose import Dose, box_of
from scanfield.data.dose_files import read_dose, read_structures
from scanfield.methods import api
from scanfield.run import Run
from scanfield.shortcuts import open_result
from scanfield.tasks.dose import store_dose
from scanfield.tasks.dose_search import architecture
from scanfield.tasks.dose_sum import accumulated
from scanfield.tasks.outcome import Outcome


def fit_dose(request: DoseRequest, config: Any, folder: Path, how: How) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    api.check_accepts(request.method, Dose.kind)
    data = read_dose(request.dose, unit=request.unit, relative_to_gy=request.relative_to_gy)
    second = None
    if request.add is not None:
        second = read_dose(request.add, unit=request.unit, relative_to_gy=request.relative_to_gy)
    structures = None
    if request.structures is not None:
        structures = read_structures(request.structures).chosen(request.chosen)
    grid = output_grid(data.grid, request.like, request.spacing_mm)

    def prepare(run: Run) -> tuple[list[str], Callable[[], Outcome]]:
        dose, described = data, [f"dose      {_described(request.dose, data)}"]
        if second is not None and request.add is not None:
            phi = None if request.through is None else open_result(request.through, str(run.device))
            dose = accumulated(data, second, phi, run)
            described.append(f"added     {_described(request.add, second)}")
        size = _box_voxels(dose)
        described.append(
            f"rate      {config.bits_per_voxel:g} bits per voxel of the box that holds all dose: {size} voxels, "
            f"{round(config.bits_per_voxel * size / 8)} bytes"
        )
        if structures is not None:
            described.append(f"judged    {', '.join(structure.name for structure in structures.structures)}")
            if structures.skipped:
                run.note(f"Structures without a volume: {', '.join(structures.skipped)}.")

        def start() -> Outcome:
            chosen = config
            if request.architecture is not None:
                chosen = architecture(request.architecture, request.method, config, dose, run)
            return store_dose(
                dose,
                request.method,
                chosen,
                run,
                preset=request.preset,
                baselines=request.baselines,
                structures=structures,
                prescribed_gy=request.prescribed_gy,
                grid=grid,
                request=asdict(request),
            )

        return described, start

    return fit(request, prepare, folder, how)


def _described(name: str, dose: Dose) -> str:
    return f"{Path(name).name}: {voxels(dose.grid)}, up to {dose.highest_gy:.4g} Gy"


def _box_voxels(dose: Dose) -> int:
    (a0, a1), (b0, b1), (c0, c1) = box_of(dose)
    return (a1 - a0) * (b1 - b0) * (c1 - c0)
