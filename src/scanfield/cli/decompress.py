"""`scanfield decompress FILE.sfz -o OUT.nii.gz`: the volume in a file, whole, in part, or on any grid."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, number
from scanfield.errors import InputError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


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
        ],
    )
    parser.add_argument("file", metavar="FILE.sfz", help="file that `scanfield compress` wrote")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="image to write, .nii or .nii.gz")
    parser.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: the original's)")
    parser.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the original's box with this voxel size"
    )
    parser.add_argument("--box", type=_box, metavar="I:I,J:J,K:K", help="only these voxels: first:last + 1, by axis")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv[1:])
    chosen = [name for name in ("like", "spacing_mm", "box") if getattr(args, name) is not None]
    if len(chosen) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in chosen[:2])
        raise InputError(f"the grid follows from {first} or from {second}, not from both")
    if not args.output.endswith((".nii", ".nii.gz")):
        raise InputError(
            "the name of an image ends in .nii or .nii.gz", where=args.output, fix=f"-o {args.output}.nii.gz"
        )

    from scanfield.cli.inputs import output_grid
    from scanfield.codec.field_file import read_field
    from scanfield.data.nifti import write_nifti
    from scanfield.run import choose_device
    from scanfield.tasks.compression import decompress

    grid = None
    if args.like is not None or args.spacing_mm is not None:
        grid = output_grid(read_field(args.file).spec.grid, args.like, args.spacing_mm)
    decoded = decompress(args.file, grid=grid, box=args.box, device=choose_device(args.device))
    write_nifti(args.output, decoded.values, decoded.grid, unit=decoded.unit)
    facts = {
        "file": args.output,
        "type": str(decoded.values.dtype),
        "unit": decoded.unit,
        "shape": list(decoded.grid.shape),
        "spacing_mm": list(decoded.grid.spacing_mm),
    }
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        print(f"{args.output}\n  {' x '.join(map(str, decoded.grid.shape))} voxels, {facts['type']}, in {decoded.unit}")
    return 0


def _box(text: str) -> Box:
    """Argument type: 'I:I,J:J,K:K'."""
    try:
        a, b, c = (tuple(int(end) for end in part.split(":")) for part in text.split(","))
        (a0, a1), (b0, b1), (c0, c1) = a, b, c
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three ranges such as 0:64,32:96,10:20, got '{text}'") from None
    return (a0, a1), (b0, b1), (c0, c1)
