"""`scanfield reconstruct SCAN.. --method M -o RUN`, and `--resume RUN` to continue one that was stopped or killed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanfield.cli.kspace_inputs import FILES, add_kspace_options
from scanfield.cli.method_flags import How, add_baselines, add_how, add_run_options, asked, parse, resume, resumes
from scanfield.cli.parser import Parser, count, number, one_of
from scanfield.cli.request import KSpaceRequest, ScanRequest, StackRequest, read_run
from scanfield.cli.stack_inputs import add_stack_options
from scanfield.cli.xray_inputs import add_xray_options
from scanfield.errors import InputError
from scanfield.methods import api

STACKS, KSPACE = "stacks", "kspace"  # kinds of data


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield reconstruct ...` and returns its exit code."""
    arguments = argv[1:]
    if resumes(arguments):
        return _resume(arguments)
    args, config = parse(_parser(), arguments)
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    if args.prior is not None:
        api.check_takes_prior(args.method)
    elif args.prior_unit != "auto":
        raise InputError("--prior-unit is of a prior image, and there is none", fix="--prior IMAGE")
    how = How.of(args)
    if STACKS in api.card(args.method).accepts:
        return _fit_stacks(_stack_request(args, argv), config, Path(args.output), how)
    _refuse(args, _stack_options(), "stacks of slices", "methods for them are those that `scanfield list` shows")
    if KSPACE in api.card(args.method).accepts:
        return _fit_kspace(_kspace_request(args, argv), config, Path(args.output), how)
    _refuse(args, _kspace_options(), "raw MR data", "methods for them are those that `scanfield list` shows")
    from scanfield.cli.inputs import absolute
    from scanfield.cli.xray_inputs import asked_xray, files_of

    prior = None if args.prior is None else absolute(args.prior)
    xrays = asked_xray(args)
    request = ScanRequest(
        **asked(args, argv, [*map(absolute, args.scan), *filter(None, [prior]), *files_of(xrays)]),
        **xrays,
        like=None if args.like is None else absolute(args.like),
        spacing_mm=args.spacing_mm,
        reference=None if args.reference is None else absolute(args.reference),
        reference_unit=args.reference_unit,
        holdout_views=args.holdout_views,
        holdout_fraction=args.holdout_fraction,
        prior=prior,
        prior_unit=args.prior_unit,
        ensemble=args.ensemble,
    )
    return _fit_scan(request, config, Path(args.output), how)


def _stack_request(args: argparse.Namespace, argv: Sequence[str]) -> StackRequest:
    """The request for stacks of slices.

    Raises:
        InputError: an option of other data was given.
    """
    from scanfield.cli.inputs import absolute

    others = ("reference", "reference_unit", "holdout_views", "holdout_fraction", "ensemble", "metal_mask", "spectrum")
    fix = "--holdout-slices N or --holdout-stack K judge the result"
    _refuse(args, {name: _parser().get_default(name) for name in others}, "other data than stacks of slices", fix)
    options = {name: getattr(args, name) for name in _stack_options() if name not in _STACK_RUN}
    masks = [absolute(name) for name in options["stack_masks"] or []]
    options["stack_masks"] = masks or None
    if options["volume_mask"] is not None:
        options["volume_mask"] = absolute(options["volume_mask"])
    stacks = [absolute(name) for name in args.scan]
    return StackRequest(
        **asked(args, argv, [*stacks, *masks, *filter(None, [options["volume_mask"]])]),
        stacks=stacks,
        options=options,
        registration=args.registration,
        holdout_slices=args.holdout_slices,
        holdout_stack=args.holdout_stack,
        like=None if args.like is None else absolute(args.like),
        spacing_mm=args.spacing_mm,
        full_field_of_view=args.full_field_of_view,
    )


def _kspace_request(args: argparse.Namespace, argv: Sequence[str]) -> KSpaceRequest:
    """The request for raw MR data.

    Raises:
        InputError: an option of other data was given.
    """
    from scanfield.cli.inputs import absolute

    names = ("reference_unit", "holdout_fraction", "ensemble", "metal_mask", "spectrum")
    others = {name: _parser().get_default(name) for name in names}
    _refuse(args, others, "other data than k-space", "--holdout-views N or --holdout-frames N judge the result")
    options = {name: getattr(args, name) for name in _kspace_options()}
    options |= {name: absolute(options[name]) for name in FILES if options[name] is not None}
    scans = [absolute(name) for name in args.scan]
    reference = None if args.reference is None else absolute(args.reference)
    files = [*scans, *(options[name] for name in FILES if options[name] is not None), *filter(None, [reference])]
    return KSpaceRequest(
        **asked(args, argv, list(dict.fromkeys(files))),
        scans=scans,
        options=options,
        holdout_views=args.holdout_views,
        reference=reference,
        like=None if args.like is None else absolute(args.like),
        spacing_mm=args.spacing_mm,
    )


def _kspace_options() -> dict[str, Any]:
    """The options that only raw MR data have, with their defaults."""
    parser = Parser("", "", add_help=False)
    add_kspace_options(parser)
    return vars(parser.parse_args([]))


_STACK_RUN = ("registration", "holdout_slices", "holdout_stack", "full_field_of_view")


def _stack_options() -> dict[str, Any]:
    """The options that only stacks of slices have, with their defaults."""
    parser = Parser("", "", add_help=False)
    _add_stacks(parser)
    return vars(parser.parse_args([]))


