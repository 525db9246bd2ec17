"""`scanfield register FIXED MOVING --method M -o RUN`, and `--resume RUN` to continue one that was stopped."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanfield.cli.method_flags import How, add_baselines, add_how, add_run_options, asked, parse, resume, resumes
from scanfield.cli.parser import Parser
from scanfield.cli.request import PairRequest
from scanfield.errors import InputError

PAIRS = (("mask", "IMAGE"), ("points", "CSV"), ("labels", "IMAGE"))


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield register ...` and returns its exit code."""
    arguments = argv[1:]
    if resumes(arguments):
        return resume(PairRequest, arguments, _fit)
    args, config = parse(_parser(), arguments)
    for kind in ("points", "labels"):
        given = [getattr(args, f"{side}_{kind}") for side in ("fixed", "moving")]
        if given.count(None) == 1:
            raise InputError(
                f"{kind} are needed in both images or in none", fix=f"give --fixed-{kind} and --moving-{kind}"
            )
    from scanfield.cli.inputs import absolute

    names = [f"{side}_{kind}" for kind, _ in PAIRS for side in ("fixed", "moving")]
    more: dict[str, Any] = {n: None if getattr(args, n) is None else absolute(getattr(args, n)) for n in names}
    fixed, moving = absolute(args.fixed), absolute(args.moving)
    request = PairRequest(
        **asked(args, argv, [fixed, moving, *filter(None, more.values())]),
        fixed=fixed,
        moving=moving,
        **more,
        window=args.window,
        moving_window=args.moving_window,
        correct_bias=args.correct_bias,
    )
    how = How.of(args)
    return _fit(request, config, Path(args.output), how)


def _parser() -> Parser:
    parser = Parser(
        "scanfield register",
        "Finds the map between two images of one body, beside classical rivals on the same pair. One direction, "
        "everywhere: a point of the FIXED image goes to its place in the MOVING image, and the moving image is "
        "resampled onto the fixed grid. `scanfield warp` applies it, and its inverse.",
        takes="FIXED MOVING --method M -o RUN [options] [settings of the method]",
        examples=[
            "scanfield register exhale.nii.gz inhale.nii.gz --method idir -o run --fixed-mask lungs.nii.gz",
            "scanfield register a.nii.gz b.nii.gz --method idir -o run --fixed-points a.csv --moving-points b.csv",
            "scanfield warp run contours.csv -o moved.csv               points of the fixed image, moved",
            "scanfield register --resume run                            continue after a stop or a kill",
        ],
    )
    parser.add_argument(
        "fixed", metavar="FIXED", help="image whose points are mapped: NIfTI, DICOM folder, sample:NAME"
    )
    parser.add_argument(
        "moving", metavar="MOVING", help="image they are mapped into; any grid that overlaps in the world"
    )
    add_run_options(parser)

    images = parser.add_argument_group("the images")
    images.add_argument(
        "--fixed-mask", metavar="IMAGE", help="where the map matters, on the fixed grid (not 0: inside)"
    )
    images.add_argument("--moving-mask", metavar="IMAGE", help="where the moving image shows something, on its grid")
    images.add_argument(
        "--window",
        type=_window,
        metavar="LOW,HIGH",
        help="cut intensities of both images off there, as for CT in HU: --window=-1000,500 (default: as they are)",
    )

    images.add_argument(
        "--moving-window",
        type=_window,
        metavar="LOW,HIGH",
        help="another window for the moving image (default: that of --window)",
    )
    images.add_argument(
        "--correct-bias",
        choices=("none", "fixed", "moving", "both"),
        default="none",
        help="divide MR images by their smooth bias field, found by N4 within the mask (needs SimpleITK)",
    )

    judge = parser.add_argument_group("how it is judged")
    judge.add_argument("--fixed-points", metavar="CSV", help="landmarks in the fixed image: columns x,y,z in mm (RAS+)")
    judge.add_argument("--moving-points", metavar="CSV", help="the same landmarks in the moving image, in that order")
    judge.add_argument("--fixed-labels", metavar="IMAGE", help="segmentation of the fixed image, 0 for background")
    judge.add_argument(
        "--moving-labels", metavar="IMAGE", help="segmentation of the moving image, with the same labels"
    )
    add_baselines(judge)
    add_how(parser)
    return parser


def _window(text: str) -> list[float]:
    """Argument type: 'LOW,HIGH'."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH, got '{text}'") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"a window needs finite LOW < HIGH, got '{text}'")
    return [low, high]


def _fit(request: PairRequest, config: Any, folder: Path, how: How) -> int:
    from scanfield.cli.fit_pair import fit_pair  # imports torch, which a command line that is refused does not need

    return fit_pair(request, config, folder, how)
