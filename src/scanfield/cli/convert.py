"""`scanfield convert PROJECTIONS GEOMETRY -o SCAN`: a scan of another program, in one file that any command takes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from scanfield.cli.parser import Parser, add_json, add_quiet, number
from scanfield.cli.text import voxel_text
from scanfield.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield convert ...` and returns its exit code."""
    parser = Parser(
        "scanfield convert",
        "Reads a cone-beam scan of the Reconstruction Toolkit (RTK) and writes it as one .npz file.",
        takes="PROJECTIONS GEOMETRY -o SCAN [options]",
        examples=[
            "scanfield convert projections.mha geometry.xml -o scan.npz",
            "scanfield convert raw.mha geometry.xml -o scan.npz --air 65000 --spacing-mm 2",
        ],
    )
    parser.add_argument("projections", metavar="PROJECTIONS", help="MetaImage, .mha or .mhd: columns, rows, views")
    parser.add_argument("geometry", metavar="GEOMETRY", help="RTK's XML file")
    parser.add_argument("-o", "--output", metavar="SCAN", required=True, help="file to write, .npz")
    parser.add_argument(
        "--air", type=number(above=0), metavar="I0", help="the values are intensities, I0 without an object"
    )
    parser.add_argument(
        "--spacing-mm",
        type=number(above=0),
        metavar="S",
        help="voxel size of the volume to reconstruct (default: a detector pixel at the axis, at most 256 a side)",
    )
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv[1:])
    if not args.output.endswith(".npz"):
        raise InputError("the name of a projections file ends in .npz", where=args.output, fix=f"-o {args.output}.npz")

    from scanfield.data.projections import ProjectionFacts, write_projections
    from scanfield.data.rtk import read_rtk

    scan = read_rtk(args.projections, args.geometry, air=args.air, spacing_mm=args.spacing_mm)
    provenance = {"command": shlex.join(["scanfield", *argv])}
    write_projections(args.output, scan, ProjectionFacts(provenance=provenance))
    geometry = scan.acquisition
    facts = {
        "file": args.output,
        "views": geometry.views,
        "detector": geometry.detector.kind,
        "rows": geometry.shape[1],
        "columns": geometry.shape[2],
        "calibrated": geometry.vectors is not None,
        "largest_line_integral": float(scan.values.max()),
        "reconstruct_shape": list(geometry.volume.shape),
        "reconstruct_spacing_mm": list(geometry.volume.spacing_mm),
    }
    if args.json:
        print(json.dumps(facts, indent=2))
    elif not args.quiet:
        views = "calibrated view by view" if facts["calibrated"] else "on a circle"
        print(
            f"{args.output}\n"
            f"  scan         cone beam, {geometry.views} views {views}\n"
            f"  detector     {geometry.shape[1]} x {geometry.shape[2]} pixels, {geometry.detector.kind}\n"
            f"  values       line integrals up to {facts['largest_line_integral']:.3g} (dimensionless)\n"
            f"  grid         {voxel_text(geometry.volume.shape, geometry.volume.spacing_mm)}"
        )
    return 0
