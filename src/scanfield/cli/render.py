"""`scanfield render RUN -o OUT`: the image of a finished run, on any grid. `scanfield report RUN`: its report again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, number
from scanfield.cli.text import voxel_text
from scanfield.errors import InputError


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
        ],
    )
    parser.add_argument("run", metavar="RUN", help="RUN folder, or a field.safetensors file")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="image to write, .nii or .nii.gz")
    parser.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: the scan's)")
    parser.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the scan's grid with this voxel size"
    )
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv)
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    if not args.output.endswith((".nii", ".nii.gz")):
        raise InputError(
            "the name of an image ends in .nii or .nii.gz", where=args.output, fix=f"-o {args.output}.nii.gz"
        )

    from scanfield.cli.inputs import output_grid
    from scanfield.data.nifti import write_nifti
    from scanfield.shortcuts import open_result

    result = open_result(args.run, args.device)
    grid = output_grid(result.spec.grid, args.like, args.spacing_mm)
    write_nifti(args.output, result.render(grid), grid, unit=result.spec.unit)
    facts = {
        "file": args.output,
        "method": result.method,
        "unit": result.spec.unit,
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
    }
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        size = voxel_text(grid.shape, grid.spacing_mm)
        print(f"{args.output}\n  {result.method}, {size}, in {result.spec.unit}")
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = Parser("scanfield report", "Writes a run's report.html again from the files in its folder.")
    parser.add_argument("run", metavar="RUN", help="RUN folder")
    add_quiet(parser)
    args = parser.parse(argv)

    from scanfield.report.build import build_report

    page = build_report(Path(args.run))
    if not args.quiet:
        print(page)
    return 0
