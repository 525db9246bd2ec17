"""`scanfield decompress FILE.sfz -o OUT.nii.gz`: the volume in a file, whole, in part, or on any grid."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, count, number, one_of
from scanfield.errors import InputError
from scanfield.space.box import Box


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield decompress ...` and returns its exit code."""
    parser = Parser(
        "scanfield decompress",
        "Decodes a compressed volume into its original type; nothing but the file is needed. On another grid the field "
        "itself is rendered; a residual (--max-error) belongs to the original voxels.",
        examples=[
            "scanfield decompress ct.sfz -o back.nii.gz",
            "scanfield decompress ct.sfz -o coarse.nii.gz --spacing-mm 4",
            "scanfield decompress ct.sfz -o part.nii.gz --box 0:64,32:96,10:20",
            "scanfield decompress brain.sfz -o brain.zarr",
        ],
    )
    parser.add_argument("file", metavar="FILE.sfz", help="file that `scanfield compress` wrote")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="image to write: .nii, .nii.gz, or .zarr (OME-Zarr)"
    )
    parser.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: the original's)")
    parser.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the original's box with this voxel size"
    )
    parser.add_argument("--box", type=_box, metavar="I:I,J:J,K:K", help="only these voxels: first:last + 1, by axis")
    parser.add_argument("--model", metavar="MODEL", help="the model that the file was written with, if it names one")
    parser.add_argument(
        "--frame", type=count(least=0), metavar="T", help="only this time point (and channel) of a volume with several"
    )
    parser.add_argument(
        "--ome-zarr", type=one_of("0.4", "0.5"), default="0.5", metavar="0.4|0.5", help="version of a .zarr output"
    )
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv[1:])
    chosen = [name for name in ("like", "spacing_mm", "box") if getattr(args, name) is not None]
    if len(chosen) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in chosen[:2])
        raise InputError(f"the grid follows from {first} or from {second}, not from both")
    if not args.output.endswith((".nii", ".nii.gz", ".zarr")):
        raise InputError(
            "the name of an image ends in .nii, .nii.gz or .zarr", where=args.output, fix=f"-o {args.output}.nii.gz"
        )

    from scanfield.codec.bricks import is_brick_file

    facts = {"file": args.output} | (_bricks(args) if is_brick_file(args.file) else _whole(args))
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        sizes = [*facts["shape"], *facts["frames"].values()]
        print(f"{args.output}\n  {' x '.join(map(str, sizes))} voxels, {facts['type']}, in {facts['unit']}")
    return 0


def _whole(args: argparse.Namespace) -> dict[str, Any]:
    """A volume that was fitted whole."""
    from scanfield.cli.inputs import output_grid
    from scanfield.codec.field_file import read_field
    from scanfield.data.volumes import create_volume
    from scanfield.run import choose_device
    from scanfield.tasks.compression import decompress
    from scanfield.tasks.model import Model

    if args.frame is not None:
        raise InputError("the file holds one volume, no frames", where="--frame")
    model = None if args.model is None else Model.load(args.model)
    grid = None
    if args.like is not None or args.spacing_mm is not None:
        grid = output_grid(read_field(args.file, model=model).spec.grid, args.like, args.spacing_mm)
    decoded = decompress(args.file, grid=grid, box=args.box, device=choose_device(args.device), model=model)
    n0, n1, n2 = decoded.grid.shape
    with create_volume(args.output, decoded.grid, decoded.kind, unit=decoded.unit, version=args.ome_zarr) as out:
        out.write(0, ((0, n0), (0, n1), (0, n2)), decoded.values)
    return {
        "type": decoded.kind,
        "unit": decoded.unit,
        "shape": [n0, n1, n2],
        "frames": {},
        "spacing_mm": list(decoded.grid.spacing_mm),
    }


def _bricks(args: argparse.Namespace) -> dict[str, Any]:
    """A volume in bricks."""
    from scanfield.cli.inputs import output_grid
    from scanfield.cli.progress import progress
    from scanfield.codec.bricks import open_bricks
    from scanfield.run import Run, choose_device
    from scanfield.tasks.brick_decoding import decompress_bricks
    from scanfield.tasks.model import Model

    model = None if args.model is None else Model.load(args.model)
    grid = None
    if args.like is not None or args.spacing_mm is not None:
        grid = output_grid(open_bricks(args.file).bricks.grid, args.like, args.spacing_mm)
    display = progress(quiet=args.quiet or args.json)
    run = Run(device=choose_device(args.device), observers=(display,))
    with display:
        return decompress_bricks(
            args.file,
            args.output,
            run,
            frame=args.frame,
            box=args.box,
            grid=grid,
            version=args.ome_zarr,
            model=model,
        )


def _box(text: str) -> Box:
    """Argument type: 'I:I,J:J,K:K'."""
    try:
        a, b, c = (tuple(int(end) for end in part.split(":")) for part in text.split(","))
        (a0, a1), (b0, b1), (c0, c1) = a, b, c
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three ranges such as 0:64,32:96,10:20, got '{text}'") from None
    return (a0, a1), (b0, b1), (c0, c1)
