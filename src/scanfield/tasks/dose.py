"""From a planned dose to a small file and what it costs: fit, write, decode, rivals of the same size, numbers, report.

All numbers belong to what the file decodes to, never to the fit. A run's folder holds, besides what every run leaves:

    dose.sfz                       the model; `scanfield decompress` needs nothing else
    <method>.nii.gz, plan.nii.gz   the decoded and the planned dose, Gy, on the planned grid (or the one asked for)
    dose.dcm                       the decoded dose as RTDOSE, where the plan was DICOM
    gamma.nii.gz                   gamma of the decoded dose; 0 where it was not judged
    dvh.csv, dvh_curves.csv        dose-volume numbers and cumulative histograms of every structure
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.baselines.dose import LABELS, stored
from scanfield.codec.field_file import RateReport, read_field, write_field
from scanfield.data.dicomrt import write_rtdose
from scanfield.data.dose import Dose, PlanFacts, box_of, check_frames, cropped, shared_frame
from scanfield.data.nifti import write_nifti
from scanfield.data.structures import StructureSet
from scanfield.errors import InputError, MissingExtra
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.dose import sampled_dose
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.dosimetry import Dosimetry, masks_of, named
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Table

MODEL, GAMMA, PLAN = "dose.sfz", "gamma.nii.gz", "plan"
FINER = 2  # points per voxel and axis for histograms of the continuous dose
RESEARCH = "Research software: no dose in this folder is meant for treatment."


@on_the_run_s_backend
def store_dose(
    data: Dose,
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    baselines: Literal["none", "fast", "all"] = "all",
    structures: StructureSet | None = None,
    prescribed_gy: float | None = None,
    grid: Grid | None = None,
    scan_facts: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Fits a model of a stated number of bits per voxel to a dose and judges what its file decodes to.

    Args:
        data: the planned dose.
        method: name of a method for doses.
        config: its configuration; it states the rate.
        run: seeds, device, folder. With a folder everything is written there.
        preset: which preset `config` started from, for the record.
        baselines: whether to run the rivals at the same number of bytes; all of them take seconds.
        structures: targets and organs, for dose-volume histograms.
        prescribed_gy: prescribed dose, for isodoses and conformity.
        grid: where the images are rendered; by default the planned grid. Numbers always refer to the planned grid.
        scan_facts: what else the report should say about the dose.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take doses, or a structure has another frame of reference or lies outside the
            dose grid.
    """
    api.check_accepts(method, data.kind)
    module, label = api.load(method), api.card(method).label
    if prescribed_gy is not None and not prescribed_gy > 0:
        raise InputError(f"the prescribed dose must be positive, got {prescribed_gy:g} Gy")
    masks: dict[str, Tensor] = {}
    if structures is not None:
        check_frames(
            shared_frame(data), structures.frame_of_reference, "the dose and the structures", structures.source
        )
        masks, partly = masks_of(structures, data)
        for sentence in partly:
            run.warn(sentence)
    judge = Dosimetry(data, masks, prescribed_gy)
    facts = facts_of(run, method, preset, to_json(config), request or {}) | {"facts": scan_facts or {}}
    begin(run, facts)
    with run.timed("fit"):
        fitted: Reconstruction = module.fit(config, data, run)
    fitted.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    with run.timed("write and decode"):
        result, report = _through_file(fitted, module, data, run)
        decoded = module.render(result, data.grid)
    _warn(run, data, report, config)

    table, images = Table(judge.columns()), {method: decoded}
    for structure, mask in masks.items():
        judge.collect(structure, PLAN, data.values[mask])
    with run.timed("judge"):
        row, found = judge.row(method, label, "method", decoded, report.total, run.timings["fit"])
        table.rows.append(row)
        if structures is not None:
            _continuous(judge, structures, module.dose(result), data, method, run)
    if baselines != "none" and not run.stop.is_set():
        _rivals(table, judge, images, data, report.total, run)

    own = grid is None or grid.same_as(data.grid)
    shown = data.grid if grid is None else grid
    pictures = [Picture(method, label, "method", decoded if own else module.render(result, shown))]
    if own:
        pictures += [Picture(n, LABELS[n], "baseline", image) for n, image in images.items() if n != method]
        pictures.append(Picture(PLAN, "planned dose", "reference", data.values))
    outcome = Outcome(fitted, shown, pictures, table, run.folder)
    if run.folder is not None:
        write_nifti(run.folder / GAMMA, found.values.nan_to_num(nan=0.0), data.grid, unit="1")
        judge.write(run.folder)
        if data.plan is not None:
            write_dicom(run.folder / "dose.dcm", pictures[0].values, shown, data.plan, label, run)
        for structure, index in judge.coverage(decoded).items():
            planned = judge.coverage(data.values)[structure]
            run.note(f"Conformity (Paddick) of {structure}: {planned:.4f} planned, {index:.4f} decoded.")
        run.note(RESEARCH)
        parts = {name: size for name, size in report.parts}
        finish(run, facts | {"rate": {"bytes": report.total, "parts": parts}}, outcome, window=(0.0, data.highest_gy))
    return outcome


