"""`scanfield simulate cells LABELS... -o DIR`: objects of real label maps grow, move and divide."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_json, add_quiet, count, number
from scanfield.data.write import new_folder
from scanfield.errors import InputError

if TYPE_CHECKING:
    from scanfield.operators.simulate_cells import SimulatedCell

TABLE, RECORD = "cohort.csv", "simulation.json"


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield simulate cells ...` and returns its exit code."""
    args = _parser().parse(argv[2:])
    folder = new_folder(args.output)

    from dataclasses import asdict

    from scanfield.cli.inputs import read_image
    from scanfield.operators.simulate_cells import CellOptions, nearest_to_median, simulate_cells, whole_objects

    options = CellOptions(
        frames=args.frames,
        step_s=args.step_s,
        growth=args.growth,
        deformation=args.deformation,
        drift=args.drift,
        turn_deg=args.turn_deg,
        division=args.division,
        size=args.size,
        spacing_mm=args.spacing_mm,
        finer=args.finer,
        seed=args.seed,
    )
    _check_once(args.labels)
    objects = []
    for number_of_map, path in enumerate(args.labels):
        prefix = "label" if len(args.labels) == 1 else f"map_{number_of_map:03d}"
        objects += whole_objects(read_image(path), name=prefix, merge=args.merge)
    if args.count is not None:
        objects = nearest_to_median(objects, args.count)
    elsewhere = args.validation + args.test
    if len(objects) < elsewhere + 2:
        raise InputError(
            f"of {len(objects)} objects {elsewhere} are not learned from: at least 2 must be left to learn from",
            where="--validation, --test",
            fix="keep fewer, or give more label maps",
        )
    cells = simulate_cells(objects, options)
    splits = ["train"] * (len(cells) - elsewhere) + ["validation"] * args.validation + ["test"] * args.test
    record = {"command": shlex.join(["scanfield", *argv]), "labels": args.labels, "options": asdict(options)}
    _write(folder, cells, splits, record)
    facts = _facts(folder, cells, splits)
    if args.json:
        print(json.dumps(facts, indent=2))
    elif not args.quiet:
        print(_text(facts))
    return 0


def _check_once(paths: Sequence[str]) -> None:
    """Raises `InputError` if a label map is given twice: its objects would be learned from and judged by."""
    from scanfield.data.files import checksum

    seen: dict[str, str] = {}
    for path in filter(Path.is_file, map(Path, paths)):  # what is missing is named where it is read
        digest = checksum(path)
        if digest in seen:
            raise InputError(f"a label map is given twice: {seen[digest]} and {path}", fix="give every label map once")
        seen[digest] = str(path)


def _parser() -> Parser:
    parser = Parser(
        "scanfield simulate cells",
        "Makes sequences of masks from real ones: objects of label maps grow, drift, deform and divide by stated "
        "formulas. Writes a mask of four axes (the fourth is time) for every object, and the table cohort.csv.",
        takes="LABELS... -o DIR [options]",
        examples=[
            "scanfield simulate cells nuclei.nii.gz -o cells --count 12 --validation 2",
            "scanfield simulate cells liver_*.nii.gz -o livers --merge --division 0 --growth 1.2 --size 48",
        ],
    )
    parser.add_argument("labels", metavar="LABELS", nargs="+", help="label maps: whole numbers, 0 for no object")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder to write into")
    parser.add_argument("--merge", action="store_true", help="all labels of a map are one object")
    parser.add_argument(
        "--count", type=count(), metavar="N", help="so many objects, of the most usual volumes (default: all)"
    )
    parser.add_argument(
        "--validation", type=count(least=0), default=0, metavar="N", help="of them to watch (default: 0)"
    )
    parser.add_argument("--test", type=count(least=0), default=0, metavar="N", help="of them to judge by (default: 0)")

    life = parser.add_argument_group("how objects evolve, from the first frame to the last")
    life.add_argument(
        "--growth", type=number(above=0), default=1.4, metavar="F", help="factor of the volume (default: 1.4)"
    )
    life.add_argument(
        "--deformation", type=number(least=0), default=0.15, metavar="A", help="in radii, up to 0.3 (default: 0.15)"
    )
    life.add_argument("--drift", type=number(least=0), default=0.5, metavar="D", help="in radii (default: 0.5)")
    life.add_argument("--turn-deg", type=number(), default=30.0, metavar="A", help="(default: 30)")
    life.add_argument(
        "--division",
        type=number(least=0, most=1),
        default=0.5,
        metavar="P",
        help="share of the objects that divide (default: 0.5)",
    )
    life.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")

    frames = parser.add_argument_group("how that is recorded")
    frames.add_argument("--frames", type=count(least=2), default=10, metavar="T", help="(default: 10)")
    frames.add_argument(
        "--step-s", type=number(above=0), default=60.0, metavar="S", help="between frames (default: 60)"
    )
    frames.add_argument("--size", type=count(least=12), default=32, metavar="V", help="voxels an axis (default: 32)")
    frames.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="voxel size (default: what fits the largest object)"
    )
    frames.add_argument(
        "--finer", type=count(), default=3, metavar="F", help="masks are drawn on a grid so much finer (default: 3)"
    )
    add_quiet(parser)
    add_json(parser)
    return parser


def _write(folder: Path, cells: Sequence[SimulatedCell], splits: Sequence[str], record: dict[str, Any]) -> None:
    """The sequences, how they were made, and last the table that lists them."""
    from scanfield.data.sequences import write_sequence
    from scanfield.data.write import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", where=str(folder)) from None
    lines = ["path,subject,split,divides"]
    for cell, split in zip(cells, splits, strict=True):
        write_sequence(folder / f"{cell.name}.nii.gz", cell.sequence)
        lines.append(f"{cell.name}.nii.gz,{cell.name},{split},{'yes' if cell.divides else 'no'}")
    for name, text in ((RECORD, json.dumps(record, indent=1)), (TABLE, "\n".join(lines) + "\n")):
        with write_atomically(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _facts(folder: Path, cells: Sequence[SimulatedCell], splits: Sequence[str]) -> dict[str, Any]:
    first = cells[0].sequence
    return {
        "folder": str(folder),
        "table": str(folder / TABLE),
        "sequences": len(cells),
        "dividing": sum(cell.divides for cell in cells),
        "splits": {split: splits.count(split) for split in dict.fromkeys(splits)},
        "frames": len(first.frames),
        "step_s": first.step_s,
        "shape": list(first.grid.shape),
        "spacing_mm": first.grid.spacing_mm[0],
    }


def _text(facts: dict[str, Any]) -> str:
    splits = ", ".join(f"{number} {split}" for split, number in facts["splits"].items())
    shape = " x ".join(map(str, facts["shape"]))
    return "\n".join(
        [
            f"{facts['folder']}/",
            f"  {facts['sequences']} sequences ({splits}), {facts['dividing']} of them divide",
            f"  {facts['frames']} frames, one every {facts['step_s']:g} s",
            f"  {shape} voxels of {facts['spacing_mm']:.3g} mm",
            f"  {TABLE:<18}the table for `scanfield train`",
            f"  {RECORD:<18}how they were made",
        ]
    )
