"""From a trained shape model to new sequences: masks, surfaces, what they are like, and whether they are copies.

A folder of generated sequences holds

    sequence_01.nii.gz ...   masks of four axes, the fourth being time (`data.sequences`), centred at the world's origin
    meshes/                  sequence_01_frame_01.ply ...: the surface at every moment, mm
    descriptors.csv          volume, surface, sphericity and components, of the generated sequences and, as the model
                             shows them, of the training's; both on the voxels and at the moments of the training
    canvas.npz               the masks there, for the report (`report.synthesis`)
    contact_sheet.png, report.html, figures/, run.json

Everything follows from the model's file and a seed. A method of the task 'synthesis' says what its codes are, draws new
ones, and turns a code into a signed distance in space and time (`methods.api`).
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scanfield.data.meshes import write_mesh
from scanfield.data.nifti import write_nifti
from scanfield.data.sequences import MaskSequence
from scanfield.data.write import write_atomically
from scanfield.errors import InputError, ScanfieldError
from scanfield.fields.shape import volume_mesh
from scanfield.fields.space_time import distance_at, frames_of
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.shape_model import DESCRIPTORS, ShapeDescriptors, describe, dice_matrix
from scanfield.report.build import build_report
from scanfield.report.notebook import shapes_html, with_table
from scanfield.report.synthesis import (
    CANVAS_FILE,
    COLUMNS,
    DESCRIPTOR_FILE,
    SHOWN_SEQUENCES,
    length_unit,
    write_canvas,
)
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.folder import begin, facts_of, write_record
from scanfield.tasks.model import Model
from scanfield.tasks.table import Column, Row, Table

Mode = Literal["prior", "near", "between"]
COPY = 0.98  # a sequence that overlaps one of the training's by more is called a copy
TRIES = 5  # draws a wanted sequence, at most
SHEET, MESHES = "contact_sheet.png", "meshes"
# Key, heading, unit, decimals, and the power of length that it grows with.
_MEASURES = (
    ("volume_mm3", "volume", "{}³", 1, 3),
    ("surface_mm2", "surface", "{}²", 1, 2),
    ("sphericity", "sphericity", "", 3, 0),
    ("components", "components", "", 2, 0),
)


@dataclass(frozen=True)
class GenerateOptions:
    """What to generate.

    Args:
        count: number of sequences.
        mode: 'prior' draws codes as spread as the learned ones; 'near' moves a learned code by as much, times
            `spread`; 'between' takes a random place on the line between two learned codes.
        spread: factor of the spread of 'prior' and 'near'.
        frames: moments of a sequence, evenly over its duration; None: as many as in the training.
        spacing_mm: voxel size; None: the training's.
        meshes: whether to write the surface of every frame.
    """

    count: int = 20
    mode: Mode = "prior"
    spread: float = 1.0
    frames: int | None = None
    spacing_mm: float | None = None
    meshes: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"at least one sequence is generated, got {self.count}")
        if self.frames is not None and self.frames < 2:
            raise InputError(f"a sequence has at least two frames, got {self.frames}")
        if self.spread < 0:
            raise InputError(f"the spread of codes cannot be negative, got {self.spread}")


@dataclass(eq=False)
class Generated:
    """What `generate` returns. Everything is judged on the voxels and moments of the training, whatever was asked for.

    Args:
        model: what made them.
        codes: of the sequences.
        grid, times_s: what was asked for.
        canvas, moments_s: voxels and moments of the training.
        frames: masks of the sequences there, and `training` those of the training sequences' codes.
        descriptors: of every frame of every generated sequence; `training_descriptors` likewise.
        nearest: the training sequence that each overlaps most, and `nearest_dice` how much, all frames together.
        table: means and deviations of both sets.
    """

    model: Model
    codes: Float[Tensor, "n k"]
    grid: Grid
    times_s: list[float]
    canvas: Grid
    moments_s: list[float]
    frames: Bool[Tensor, "n t n0 n1 n2"]
    training: Bool[Tensor, "m t m0 m1 m2"]
    descriptors: list[list[ShapeDescriptors]]
    training_descriptors: list[list[ShapeDescriptors]]
    nearest: Int[Tensor, " n"]
    nearest_dice: Float[Tensor, " n"]
    table: Table
    folder: Path | None = None
    warnings: list[str] = field(default_factory=list)

    def shape(self, index: int, *, device: torch.device | str = "cpu") -> torch.nn.Module:
        """One of the sequences as a signed distance (mm) in space and time, `(*n, 4) -> (*n, 1)`."""
        made: torch.nn.Module = api.load(self.model.method).shape(self.model, self.codes[index], device)
        return made

    def sequence(self, index: int, *, device: torch.device | str = "cpu") -> MaskSequence:
        """One of the sequences as it was asked for.

        Raises:
            InputError: it vanishes in a frame.
        """
        frames = frames_of(self.shape(index, device=device), self.grid, self.times_s, device=device)
        return MaskSequence(frames, self.grid, self.times_s[1] - self.times_s[0])

    def _repr_html_(self) -> str:
        """In a notebook: the first sequences, shaded, and the numbers."""
        step = self.moments_s[1] - self.moments_s[0]
        shown = [MaskSequence(frames, self.canvas, step) for frames in self.frames[:SHOWN_SEQUENCES]]
        return with_table(shapes_html(shown), self.table.to_text())


@on_the_run_s_backend
def generate(model: Model, options: GenerateOptions, run: Run, *, request: dict[str, Any] | None = None) -> Generated:
    """Generates sequences; with a folder in `run`, writes them there.

    A code whose shape vanishes in a frame is drawn again (a note says how often).

    Args:
        model: of a method of the task 'synthesis'.
        request: what was asked for, for the record.

    Raises:
        InputError: the model is for another task, 'between' has one code only, voxels are as large as the model's box,
            or the folder is taken.
        ScanfieldError: the model draws shapes that vanish again and again.
    """
    card = api.card(model.method)
    if card.task != "synthesis":
        raise InputError(
            f"a model of '{model.method}' makes no shapes: its task is {card.task}",
            fix=f"methods that do: {', '.join(c.name for c in api.discover().values() if c.task == 'synthesis')}",
        )
    module = api.load(model.method)
    canvas, moments = module.canvas(model)
    grid = canvas if options.spacing_mm is None else canvas.resampled(options.spacing_mm)
    if min(grid.shape) < 2:
        width = canvas.shape[0] * canvas.spacing_mm[0]
        raise InputError(f"voxels of {grid.spacing_mm[0]:.4g} mm leave nothing of shapes in a box of {width:.4g} mm")
    times = moments if options.frames is None else np.linspace(moments[0], moments[-1], options.frames).tolist()
    facts = facts_of(run, model.method, "the model's", to_json(model.config), request or {})
    facts |= {"program": "generate", "model": model.key, "licence": model.licence, "options": asdict(options)}
    facts["facts"] = {
        "sequences": f"{options.count} of {len(times)} frames, one every {times[1] - times[0]:.4g} s",
        "voxels": f"{' × '.join(map(str, grid.shape))} of {grid.spacing_mm[0]:.3g} mm",
        "model": model.key,
        "licence_of_the_training_images": model.licence,
    }
    learned = module.codes(model)
    with run.timed("training shapes"):
        training = torch.stack([_frames(module, model, code, canvas, moments, run) for code in learned])
    with run.timed("generate"):
        codes, frames = _drawn(module, model, options, canvas, moments, run)
    with run.timed("compare"):
        described, known, nearest, dice, table = _compared(frames, training, canvas, run, card.label)
    found = Generated(
        model, codes, grid, times, canvas, moments, frames, training, described, known, nearest, dice, table
    )
    if run.folder is not None:
        begin(run, facts, resumes=False)  # only now: what fails before leaves nothing behind
        _write(run.folder, found, facts, options, run)
    found.warnings, found.folder = run.warnings, run.folder
    return found


def new_codes(
    module: Any, model: Model, count: int, generator: torch.Generator, *, mode: Mode, spread: float
) -> Float[Tensor, "count k"]:
    """Codes of one of the modes, see `GenerateOptions`.

    Raises:
        InputError: 'between' needs two learned codes.
    """
    drawn = module.draw(model, count, generator, spread=spread)
    if mode == "prior":
        return Tensor(drawn)
    learned = module.codes(model)
    first = torch.randint(len(learned), (count,), generator=generator)
    if mode == "near":
        return Tensor(learned[first] + drawn - learned.mean(dim=0))
    if len(learned) < 2:
        raise InputError("there is nothing between the codes of a single sequence", fix="--mode prior or near")
    other = (first + torch.randint(1, len(learned), (count,), generator=generator)) % len(learned)
    return torch.lerp(learned[first], learned[other], torch.rand(count, 1, generator=generator))


def _drawn(
    module: Any, model: Model, options: GenerateOptions, grid: Grid, times: Sequence[float], run: Run
) -> tuple[Tensor, Tensor]:
    generator = run.generator("codes")
    codes: list[Tensor] = []
    frames: list[Tensor] = []
    for tried in range(TRIES * options.count):
        (code,) = new_codes(module, model, 1, generator, mode=options.mode, spread=options.spread)
        masks = _frames(module, model, code, grid, times, run)
        if masks.flatten(1).any(dim=1).all():
            codes.append(code)
            frames.append(masks)
            run.tell({"generated": len(codes), "of": options.count})
        if len(codes) == options.count:
            vanished = tried + 1 - options.count
            if vanished:
                run.note(f"{vanished} drawn shapes vanished in a frame and were drawn again.")
            return torch.stack(codes), torch.stack(frames)
    raise ScanfieldError(
        f"of {TRIES * options.count} drawn sequences {TRIES * options.count - len(codes)} vanish in a frame; "
        "draw with a smaller spread, render at a smaller spacing, or train longer"
    )


def _frames(module: Any, model: Model, code: Tensor, grid: Grid, times: Sequence[float], run: Run) -> Tensor:
    return frames_of(module.shape(model, code, run.device), grid, times, device=run.device)


Described = list[list[ShapeDescriptors]]


def _compared(
    frames: Tensor, training: Tensor, grid: Grid, run: Run, label: str
) -> tuple[Described, Described, Tensor, Tensor, Table]:
    """Descriptors of both sets, the nearest training sequences with their overlaps, and the table; warns of copies."""
    shown = training[training.flatten(2).any(dim=2).all(dim=1)]
    if len(shown) < len(training):
        run.warn(f"The model shows {len(training) - len(shown)} of its training sequences with an empty frame.")
    described = [[describe(mask, grid) for mask in sequence] for sequence in frames]
    known = [[describe(mask, grid) for mask in sequence] for sequence in shown]
    dice, nearest = dice_matrix(frames, training).max(dim=1)
    copies = int((dice > COPY).sum())
    if copies:
        run.warn(
            f"{copies} of {len(frames)} sequences overlap a training sequence by more than {COPY} (Dice, all frames): "
            "they are copies."
        )
    edge = frames.clone()
    edge[:, :, 1:-1, 1:-1, 1:-1] = False
    cut = int(edge.flatten(1).any(dim=1).sum())
    if cut:
        run.warn(f"{cut} of {len(frames)} sequences touch the border of the model's box, where they are cut off.")
    table = _table(described, known, dice, dice_matrix(shown, shown), label)
    for text in _unlike(table):
        run.warn(text)
    return described, known, nearest, dice, table


def _unlike(table: Table) -> Iterator[str]:
    """Sentences on descriptors whose means differ by more than the training sequences' standard deviation."""
    new, real = (row.values for row in table.rows)
    for name, title, _, _, _ in _MEASURES:
        spread = real.get(f"{name}_sd", 0.0)
        if spread > 0 and abs(new[name] - real[name]) > spread:
            off = abs(new[name] - real[name]) / spread
            more = "larger" if new[name] > real[name] else "smaller"
            yield f"The mean {title} of what was generated is {more} than the training's by {off:.1f} of its SD."