def _through_file(fitted: Reconstruction, module: Any, data: Dose, run: Run) -> tuple[Reconstruction, RateReport]:
    """The result as it comes back from its file, and where the file's bytes are."""
    facts = {"type": "float32", "low": 0.0, "high": data.highest_gy}  # what `scanfield decompress` asks for
    with tempfile.TemporaryDirectory() as temporary:
        path = (Path(temporary) if run.folder is None else run.folder) / MODEL
        report = write_field(path, fitted, rungs=module.rungs(fitted), facts=facts)
        return read_field(path, run.device), report


def _warn(run: Run, data: Dose, report: RateReport, config: Any) -> None:
    """What a reader should not have to find in the table."""
    if data.plan is not None and data.plan.summation not in ("PLAN", "MULTI_PLAN"):
        run.warn(f"this is a dose of summation type {data.plan.summation}: a part of what the patient receives")
    asked = config.bits_per_voxel * math.prod(high - low for low, high in box_of(data)) / 8
    if report.total > 1.02 * asked:
        run.warn(
            f"the file has {report.total} bytes, more than the {asked:.0f} that {config.bits_per_voxel:g} bits allow"
        )


def _continuous(judge: Dosimetry, structures: StructureSet, dose: nn.Module, data: Dose, method: str, run: Run) -> None:
    """Histograms of the continuous dose, at points between the voxels' centres."""
    for name, structure in named(structures).items():
        values = sampled_dose(lambda x: dose(x.to(run.device))[:, 0], structure.on, data.grid, finer=FINER)
        judge.collect(name, f"{method}, sub-voxel", values)


def _rivals(table: Table, judge: Dosimetry, images: dict[str, Tensor], data: Dose, size: int, run: Run) -> None:
    """The rivals get the box that holds all dose, and as many bytes as the model's file has."""
    box = cropped(data)
    place = tuple(slice(low, high) for low, high in box_of(data))
    for name, label in LABELS.items():
        run.tell({"baseline": label})
        start = time.perf_counter()
        try:
            values, used = stored(name, box.values, box.grid, size)
        except MissingExtra as error:
            run.note(f"{label} is missing from the table: {error.what}.")
            continue
        except InputError as error:
            run.note(f"{label} is missing from the table: {error.what}.")
            continue
        run.timings[name] = time.perf_counter() - start
        whole = torch.zeros_like(data.values)
        whole[place] = values
        images[name] = whole
        table.rows.append(judge.row(name, label, "baseline", whole, used, run.timings[name])[0])


def write_dicom(
    path: Path, values: Float[Tensor, "n0 n1 n2"], grid: Grid, plan: PlanFacts, label: str, run: Run
) -> None:
    """Writes a dose as RTDOSE of the plan it belongs to; a sheared grid has no place in DICOM, which becomes a note."""
    try:
        write_rtdose(path, values, grid, plan=plan, description=f"{label} (research, not for treatment)")
    except MissingExtra:
        raise
    except InputError as error:
        run.note(f"There is no {path.name}: {error.what}.")