def _refuse(args: argparse.Namespace, options: dict[str, Any], what: str, fix: str) -> None:
    """Options that belong to the other kind of data are refused, not ignored."""
    for name, default in options.items():
        if getattr(args, name) != default:
            raise InputError(f"--{name.replace('_', '-')} is for {what}; {args.method} takes none", fix=fix)


def _add_stacks(parser: argparse._ActionsContainer) -> None:
    add_stack_options(parser)
    parser.add_argument(
        "--registration",
        type=one_of("none", "stack"),
        default="stack",
        metavar="none|stack",
        help="register the stacks to each other first, or trust their headers (default: stack)",
    )
    parser.add_argument(
        "--full-field-of-view", action="store_true", help="a volume around whole stacks, not only their masks"
    )
    parser.add_argument(
        "--holdout-slices",
        type=count(least=0),
        metavar="N",
        help="slices kept from the fit and from the rivals to judge them (default: 5 %%)",
    )
    parser.add_argument("--holdout-stack", type=count(least=0), metavar="K", help="keep stack K (from 0) instead")


def _parser() -> Parser:
    parser = Parser(
        "scanfield reconstruct",
        "Reconstructs an image from a measurement, beside classical rivals on the same data, and reports both.",
        takes="SCAN --method M -o RUN [options] [settings of the method]",
        examples=[
            "scanfield reconstruct scan.npz --method scope -o run",
            "scanfield reconstruct scan.npz --method scope -o run --reference truth.nii.gz --spacing-mm 1",
            "scanfield reconstruct scan.npz --method scope --help       the settings of scope, too",
            "scanfield reconstruct ax.nii.gz cor.nii.gz sag.nii.gz --method nesvor --thickness-mm 4 -o run",
            "scanfield reconstruct scan.npz --method nik --phases 30 -o run        raw MR data of a beating heart",
            "scanfield reconstruct --resume run                         continue after a stop or a kill",
        ],
    )
    parser.add_argument(
        "scan",
        metavar="SCAN",
        nargs="+",
        help="projections (.npz), raw MR data (.npz, .h5, .cfl), or an image: NIfTI, DICOM folder, sample:NAME; or "
        "several stacks of slices",
    )
    add_run_options(parser)

    image = parser.add_argument_group("the image")
    image.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: as the scan asks)")
    image.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the scan's grid, with this voxel size"
    )

    before = parser.add_argument_group("what is known before")
    before.add_argument(
        "--prior",
        metavar="IMAGE",
        help="of CT projections: an earlier image of the same patient, brought to this scan's place, for a method that "
        "takes one",
    )
    before.add_argument(
        "--prior-unit", type=one_of("auto", "HU", "1/mm"), default="auto", metavar="auto|HU|1/mm", help="of its values"
    )

    add_xray_options(before)

    judge = parser.add_argument_group("how it is judged")
    add_baselines(judge)
    judge.add_argument(
        "--holdout-views",
        type=count(least=0),
        metavar="N",
        help="of projections and raw MR data: views kept from the fit and from the rivals to judge them (default: "
        "5 %%; none of fewer than 10, or 20 of raw MR data)",
    )
    judge.add_argument(
        "--holdout-fraction",
        type=number(least=0),
        metavar="F",
        help="of an image: share of the voxels kept likewise (default: 0.05 where values are fitted)",
    )
    judge.add_argument(
        "--reference",
        metavar="IMAGE",
        help="the true image: adds PSNR, SSIM and NRMSE to the table; of a series: a cine, or the simulated scan",
    )
    judge.add_argument(
        "--reference-unit",
        type=one_of("auto", "HU", "1/mm"),
        default="auto",
        metavar="auto|HU|1/mm",
        help="of its values",
    )

    parser.add_argument_group("its uncertainty").add_argument(
        "--ensemble",
        type=count(least=2),
        metavar="N",
        help="of projections and images: N fits from seeds S, S + 1, ..; their mean, deviation, intervals, calibration",
    )
    _add_stacks(parser.add_argument_group("stacks of slices (nesvor)"))
    add_kspace_options(parser.add_argument_group("raw MR data"))
    add_how(parser)
    return parser


def _resume(arguments: Sequence[str]) -> int:
    early = Parser("scanfield reconstruct", "", add_help=False)
    early.add_argument("--resume")
    started = read_run(Path(early.parse_known_args(list(arguments))[0].resume)).get("request")
    if isinstance(started, dict) and "stacks" in started:
        return resume(StackRequest, arguments, _fit_stacks)
    if isinstance(started, dict) and "scans" in started:
        return resume(KSpaceRequest, arguments, _fit_kspace)
    return resume(ScanRequest, arguments, _fit_scan)


# These import torch, which a command line that is refused does not need.


def _fit_stacks(request: StackRequest, config: Any, folder: Path, how: How) -> int:
    from scanfield.cli.fit_stacks import fit_stacks

    return fit_stacks(request, config, folder, how)


def _fit_kspace(request: KSpaceRequest, config: Any, folder: Path, how: How) -> int:
    from scanfield.cli.fit_kspace import fit_kspace

    return fit_kspace(request, config, folder, how)


def _fit_scan(request: ScanRequest, config: Any, folder: Path, how: How) -> int:
    from scanfield.cli.fit_scan import fit_scan

    return fit_scan(request, config, folder, how)
