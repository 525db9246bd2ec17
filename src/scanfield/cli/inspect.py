"""`scanfield inspect FILE.sfz`: what a compressed file holds, and where its bytes are."""

from __future__ import annotations

import json
from collections.abc import Sequence

from scanfield.cli.parser import Parser, add_json


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield inspect ...` and returns its exit code."""
    parser = Parser(
        "scanfield inspect",
        "Shows what a compressed file holds and how many bytes each part takes. Of a volume in bricks, all is read.",
        examples=["scanfield inspect ct.sfz"],
    )
    parser.add_argument("file", metavar="FILE.sfz", help="file that `scanfield compress` wrote")
    add_json(parser)
    args = parser.parse(argv[1:])

    from scanfield.codec.bricks import is_brick_file
    from scanfield.codec.container import read_head
    from scanfield.codec.field_file import rate_report

    in_bricks = is_brick_file(args.file)
    if in_bricks:
        from scanfield.tasks.brick_decoding import brick_rates

        report = brick_rates(args.file)
    else:
        report = rate_report(args.file)
    header = read_head(args.file).header
    facts = {
        "file": args.file,
        "bytes": report.total,
        "bits_per_voxel": report.bits_per_voxel,
        "parts": dict(report.parts),
        "header": header,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    grid = header["volume" if in_bricks else "spec"]
    sizes = [*grid["shape"], *grid["frames"].values()] if in_bricks else grid["grid"]["shape"]
    kind = header.get("facts", {}).get("type", "")
    lines = [
        f"{args.file}",
        f"  method      {header['method']}",
        f"  volume      {' x '.join(map(str, sizes))} voxels{f', {kind}' if kind else ''}",
        f"  size        {report.total} bytes, {report.bits_per_voxel:.4g} bits a voxel",
    ]
    if "model" in header:
        lines.append(f"  model       {header['model']}; decoding needs it, its bytes are not in here")
    width = max(len(name) for name, _ in report.parts)
    lines += [
        f"    {name:<{width}}  {size:>9} bytes  {100 * size / report.total:5.1f} %" for name, size in report.parts
    ]
    print("\n".join(lines))
    return 0
