"""`scanfield compress VOLUME -o FILE.sfz --method M --ratio R`: a volume in a file of given size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from scanfield.cli.method_flags import parse
from scanfield.cli.parser import Parser, add_backend, add_device, add_json, add_quiet, count, number, one_of
from scanfield.errors import InputError
from scanfield.methods.config import PRESETS


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield compress ...` and returns its exit code."""
    args, config = parse(_parser(), argv[1:])
    asked = [name for name in ("ratio", "bpp", "psnr") if getattr(args, name) is not None]
    if len(asked) > 1:
        raise InputError(f"the size follows from --{asked[0]} or from --{asked[1]}, not from both")
    if asked and any(word.split("=")[0] == "--budget-bytes" for word in argv):
        raise InputError(f"the size follows from --{asked[0]} or from --budget-bytes, not from both")
    if args.lossless and args.max_error is not None:
        raise InputError("--lossless is --max-error 0: give one of them")
    if not args.output.endswith(".sfz"):
        raise InputError("the name of a compressed file ends in .sfz", where=args.output, fix=f"-o {args.output}.sfz")

    import numpy as np

    from scanfield.cli.inputs import input_path, read_image
    from scanfield.cli.interrupt import stop_on_interrupt
    from scanfield.cli.progress import progress
    from scanfield.data.stored import stored_type
    from scanfield.run import Run, choose_device
    from scanfield.tasks.compression import compress

    volume = read_image(args.volume)
    kind = stored_type(input_path(args.volume), volume)
    bits = 8 * np.dtype(kind).itemsize
    per_voxel = args.bpp if args.ratio is None else bits / args.ratio
    display = progress(quiet=args.quiet)
    run = Run(device=choose_device(args.device), seed=args.seed, observers=(display,), backend=args.backend)
    with stop_on_interrupt(run.stop), display:
        found = compress(
            volume,
            args.method,
            config,
            run,
            args.output,
            stored_type=kind,
            max_bytes=None if per_voxel is None else max(1, int(per_voxel * volume.grid.size / 8)),
            psnr_db=args.psnr,
            max_error=0.0 if args.lossless else args.max_error,
            baselines=not args.no_baselines,
        )
    facts: dict[str, Any] = {
        "file": args.output,
        "method": args.method,
        "type": kind,
        "bytes": found.report.total,
        "original_bytes": found.original_bytes,
        "bits_per_voxel": found.report.bits_per_voxel,
        "parts": dict(found.report.parts),
        "table": found.table.to_json(),
        "warnings": run.warnings,
        "notes": run.notes,
        "stopped": run.stop.is_set(),
    }
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        print(_text(facts, found.table.to_text()))
    return 1 if run.stop.is_set() else 0


def _text(facts: dict[str, Any], table: str) -> str:
    ratio = facts["original_bytes"] / facts["bytes"]
    size = f"{facts['bytes']} bytes, {ratio:.4g} : 1, {facts['bits_per_voxel']:.4g} bits a voxel"
    said = [f"note: {note}" for note in facts["notes"]]
    return "\n".join([table, "", *said, facts["file"], f"  {size}"])


def _parser() -> Parser:
    parser = Parser(
        "scanfield compress",
        "Writes a volume as a field in a file of given size, and decodes the file to judge it, beside standard codecs "
        "with the same number of bytes. Everything the decoder needs is in the file and counts.",
        takes="VOLUME -o FILE.sfz --method M --ratio R [options] [settings of the method]",
        examples=[
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --ratio 100",
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --psnr 40",
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --ratio 100 --max-error 5    no voxel errs by more",
            "scanfield decompress ct.sfz -o back.nii.gz",
        ],
    )
    parser.add_argument("volume", metavar="VOLUME", help="image: NIfTI, DICOM folder, sample:NAME")
    parser.add_argument("-o", "--output", metavar="FILE.sfz", required=True, help="file to write")
    parser.add_argument("--method", metavar="M", required=True, help="one of `scanfield list --task compression`")
    size = parser.add_argument_group("how large the file becomes (default: 1/64 of two bytes a voxel)")
    size.add_argument(
        "--ratio", type=number(least=1), metavar="R", help="bytes of the original's voxels over the file's"
    )
    size.add_argument("--bpp", type=number(above=0), metavar="B", help="bits a voxel")
    size.add_argument(
        "--psnr", type=number(above=0), metavar="P", help="as many as this PSNR (dB) needs; fits repeatedly"
    )
    size.add_argument(
        "--max-error",
        type=number(least=0),
        metavar="E",
        help="no voxel errs by more: a coded residual is added to the file of that size",
    )
    size.add_argument("--lossless", action="store_true", help="no voxel errs at all (whole numbers only)")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--preset",
        type=one_of(*PRESETS),
        default="fast",
        metavar="tiny|fast|paper",
        help="starting point of the settings (default: fast, minutes on a CPU)",
    )
    how.add_argument("--config", metavar="C.json", help="settings that differ from the preset; flags go before it")
    how.add_argument("--no-baselines", action="store_true", help="leave out the standard codecs")
    how.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="of every random number (default: 0)")
    add_device(how)
    add_backend(how)
    add_quiet(how)
    add_json(how)
    return parser
