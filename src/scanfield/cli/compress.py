"""`scanfield compress VOLUME -o FILE.sfz --method M --ratio R`: a volume in a file of given size."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanfield.cli.method_flags import parse
from scanfield.cli.parser import Parser, add_backend, add_device, add_json, add_quiet, count, number, one_of
from scanfield.errors import InputError
from scanfield.methods.config import PRESETS

LARGEST_WHOLE_VOLUME = 2**26  # voxels; beyond, bricks


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield compress ...` and returns its exit code."""
    args, config = parse(_parser(), argv[1:], start=_trained)
    asked = [name for name in ("ratio", "bpp", "psnr") if getattr(args, name) is not None]
    if len(asked) > 1:
        raise InputError(f"the size follows from --{asked[0]} or from --{asked[1]}, not from both")
    if asked and any(word.split("=")[0] == "--budget-bytes" for word in argv):
        raise InputError(f"the size follows from --{asked[0]} or from --budget-bytes, not from both")
    if args.lossless and args.max_error is not None:
        raise InputError("--lossless is --max-error 0: give one of them")
    if not args.output.endswith(".sfz"):
        raise InputError("the name of a compressed file ends in .sfz", where=args.output, fix=f"-o {args.output}.sfz")

    if _in_bricks(args):
        return _bricks(args, config)

    import numpy as np

    from scanfield.cli.inputs import input_path, read_image
    from scanfield.cli.interrupt import stop_on_interrupt
    from scanfield.cli.progress import progress
    from scanfield.data.stored import stored_type
    from scanfield.run import Run, choose_device
    from scanfield.tasks.compression import compress
    from scanfield.tasks.model import Model

    model = None if args.model is None else Model.load(args.model)
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
            model=model,
        )
    facts: dict[str, Any] = {
        "file": args.output,
        "method": args.method,
        "type": kind,
        "bytes": found.report.total,
        "original_bytes": found.original_bytes,
        "bits_per_voxel": found.report.bits_per_voxel,
        "model": None if model is None else model.key,
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


def _trained(args: argparse.Namespace) -> Any:
    """The settings a trained model brings along; None without one."""
    if args.model is None:
        return None
    if args.preset is not None:
        raise InputError("the settings start from the model's own, not from a preset", fix="leave out --preset")
    from scanfield.tasks.model import Model, check_model

    model = Model.load(args.model)
    check_model(args.method, model)
    return model.config


def _in_bricks(args: argparse.Namespace) -> bool:
    """Whether the volume is compressed brick by brick: asked for, four-dimensional, OME-Zarr, or large."""
    path = Path(args.volume)
    if args.bricks is not None or args.resume or path.name.endswith(".zarr"):
        return True
    if not (path.is_file() and path.name.endswith((".nii", ".nii.gz"))):
        return False
    from scanfield.data.nifti import nifti_layout

    shape = nifti_layout(path).shape
    return len(shape) > 3 or math.prod(shape) > LARGEST_WHOLE_VOLUME


def _bricks(args: argparse.Namespace, config: Any) -> int:
    """The same for a volume in bricks."""
    from scanfield.cli.inputs import input_path
    from scanfield.cli.interrupt import stop_on_interrupt
    from scanfield.cli.progress import progress
    from scanfield.data.volumes import stored_bits
    from scanfield.run import Run, choose_device
    from scanfield.tasks.bricks import EDGE, compress_bricks, memory_bound

    source = input_path(args.volume)
    per_voxel = args.bpp if args.ratio is None else stored_bits(source) / args.ratio
    edge = args.bricks or EDGE
    display = progress(quiet=args.quiet or args.json)
    run = Run(device=choose_device(args.device), seed=args.seed, observers=(display,), backend=args.backend)
    with stop_on_interrupt(run.stop), display:
        found = compress_bricks(
            source,
            args.method,
            config,
            run,
            args.output,
            max_bytes=config.budget_bytes if per_voxel is None and args.psnr is None else None,
            bits_per_voxel=per_voxel,
            psnr_db=args.psnr,
            model=args.model,
            max_error=0.0 if args.lossless else args.max_error,
            edge=edge,
            jobs=args.jobs,
            resume=args.resume,
            baselines=not args.no_baselines,
        )
    if found is None:
        print(
            f"stopped: the finished bricks are in {args.output}.work; repeat the command with --resume", file=sys.stderr
        )
        return 1
    facts: dict[str, Any] = {
        "file": args.output,
        "method": args.method,
        "type": found.kind,
        "bytes": found.total,
        "original_bytes": found.original_bytes,
        "bits_per_voxel": 8 * found.total / found.bricks.voxels,
        "bricks": found.bricks.total,
        "constant_bricks": found.constants,
        "memory_bound_bytes": memory_bound(edge),
        "table": found.table.to_json(),
        "warnings": run.warnings,
        "notes": run.notes,
        "stopped": False,
    }
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        cut = f"  {found.bricks.total} bricks, {found.constants} of them of one value"
        print(_text(facts, found.table.to_text()), cut, sep="\n")
    return 0


def _text(facts: dict[str, Any], table: str) -> str:
    ratio = facts["original_bytes"] / facts["bytes"]
    size = f"{facts['bytes']} bytes, {ratio:.4g} : 1, {facts['bits_per_voxel']:.4g} bits a voxel"
    said = [f"note: {note}" for note in facts["notes"]]
    return "\n".join([table, "", *said, facts["file"], f"  {size}"])


def _parser() -> Parser:
    parser = Parser(
        "scanfield compress",
        "Writes a volume as a field in a file of given size, and decodes the file to judge it, beside standard codecs "
        "with the same number of bytes. Everything the decoder needs is in the file and counts; a trained model is "
        "a file of its own, whose bytes are stated beside.",
        takes="VOLUME -o FILE.sfz --method M --ratio R [options] [settings of the method]",
        examples=[
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --ratio 100",
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --psnr 40",
            "scanfield compress ct.nii.gz -o ct.sfz --method sci --ratio 100 --max-error 5    no voxel errs by more",
            "scanfield compress brain.zarr -o brain.sfz --method sci --ratio 100 --jobs 8    brick by brick",
            "scanfield decompress ct.sfz -o back.nii.gz",
        ],
    )
    parser.add_argument("volume", metavar="VOLUME", help="image: NIfTI, OME-Zarr or DICOM folder, sample:NAME")
    parser.add_argument("-o", "--output", metavar="FILE.sfz", required=True, help="file to write")
    parser.add_argument("--method", metavar="M", required=True, help="one of `scanfield list --task compression`")
    parser.add_argument(
        "--model", metavar="MODEL", help="what `scanfield train` wrote, for a method that is trained; decoding needs it"
    )
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
    large = parser.add_argument_group(
        "volumes that do not fit in memory (OME-Zarr, four axes, more than 2^26 voxels; others with --bricks)"
    )
    large.add_argument(
        "--bricks",
        type=count(least=16),
        metavar="N",
        help="fit bricks of at most N voxels along an axis on their own (default: 128)",
    )
    large.add_argument("--jobs", type=count(), default=1, metavar="J", help="bricks fitted at a time (default: 1)")
    large.add_argument(
        "--resume", action="store_true", help="go on with the finished bricks in FILE.sfz.work, after a stop"
    )
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--preset",
        type=one_of(*PRESETS),
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
