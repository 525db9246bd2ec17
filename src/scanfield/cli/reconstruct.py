"""`scanfield reconstruct SCAN --method M -o RUN`, and `--resume RUN` to continue one that was stopped or killed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.config_flags import add_config_flags, flag_values, read_config
from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, count, number, one_of
from scanfield.cli.request import Request, check_unchanged, read_run
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import PRESETS, preset

PROG = "scanfield reconstruct"


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield reconstruct ...` and returns its exit code."""
    arguments = argv[1:]
    if any(a == "--resume" or a.startswith("--resume=") for a in arguments):
        return _resume(arguments)
    early, _ = _early_parser().parse_known_args(list(arguments))
    method = None if early.method is None else api.card(early.method)
    parser = _parser()
    cls = None
    if method is not None:
        cls = api.load(method.name).Config
        title = f"settings of {method.name} (defaults of --preset {early.preset})"
        add_config_flags(parser, cls, preset(cls, early.preset), title)
    args = parser.parse(arguments)
    assert cls is not None  # --method is required
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    from scanfield.cli.fit import fit
    from scanfield.cli.inputs import absolute

    config = read_config(cls, preset(cls, args.preset), args.config, flag_values(args))
    request = Request(
        command=shlex.join(["scanfield", *argv]),
        inputs=[absolute(name) for name in args.scan],
        method=args.method,
        preset=args.preset,
        seed=args.seed,
        device=args.device,
        like=None if args.like is None else absolute(args.like),
        spacing_mm=args.spacing_mm,
        reference=None if args.reference is None else absolute(args.reference),
        reference_unit=args.reference_unit,
        baselines=args.baselines,
        holdout_views=args.holdout_views,
        holdout_fraction=args.holdout_fraction,
    )
    return fit(request, config, Path(args.output), force=args.force, resume=False, quiet=args.quiet, as_json=args.json)


def _early_parser() -> Parser:
    """What must be known before the other flags are: the method brings its own."""
    parser = Parser(PROG, "", add_help=False)
    parser.add_argument("--method")
    parser.add_argument("--preset", type=one_of(*PRESETS), default="fast")
    return parser


def _parser() -> Parser:
    parser = Parser(
        PROG,
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
    parser.add_argument("--method", metavar="M", required=True, help="one of `scanfield list`")
    parser.add_argument("-o", "--output", metavar="RUN", required=True, help="folder for everything this run writes")
    parser.add_argument("--force", action="store_true", help="replace a run that is in the folder")
    parser.add_argument(
        "--preset",
        type=one_of(*PRESETS),
        default="fast",
        metavar="tiny|fast|paper",
        help="starting point of the settings (default: fast, minutes on a CPU); paper is the published setting "
        "and takes much longer, tiny takes seconds and only shows that everything works",
    )
    parser.add_argument("--config", metavar="C.json", help="settings that differ from the preset; flags go before it")

    image = parser.add_argument_group("the image")
    image.add_argument("--like", metavar="IMAGE", help="on the grid of this image (default: as the scan asks)")
    image.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the scan's grid, with this voxel size"
    )

    judge = parser.add_argument_group("how it is judged")
    judge.add_argument(
        "--baselines",
        type=one_of("none", "fast", "all"),
        default="all",
        metavar="none|fast|all",
        help="classical rivals on the same data: the direct ones, or also those that iterate (default: all)",
    )
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

    how = parser.add_argument_group("how it runs")
    how.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="of every random number (default: 0)")
    add_device(how)
    how.add_argument("--resume", metavar="RUN", help="continue a run; takes everything else from it")
    add_quiet(how)
    add_json(how)
    return parser


def _resume(arguments: Sequence[str]) -> int:
    parser = Parser(f"{PROG} --resume", "Continues a run with the settings it was started with.", add_help=False)
    parser.add_argument("--resume", metavar="RUN", required=True)
    add_quiet(parser)
    add_json(parser)
    try:
        args = parser.parse(arguments)
    except InputError as error:
        fix = f"{PROG} --resume RUN takes only --quiet and --json; everything else comes from the run"
        raise InputError(error.what, fix=fix) from None
    folder = Path(args.resume)
    facts = read_run(folder)
    if facts.get("status") == "complete":
        print(f"{folder} is complete: nothing to resume.")
        return 0
    where = str(folder / "run.json")
    try:
        request = Request(**facts["request"])
        started = {entry["sha256"] for entry in facts["inputs"]}
        config_facts = dict(facts["config"])
    except (KeyError, TypeError, ValueError):
        raise InputError("this run does not say how it was started", where=where, fix="start it again") from None
    check_unchanged(request, started, where)
    from scanfield.cli.fit import fit
    from scanfield.methods.config import from_json

    config = from_json(api.load(request.method).Config, config_facts, where=where)
    return fit(request, config, folder, force=False, resume=True, quiet=args.quiet, as_json=args.json)
