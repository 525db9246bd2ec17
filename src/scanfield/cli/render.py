"""`scanfield render RUN -o OUT`: the image of a finished run, on any grid. `scanfield report RUN`: its report again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, count, number, one_of
from scanfield.cli.text import voxel_text
from scanfield.errors import InputError
from scanfield.methods import api

PARTS = ("magnitude", "phase", "real", "imaginary")
WHAT = ("image", "deviation", "low", "high", "samples")


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield render` or `scanfield report` and returns the exit code."""
    return {"render": _render, "report": _report}[argv[0]](argv[1:])


def _render(argv: Sequence[str]) -> int:
    parser = Parser(
        "scanfield render",
        "Renders the result of a run on any grid, from its field.safetensors alone.",
        examples=[
            "scanfield render run -o fine.nii.gz --spacing-mm 0.5",
            "scanfield render run -o onto.nii.gz --like planning_ct.nii.gz",
            "scanfield render run -o cine.nii.gz --frames 60              of a series: more moments",
            "scanfield render run -o sigma.nii.gz --what deviation        of an ensemble or another posterior",
        ],
    )
    parser.add_argument("run", metavar="RUN", help="RUN folder, or a field.safetensors file")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="image to write, .nii or .nii.gz")
    parser.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: the scan's)")
    parser.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the scan's grid with this voxel size"
    )
    parser.add_argument(
        "--what",
        type=one_of(*WHAT),
        default="image",
        metavar="|".join(WHAT),
        help="the image (of a posterior, the mean), or of a posterior: its standard deviation, an end of its interval, "
        "or all its samples as one image with a fourth axis (default: image)",
    )
    parser.add_argument(
        "--level",
        type=number(above=0),
        metavar="P",
        help="probability of the interval (default: 0.9); for low and high",
    )
    parser.add_argument(
        "--frames", type=count(), metavar="N", help="of a series: at the middles of N equal parts (default: the scan's)"
    )
    parser.add_argument(
        "--part",
        type=one_of(*PARTS),
        default="magnitude",
        metavar="|".join(PARTS),
        help="of complex images (default: magnitude)",
    )
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv)
    if args.level is not None and args.what not in ("low", "high"):
        raise InputError("--level belongs to --what low or --what high")
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    if not args.output.endswith((".nii", ".nii.gz")):
        raise InputError(
            "the name of an image ends in .nii or .nii.gz", where=args.output, fix=f"-o {args.output}.nii.gz"
        )

    from scanfield.cli.inputs import output_grid
    from scanfield.data.nifti import write_nifti
    from scanfield.shortcuts import open_result
    from scanfield.tasks.series import rendered_series
    from scanfield.tasks.uncertainty import rendered

    result = open_result(args.run, args.device)
    grid = output_grid(result.spec.grid, args.like, args.spacing_mm)
    if "kspace" in api.card(result.method).accepts and args.what == "image":
        values, step = rendered_series(result, grid, args.frames, args.part)
        unit = "rad" if args.part == "phase" else result.spec.unit
        write_nifti(args.output, values, grid, unit=unit, step_s=step)
    elif args.frames is not None or args.part != "magnitude":
        raise InputError(f"{result.method} gives no complex series: --frames and --part do not apply", where=args.run)
    else:
        write_nifti(args.output, rendered(result, grid, args.what, args.level), grid, unit=result.spec.unit)
    facts = {
        "file": args.output,
        "method": result.method,
        "what": args.what,
        "unit": result.spec.unit,
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
    }
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        size = voxel_text(grid.shape, grid.spacing_mm)
        what = "" if args.what == "image" else f"{args.what}, "
        print(f"{args.output}\n  {result.method}, {what}{size}, in {result.spec.unit}")
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = Parser("scanfield report", "Writes a run's report.html again from the files in its folder.")
    parser.add_argument("run", metavar="RUN", help="RUN folder")
    parser.add_argument("--pdf", action="store_true", help="also as report.pdf (needs scanfield[pdf])")
    add_quiet(parser)
    args = parser.parse(argv)

    from scanfield.report.build import build_report
    from scanfield.report.pdf import check_installed, write_pdf
    from scanfield.tasks.model import FILE

    if (Path(args.run) / FILE).is_file():
        what = "this folder holds a model and no images: a training has no report"
        raise InputError(what, where=args.run, fix="its numbers are in log.jsonl and run.json")
    if args.pdf:
        check_installed()  # before anything is written
    written = [build_report(Path(args.run))]
    if args.pdf:
        written.append(write_pdf(written[0]))
    if not args.quiet:
        print(*written, sep="\n")
    return 0