def _table(
    described: Described,
    known: Described,
    dice: Tensor,
    among: Tensor,
    label: str,
) -> Table:
    """Means and deviations over the sequences, of the mean over their frames."""
    note = "as the next columns, mean over a sequence's frames; SD: between sequences, of the column before"
    length, scale = length_unit([d.volume_mm3 for sequence in described for d in sequence])
    table = Table()
    for name, title, unit, digits, _ in _MEASURES:
        for key, heading in ((name, title), (f"{name}_sd", "SD")):
            table.add_column(Column(key, heading, unit.format(length), "", "" if table.columns else note, digits))
    far = "Dice, all frames, with the nearest training sequence (of those: the nearest other); mean, and max"
    table.add_column(Column("nearest_dice", "nearest", "", "", far, 3))
    table.add_column(Column("largest_dice", "max", "", "", "", 3))
    others = among - 2 * torch.eye(len(among))
    nearest_other = others.max(dim=1).values if len(among) > 1 else None
    for row, sets, overlaps in (
        (Row("generated", f"{label}, generated", "method"), described, dice),
        (Row("training", "training, as the model shows it", "baseline"), known, nearest_other),
    ):
        for name, _, _, _, power in _MEASURES if sets else ():
            values = torch.tensor(
                [[float(asdict(d)[name]) for d in sequence] for sequence in sets], dtype=torch.float64
            )
            values = scale**power * values.mean(dim=1)
            row.values[name] = float(values.mean())
            if len(values) > 1:
                row.values[f"{name}_sd"] = float(values.std())
        if overlaps is not None:
            row.values |= {"nearest_dice": float(overlaps.mean()), "largest_dice": float(overlaps.max())}
        table.rows.append(row)
    return table


