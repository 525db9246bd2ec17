"""`scanfield dose DOSE --method M -o RUN`: a planned dose in a small file, and `--resume RUN` to continue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanfield.cli.method_flags import How, add_baselines, add_how, add_run_options, asked, parse, resume, resumes
from scanfield.cli.parser import Parser, number, one_of
from scanfield.cli.request import DoseRequest
from scanfield.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield dose ...` and returns its exit code."""
    arguments = argv[1:]
    if resumes(arguments):
        return resume(DoseRequest, arguments, _fit)
    args, config = parse(_parser(), arguments)
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    if args.through is not None and args.add is None:
        raise InputError("--through is for a dose that is added", fix="--add DOSE2 --through RUN")
    if args.structure and args.structures is None:
        raise InputError("--structure chooses from a file of structures", fix="--structures RTSTRUCT")
    from scanfield.cli.inputs import absolute

    add, structures, like, table = (
        None if name is None else absolute(name) for name in (args.add, args.structures, args.like, args.architecture)
    )
    through = None if args.through is None else str(_result_file(args.through))
    dose = absolute(args.dose)
    read = [dose, *(path for path in (add, through, structures, like) if path is not None)]
    request = DoseRequest(
        **asked(args, argv, read),
        dose=dose,
        unit=args.unit,
        relative_to_gy=args.relative_to_gy,
        add=add,
        through=through,
        structures=structures,
        chosen=args.structure,
        prescribed_gy=args.prescribed_gy,
        architecture=table,
        like=like,
        spacing_mm=args.spacing_mm,
    )
    how = How.of(args)
    return _fit(request, config, Path(args.output), how)


def _parser() -> Parser:
    parser = Parser(
        "scanfield dose",
        "Stores a planned dose as a small model of a stated number of bits per voxel, beside standard codecs of the "
        "same size, and says what that costs: dose-volume histograms, gamma, isodoses. `scanfield decompress` turns "
        "RUN/dose.sfz into a dose on any grid.",
        takes="DOSE --method M -o RUN [options] [settings of the method]",
        examples=[
            "scanfield dose RD.dcm --method dose_inr -o run --bits-per-voxel 1 --structures RS.dcm",
            "scanfield dose dose.nii.gz --method dose_inr -o run --architecture head_neck.json",
            "scanfield dose first.dcm --add boost.dcm --through registration --method dose_inr -o sum",
            "scanfield decompress run/dose.sfz -o on_ct.nii.gz --like planning_ct.nii.gz",
        ],
    )
    parser.add_argument("dose", metavar="DOSE", help="RTDOSE (file, or folder with one), NIfTI, or .npz")
    add_run_options(parser)

    dose = parser.add_argument_group("the dose")
    dose.add_argument(
        "--unit", type=one_of("Gy", "cGy"), default="Gy", metavar="Gy|cGy", help="of a NIfTI dose (default: Gy)"
    )
    dose.add_argument(
        "--relative-to-gy", type=number(above=0), metavar="GY", help="what a dose of 1 stands for in a RELATIVE RTDOSE"
    )
    dose.add_argument("--add", metavar="DOSE2", help="a second dose to add before the fit")
    dose.add_argument(
        "--through",
        metavar="RUN",
        help="a run of `scanfield register` whose fixed image is DOSE's and whose moving image is DOSE2's",
    )
    dose.add_argument(
        "--architecture",
        metavar="SITE.json",
        help="the best architecture at the rate from this file; where it has none, it is searched on this dose and "
        "kept there, for all doses of the site",
    )
    dose.add_argument("--like", metavar="IMAGE", help="render on the grid of this image (default: the dose's own)")
    dose.add_argument("--spacing-mm", type=number(above=0), metavar="S", help="render with this voxel size")

    judge = parser.add_argument_group("how it is judged")
    judge.add_argument("--structures", metavar="FILE", help="RTSTRUCT, NIfTI label map or .npz: targets and organs")
    judge.add_argument(
        "--structure", metavar="NAME", action="append", default=[], help="only this one of them; may be repeated"
    )
    judge.add_argument(
        "--prescribed-gy", type=number(above=0), metavar="GY", help="prescribed dose, for isodoses and conformity"
    )
    add_baselines(judge)
    add_how(parser)
    return parser


def _result_file(name: str) -> Path:
    path = Path(name).resolve()
    return path / "field.safetensors" if path.is_dir() else path


def _fit(request: DoseRequest, config: Any, folder: Path, how: How) -> int:
    from scanfield.cli.fit_dose import fit_dose  # imports torch, which a command line that is refused does not need

    return fit_dose(request, config, folder, how)
