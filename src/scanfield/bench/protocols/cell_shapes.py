"""Shapes in space and time: frames that were left out, sequences that were never seen, and new ones, beside grids.

Real masks, evolved by stated formulas (`operators.simulate_cells`), because no time-lapse of masks is at hand: whole
nuclei of a Platynereis embryo (half of them divide), and left or right hippocampi of different people (none does). The
simulation draws on a grid three times finer and knows nothing of the model. Of nine frames the model, and its rivals,
see every second one; the four between judge. Some sequences are kept from it altogether.

Rivals: linear interpolation of signed distances between the frames that were seen; principal components of the stacked
distances (then interpolated in time); the same network with rectifiers, trained alike. Overlaps are Dice on the
sequences' own voxels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanfield.baselines.shapes import ShapePca, interpolate_distances
from scanfield.bench.parallel import each
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.sequences import MaskSequence, write_sequence
from scanfield.fields.networks.reinjected import NetworkActivation
from scanfield.fields.shape import signed_distance
from scanfield.fields.space_time import frames_of
from scanfield.methods.synthesis import cell_shapes
from scanfield.metrics.shape_model import compactness, describe, dice_matrix, paired_dice
from scanfield.operators.simulate_cells import (
    CellObject,
    CellOptions,
    nearest_to_median,
    simulate_cells,
    whole_objects,
)
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model
from scanfield.tasks.synthesis import GenerateOptions, generate

NUCLEI_MM = 4e-4  # of a voxel: assumed, the file does not say; it scales all lengths and decides nothing
UNSEEN = 4  # sequences of a case that are kept from the training
FRAMES, EVERY, SIZE, DRAWN = 9, 2, 32, 20
CONFIG = replace(
    cell_shapes.Config.fast(), batch=16, points=2048, epochs=800, halve_epochs=200, ramp_epochs=80, infer_steps=300
)
ACTIVATIONS: tuple[NetworkActivation, ...] = ("sine", "relu")
DESCRIBED = ("volume_mm3", "surface_mm2", "sphericity")


@dataclass(frozen=True, eq=False)
class Case:
    """Sequences to learn from and others; whether each of the former divides."""

    name: str
    seen: list[MaskSequence]
    divides: list[bool]
    unseen: list[MaskSequence]


def run(run: Run) -> BenchResult:
    """Both cases, each with both activations."""
    result, cases = BenchResult(), (nuclei(), hippocampi())
    run.tell({"case": f"training, {len(cases) * len(ACTIVATIONS)} networks"})
    jobs = [(case, replace(CONFIG, activation=activation)) for case in cases for activation in ACTIVATIONS]
    trained = dict(zip([(case.name, config.activation) for case, config in jobs], each(train, jobs, run), strict=True))
    for case in cases:
        _case(run, case, {name: trained[case.name, name] for name in ACTIVATIONS}, result)
    result.notes.append(
        "Training sequences are one per object, frames 1, 3, 5, 7, 9 of 9. A code of an unseen sequence is found with "
        "the network frozen; its principal components by projection. Settings were chosen on other evolutions of the "
        "nuclei and on hippocampi of other people."
    )
    return result


def nuclei(count: int = 24) -> Case:
    """Whole nuclei of the most usual volumes; half of them divide."""
    with np.load(data_path("shapes/platynereis_nuclei_labels.npz"), allow_pickle=False) as file:
        labels = torch.from_numpy(np.ascontiguousarray(file["label"].transpose(2, 1, 0)).astype(np.float32))
        n0, n1, n2 = labels.shape
    objects = nearest_to_median(whole_objects(Scan(labels, Grid.centred((n0, n1, n2), NUCLEI_MM))), count)
    return _evolved("nuclei", objects, CellOptions(frames=FRAMES, size=SIZE, seed=1))


def hippocampi(count: int = 24) -> Case:
    """One hippocampus of each of several people; they grow, turn and deform a little."""
    objects: list[CellObject] = []
    for path in sorted(data_path("hippocampus/hippocampus_006_label.nii.gz").parent.glob("*_label.nii.gz"))[:count]:
        objects += whole_objects(read_nifti(path), merge=True, name=path.name.removesuffix("_label.nii.gz"))
    options = CellOptions(
        frames=FRAMES, size=40, growth=1.3, deformation=0.15, drift=0.3, turn_deg=20.0, division=0.0, seed=2
    )
    return _evolved("hippocampi", objects, options)


def _evolved(name: str, objects: Sequence[CellObject], options: CellOptions) -> Case:
    cells = simulate_cells(objects, options)
    seen, unseen = cells[:-UNSEEN], cells[-UNSEEN:]
    return Case(name, [c.sequence for c in seen], [c.divides for c in seen], [c.sequence for c in unseen])


def cohort(case: Case, folder: Path) -> Cohort:
    """Every second frame of the sequences to learn from, as a cohort in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,subject,split"]
    for k, sequence in enumerate(case.seen):
        write_sequence(folder / f"{k}.nii.gz", sequence.every(EVERY))
        lines.append(f"{k}.nii.gz,{k},train")
    (folder / "cohort.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_cohort(folder / "cohort.csv")


def train(job: tuple[Case, cell_shapes.Config], run: Run) -> Model:
    """The model of a case."""
    case, config = job
    with tempfile.TemporaryDirectory() as folder:
        return cell_shapes.train(config, cohort(case, Path(folder)), run)


def _case(run: Run, case: Case, models: dict[str, Model], result: BenchResult) -> None:
    for activation, model in models.items():
        log = model.logs[0]
        error = float(np.mean([line["loss"]["distance"] for line in log.history[-5:]]))
        row = {"case": case.name, "row": activation, "steps": log.steps, "train_s": round(log.seconds, 1)}
        row["l1_of_unit"] = round(error, 5)
        result.table.append(row | _overlaps(model, case.seen, case.divides, run))
    run.tell({"case": f"{case.name}: rivals"})
    linear, pca = rivals(models["sine"], case)
    result.table.append({"case": case.name, "row": "linear interpolation of distances"} | linear)
    result.table.append({"case": case.name, "row": f"PCA, {len(case.seen) // 2} modes"} | pca)
    sine, relu = result.table[-4], result.table[-3]
    result.checks.append(
        Check(f"{case.name}: frames between, over linear", sine["dice_between"] - linear["dice_between"], 0.0)
    )
    if any(case.divides):
        gain = sine["dice_between_dividing"] - linear["dice_between_dividing"]
        result.checks.append(Check(f"{case.name}: the same, dividing", gain, 0.01))
    result.checks += [
        Check(f"{case.name}: frames seen, sine over relu", sine["dice_seen"] - relu["dice_seen"], 0.0),
        Check(f"{case.name}: L1, sine over relu", sine["l1_of_unit"] / relu["l1_of_unit"], 1.0, "<="),
    ]
    _unseen(run, case, models["sine"], result)
    _generated(run, case, models["sine"], result)


def _overlaps(model: Model, sequences: Sequence[MaskSequence], divides: Sequence[bool], run: Run) -> dict[str, Any]:
    """Mean Dice of the frames that were seen and of those between."""
    found = [
        paired_dice(_shown(model, code, sequence, run), _around(model, sequence).frames)
        for code, sequence in zip(cell_shapes.codes(model), sequences, strict=True)
    ]
    return _means(torch.stack(found), divides)


def _means(dice: Tensor, divides: Sequence[bool]) -> dict[str, Any]:
    between, dividing = dice[:, 1::EVERY], torch.tensor(divides)
    means = {"dice_seen": dice[:, ::EVERY].mean(), "dice_between": between.mean(), "dice_between_least": between.min()}
    if dividing.any():
        means |= {"dice_between_dividing": between[dividing].mean()}
    return {name: round(float(value), 4) for name, value in means.items()}


def _around(model: Model, sequence: MaskSequence) -> MaskSequence:
    """All frames on as many voxels as the model's box has, around the centre of the frames that were seen."""
    shape = cell_shapes.canvas(model)[0].shape
    at = sequence.grid.to_voxel(torch.from_numpy(sequence.every(EVERY).centre_mm)[None])[0]
    first = (at - (torch.tensor(shape) - 1) / 2).round().int().tolist()
    return sequence.part(first, shape)


def _shown(model: Model, code: Tensor, sequence: MaskSequence, run: Run) -> Tensor:
    """The model's frames for a code, where and when the sequence has its own."""
    shift = np.eye(4)
    shift[:3, 3] = -sequence.every(EVERY).centre_mm
    grid = _around(model, sequence).grid.moved(shift)
    shape = cell_shapes.shape(model, code, run.device)
    return frames_of(shape, grid, sequence.times_s.tolist(), device=run.device)


def _distances(model: Model, sequence: MaskSequence) -> tuple[Tensor, MaskSequence]:
    """Signed distances of the frames that were seen, around the centre; and all frames there."""
    whole = _around(model, sequence)
    return torch.stack([signed_distance(frame, whole.grid) for frame in whole.frames[::EVERY]]), whole


def rivals(model: Model, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overlaps of interpolated distances, and of principal components of half as many modes as sequences."""
    found = [_distances(model, sequence) for sequence in case.seen]
    videos = torch.stack([distances for distances, _ in found])
    flat = videos.flatten(1)
    pca = ShapePca.of(flat, len(flat) // 2)
    rebuilt = pca.rebuilt(pca.coefficients(flat)).reshape(videos.shape)
    return tuple(  # type: ignore[return-value]
        _means(
            torch.stack([_interpolated_dice(v, whole) for v, (_, whole) in zip(each, found, strict=True)]), case.divides
        )
        for each in (videos, rebuilt)
    )


def _interpolated_dice(distances: Tensor, whole: MaskSequence) -> Tensor:
    times = torch.from_numpy(whole.times_s)
    return paired_dice(interpolate_distances(distances, times[::EVERY], times) < 0, whole.frames)


def _unseen(run: Run, case: Case, model: Model, result: BenchResult) -> None:
    """Sequences that no model has seen: the nearest member of the network and of the principal components."""
    run.tell({"case": f"{case.name}: unseen sequences"})
    codes = cell_shapes.encode(model, [sequence.every(EVERY) for sequence in case.unseen], run.again(quiet=True))
    none = [False] * len(case.unseen)
    dice = torch.stack(
        [
            paired_dice(_shown(model, code, sequence, run), _around(model, sequence).frames)
            for code, sequence in zip(codes, case.unseen, strict=True)
        ]
    )
    result.table.append({"case": case.name, "row": "sine, unseen sequences"} | _means(dice, none))
    known = torch.stack([_distances(model, sequence)[0] for sequence in case.seen]).flatten(1)
    pca = ShapePca.of(known)
    found = [_distances(model, sequence) for sequence in case.unseen]
    videos = torch.stack([distances for distances, _ in found])
    rebuilt = pca.rebuilt(pca.coefficients(videos.flatten(1))).reshape(videos.shape)
    theirs = [_interpolated_dice(v, whole) for v, (_, whole) in zip(rebuilt, found, strict=True)]
    result.table.append({"case": case.name, "row": "PCA, unseen sequences"} | _means(torch.stack(theirs), none))
    half = len(case.seen) // 2 - 1
    shares = {"sine": float(compactness(cell_shapes.codes(model))[half]), "PCA": float(compactness(known)[half])}
    text = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    result.notes.append(
        f"{case.name}: share of the variance in the first {half + 1} modes of codes or distances: {text}."
    )


def _generated(run: Run, case: Case, model: Model, result: BenchResult) -> None:
    """New sequences against the real ones: descriptors, one component at the start, copies."""
    run.tell({"case": f"{case.name}: {DRAWN} new sequences"})
    real = [_around(model, sequence) for sequence in case.seen]
    truth = _described([(s.frames[::EVERY], s.grid) for s in real])
    new = generate(model, GenerateOptions(DRAWN, meshes=False), run.again(quiet=True))
    masks = torch.stack([s.frames[::EVERY] for s in real])
    pca = ShapePca.of(torch.stack([_distances(model, sequence)[0] for sequence in case.seen]).flatten(1))
    linear = pca.draw(DRAWN, torch.Generator().manual_seed(run.seed)).reshape(DRAWN, *masks.shape[1:]) < 0
    linear = linear[linear.flatten(2).any(dim=2).all(dim=1)]
    for name, frames in (("generated", new.frames), ("PCA, generated", linear)):
        own = _described([(f, new.grid) for f in frames])
        nearest = dice_matrix(frames, masks).max(dim=1).values
        row: dict[str, Any] = {"case": case.name, "row": name, "sequences": len(frames)}
        for descriptor in DESCRIBED:
            mean, deviation = truth[descriptor].mean(), truth[descriptor].std()
            row[f"{descriptor}_off_in_sd"] = round(float((own[descriptor].mean() - mean) / deviation), 3)
            row[f"{descriptor}_sd_over_real"] = round(float(own[descriptor].std() / deviation), 3)
        row["one_component_at_start"] = round(float((own["first_components"] == 1).float().mean()), 3)
        row |= {"nearest_dice": round(float(nearest.mean()), 4), "nearest_dice_most": round(float(nearest.max()), 4)}
        result.table.append(row)
    ours = result.table[-2]
    worst = max(abs(ours[f"{descriptor}_off_in_sd"]) for descriptor in DESCRIBED)
    result.checks += [
        Check(f"{case.name}: descriptors of new sequences off the real mean", worst, 1.0, "<=", "SD"),
        Check(f"{case.name}: new sequences that begin in one piece", ours["one_component_at_start"], 0.95),
        Check(f"{case.name}: overlap of a new sequence with a real one", ours["nearest_dice_most"], 0.98, "<="),
    ]


def _described(sequences: Sequence[tuple[Tensor, Grid]]) -> dict[str, Tensor]:
    """Descriptors of sequences, (sequences,): means over their frames, and the components of the first."""
    found: dict[str, list[float]] = {name: [] for name in (*DESCRIBED, "first_components")}
    for frames, grid in sequences:
        described = [asdict(describe(frame, grid)) for frame in frames]
        for name in DESCRIBED:
            found[name].append(float(np.mean([each[name] for each in described])))
        found["first_components"].append(float(described[0]["components"]))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