def _write(folder: Path, found: Generated, facts: dict[str, Any], options: GenerateOptions, run: Run) -> None:
    """All files; of the sequences one is in memory at a time. The report comes last, and reads what is there."""
    digits = max(2, len(str(len(found.codes))))
    entries = []
    if options.meshes:
        (folder / MESHES).mkdir(exist_ok=True)
    with run.timed("write"):
        for k in range(len(found.codes)):
            name = f"sequence_{k + 1:0{digits}d}"
            _write_sequence(folder, name, found, k, options, run)
            entries.append(
                {
                    "file": f"{name}.nii.gz",
                    "nearest_training": int(found.nearest[k]),
                    "nearest_dice": float(found.nearest_dice[k]),
                    "code": found.codes[k].tolist(),
                }
            )
    with write_atomically(folder / DESCRIPTOR_FILE) as temporary:
        temporary.write_text(_csv(found), encoding="utf-8")
    write_canvas(folder / CANVAS_FILE, found.frames[:SHOWN_SEQUENCES].numpy(), found.canvas, found.moments_s)
    write_record(
        folder,
        facts
        | {
            "status": "complete",
            "synthesis": {"sequences": entries, "times_s": found.times_s, "grid": found.grid.to_json()},
            "table": found.table.to_json(),
            "display": {"window": [0.0, 1.0]},
            "timings": run.timings,
            "warnings": run.warnings,
            "notes": run.notes,
        },
    )
    build_report(folder)
    with write_atomically(folder / SHEET) as temporary:
        shutil.copyfile(folder / "figures" / "contact-sheet.png", temporary)


