"""`scanfield resimulate RUN`: the stacks as a finished reconstruction predicts them, and what is left over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet
from scanfield.cli.request import StackRequest, check_unchanged, read_request, read_run
from scanfield.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield resimulate ...` and returns its exit code."""
    parser = Parser(
        "scanfield resimulate",
        "Predicts every slice of the stacks a run was made from, at its fitted pose and with its scale, on the stacks' "
        "own voxels: predicted_K.nii.gz, and measured minus predicted: residual_K.nii.gz, for stack K. Slices held out "
        "of the fit are predicted where their stack was found.",
        takes="RUN [-o FOLDER] [options]",
        examples=["scanfield resimulate run", "scanfield resimulate run -o predicted"],
    )
    parser.add_argument("run", metavar="RUN", help="folder of `scanfield reconstruct` with stacks of slices")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: RUN/resimulated)")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv[1:])

    folder = Path(args.run)
    facts = read_run(folder)
    where = str(folder / "run.json")
    if "stacks" not in (facts.get("request") or {}):
        raise InputError("this run was not made from stacks of slices", where=where, fix="give another RUN folder")
    request = read_request(StackRequest, facts, where)
    check_unchanged(request, {entry["sha256"] for entry in facts["inputs"]}, where)

    from scanfield.cli.fit_stacks import stacks_of
    from scanfield.shortcuts import open_result
    from scanfield.tasks.stack_files import write_resimulated

    target = folder / "resimulated" if args.output is None else Path(args.output)
    target.mkdir(parents=True, exist_ok=True)
    rows = write_resimulated(target, stacks_of(request), open_result(folder, args.device))
    if args.json:
        print(json.dumps({"folder": str(target), "stacks": rows}))
    elif not args.quiet:
        print(f"{target}/")
        for row in rows:
            print(
                f"  {row['predicted']}, {row['residual']}: RMS of the residual {row['rms']:.4g}, NCC {row['ncc']:.4f}"
            )
    return 0
