"""`scanfield reconstruct SCAN --method M -o RUN`, and `--resume RUN` to continue one that was stopped or killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.method_flags import add_baselines, add_how, add_run_options, asked, parse, resumed, resumes
from scanfield.cli.parser import Parser, count, number, one_of
from scanfield.cli.request import ScanRequest
from scanfield.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield reconstruct ...` and returns its exit code."""
    arguments = argv[1:]
    if resumes(arguments):
        return _resume(arguments)
    args, config = parse(_parser(), arguments)
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    from scanfield.cli.fit_scan import fit_scan
    from scanfield.cli.inputs import absolute

    request = ScanRequest(
        **asked(args, argv, [absolute(name) for name in args.scan]),
        like=None if args.like is None else absolute(args.like),
        spacing_mm=args.spacing_mm,
        reference=None if args.reference is None else absolute(args.reference),
        reference_unit=args.reference_unit,
        holdout_views=args.holdout_views,
        holdout_fraction=args.holdout_fraction,
    )
    how = {"force": args.force, "resume": False, "quiet": args.quiet, "as_json": args.json}
    return fit_scan(request, config, Path(args.output), **how)


def _parser() -> Parser:
    parser = Parser(
        "scanfield reconstruct",
        "Reconstructs an image from a measurement, beside classical rivals on the same data, and reports both.",
        takes="SCAN --method M -o RUN [options] [settings of the method]",
        examples=[
            "scanfield reconstruct scan.npz --method scope -o run",
            "scanfield reconstruct scan.npz --method scope -o run --reference truth.nii.gz --spacing-mm 1",
            "scanfield reconstruct scan.npz --method scope --help       the settings of scope, too",
            "scanfield reconstruct --resume run                         continue after a stop or a kill",
        ],
    )
    parser.add_argument(
        "scan", metavar="SCAN", nargs="+", help="projections (.npz), or an image: NIfTI, DICOM folder, sample:NAME"
    )
    add_run_options(parser)

    image = parser.add_argument_group("the image")
    image.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: as the scan asks)")
    image.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the scan's grid, with this voxel size"
    )

    judge = parser.add_argument_group("how it is judged")
    add_baselines(judge)
    judge.add_argument(
        "--holdout-views",
        type=count(least=0),
        metavar="N",
        help="of projections: views kept from the fit and from the rivals to judge them (default: 5 %%; none of "
        "fewer than 10)",
    )
    judge.add_argument(
        "--holdout-fraction",
        type=number(least=0),
        metavar="F",
        help="of an image: share of the voxels kept likewise (default: 0.05 where values are fitted)",
    )
    judge.add_argument("--reference", metavar="IMAGE", help="the true image: adds PSNR, SSIM and NRMSE to the table")
    judge.add_argument(
        "--reference-unit",
        type=one_of("auto", "HU", "1/mm"),
        default="auto",
        metavar="auto|HU|1/mm",
        help="of its values",
    )

    add_how(parser)
    return parser


def _resume(arguments: Sequence[str]) -> int:
    found = resumed(ScanRequest, arguments)
    if found is None:
        return 0
    args, request, config = found
    from scanfield.cli.fit_scan import fit_scan

    how = {"force": False, "resume": True, "quiet": args.quiet, "as_json": args.json}
    return fit_scan(request, config, Path(args.resume), **how)