def _write_sequence(folder: Path, name: str, found: Generated, index: int, options: GenerateOptions, run: Run) -> None:
    """The masks of a sequence and its surfaces: the zero level of the field itself, smoother than the masks."""
    shape, masks = found.shape(index, device=run.device), list(found.frames[index])
    if options.meshes or found.grid is not found.canvas or found.times_s != found.moments_s:
        masks = []
        for t, moment in enumerate(found.times_s):
            distance = distance_at(shape, found.grid, moment, device=run.device)
            masks.append(distance < 0)
            if not masks[-1].any():
                run.warn(f"{name} vanishes in frame {t + 1} of {len(found.times_s)}.")
            elif not float(distance.max()) > 0:
                run.warn(f"{name} fills the model's box in frame {t + 1} of {len(found.times_s)}.")
            elif options.meshes:
                mesh = volume_mesh(distance, found.grid)
                write_mesh(folder / MESHES / f"{name}_frame_{t + 1:02d}.ply", mesh)
    step = found.times_s[1] - found.times_s[0]
    write_nifti(folder / f"{name}.nii.gz", torch.stack(masks, dim=-1).byte(), found.grid, unit="1", step_s=step)


def _csv(found: Generated) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind, sets in (("training", found.training_descriptors), ("generated", found.descriptors)):
        for k, sequence in enumerate(sets):
            for t, (moment, values) in enumerate(zip(found.moments_s, sequence, strict=True)):
                numbers = [f"{asdict(values)[name]:.6g}" for name in DESCRIPTORS]
                writer.writerow([kind, k + 1, t + 1, f"{moment:.6g}", *numbers])
    return text.getvalue()
