"""`scanfield generate MODEL -n 20 -o DIR`: new sequences of shapes from a trained model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, count, number, one_of
from scanfield.data.write import new_folder, whole_or_nothing

if TYPE_CHECKING:
    from scanfield.tasks.synthesis import Generated

MODES = ("prior", "near", "between")


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield generate ...` and returns its exit code."""
    args = _parser().parse(argv[1:])
    folder = new_folder(args.output, replaced=args.force, fix="choose another name, or replace it: --force")

    from scanfield.cli.progress import progress
    from scanfield.run import Run, choose_device
    from scanfield.tasks.model import Model, model_file
    from scanfield.tasks.synthesis import GenerateOptions, generate

    options = GenerateOptions(args.count, args.mode, args.spread, args.frames, args.spacing_mm, not args.no_meshes)
    model = Model.load(args.model)
    display = progress(quiet=args.quiet or args.json)
    run = Run(folder, choose_device(args.device), args.seed, replace=args.force, observers=(display,))
    request = {"command": shlex.join(["scanfield", *argv]), "inputs": [str(model_file(args.model).resolve())]}
    with whole_or_nothing(folder), display:
        found = generate(model, options, run, request=request)
    if args.json:
        print(json.dumps(_facts(found), indent=2))
    elif not args.quiet:
        print(_text(found, run.notes, meshes=options.meshes))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "scanfield generate",
        "Draws new sequences of shapes from a trained model: a mask in space and time for each, the surface at every "
        "moment, a contact sheet, and descriptors beside those of the training sequences. Sequences that come out as "
        "copies of a training sequence are named. Nothing but the model's file is needed.",
        takes="MODEL -n N -o DIR [options]",
        examples=[
            "scanfield generate cell_model -n 20 -o cells",
            "scanfield generate cell_model -n 5 -o cells --mode between --frames 40 --spacing-mm 0.0002",
        ],
    )
    parser.add_argument("model", metavar="MODEL", help="of `scanfield train`: its folder, or model.safetensors")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder to write into")
    parser.add_argument("--force", action="store_true", help="replace what an earlier run left in the folder")

    what = parser.add_argument_group("what to generate")
    what.add_argument("-n", "--count", type=count(), default=20, metavar="N", help="sequences (default: 20)")
    what.add_argument(
        "--mode",
        type=one_of(*MODES),
        default="prior",
        metavar="prior|near|between",
        help="codes as spread as the learned ones (default), near a learned one, or between two of them",
    )
    what.add_argument(
        "--spread", type=number(least=0), default=1.0, metavar="F", help="factor of the codes' spread (default: 1)"
    )
    what.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")

    how = parser.add_argument_group("how to show it (default: as the sequences it was trained on)")
    how.add_argument("--frames", type=count(least=2), metavar="T", help="moments, evenly over the duration")
    how.add_argument("--spacing-mm", type=number(above=0), metavar="S", help="voxel size")
    how.add_argument("--no-meshes", action="store_true", help="write no surfaces")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    return parser


def _facts(found: Generated) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "sequences": len(found.frames),
        "frames": len(found.times_s),
        "shape": list(found.grid.shape),
        "spacing_mm": found.grid.spacing_mm[0],
        "nearest_dice": found.nearest_dice.tolist(),
        "nearest_training": found.nearest.tolist(),
        "table": found.table.to_json(),
        "warnings": found.warnings,
    }


def _text(found: Generated, notes: Sequence[str], *, meshes: bool) -> str:
    shape = " x ".join(map(str, found.grid.shape))
    lines = [
        f"{found.folder}/",
        f"  {len(found.frames)} sequences of {len(found.times_s)} frames, {shape} voxels of "
        f"{found.grid.spacing_mm[0]:.3g} mm",
        "  sequence_*.nii.gz  masks in space and time",
        *(["  meshes/            a surface for every frame"] if meshes else []),
        "  descriptors.csv    volume, surface, sphericity, components",
        "  contact_sheet.png, report.html",
        "",
        found.table.to_text(),
    ]
    lines += ["", *(f"warning: {text}" for text in found.warnings)] if found.warnings else []
    lines += ["", *notes] if notes else []
    return "\n".join(lines)
