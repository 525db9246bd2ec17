"""`scanfield demo`: a 45-view scan of the CT slice that ships with the package, reconstructed beside its rivals."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli import reconstruct, simulate
from scanfield.cli.parser import Parser, add_device, add_quiet, one_of
from scanfield.errors import InputError
from scanfield.methods.config import PRESETS

SAMPLE = "sample:ct_chest_slice"
VIEWS, PHOTONS = 45, "1e5"
STEPS = "4500"  # of the fast preset's 6000: the demo shall end within four minutes on a slow machine, too
SPACING_MM = "1.765625"  # twice the slice's pixels: what is reconstructed is coarser than what was scanned


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield demo ...` and returns its exit code."""
    parser = Parser(
        "scanfield demo",
        f"Scans the shipped CT slice from {VIEWS} views with photon noise, reconstructs it with scope beside its "
        "classical rivals, and writes a report. A few minutes on two processor cores.",
    )
    parser.add_argument("-o", "--output", metavar="RUN", default="demo", help="folder to write (default: demo)")
    parser.add_argument(
        "--preset", type=one_of(*PRESETS), default="fast", metavar="tiny|fast|paper", help="of scope (default: fast)"
    )
    add_device(parser)
    add_quiet(parser)
    args = parser.parse(argv[1:])
    folder = Path(args.output)
    _check_replaceable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scan = folder / "scan.npz"
    quiet = ["--quiet"] if args.quiet else []
    device = [] if args.device == "auto" else ["--device", args.device]
    first = ["simulate", "ct", SAMPLE, "-o", str(scan), "--views", str(VIEWS), "--photons", PHOTONS]
    first += ["--bin-mm", SPACING_MM, "--spacing-mm", SPACING_MM]
    second = ["reconstruct", str(scan), "--method", "scope", "--preset", args.preset, "-o", str(folder)]
    second += ["--reference", SAMPLE, "--force", *device]
    if args.preset == "fast":
        second += ["--steps", STEPS]
    if not args.quiet:
        print(f"$ {_line(first)}\n")
    simulate.main([*first, *quiet])
    if not args.quiet:
        print(f"\n$ {_line(second)}\n")
    code = reconstruct.main([*second, *quiet])
    if not args.quiet and code == 0:
        print(
            f"\nLook at {folder / 'report.html'}\n\nThese two commands repeat it:\n  {_line(first)}\n  {_line(second)}"
        )
    return code


def _line(arguments: Sequence[str]) -> str:
    return shlex.join(["scanfield", *arguments])


def _check_replaceable(folder: Path) -> None:
    """A demo may replace an earlier one, and nothing else."""
    if not (folder / "run.json").exists():
        return
    try:
        inputs = json.loads((folder / "run.json").read_text(encoding="utf-8"))["request"]["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        inputs = None
    if inputs != [str((folder / "scan.npz").resolve())]:
        raise InputError("the folder holds a run that is not the demo's", where=str(folder), fix="choose another -o")
