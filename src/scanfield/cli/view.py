"""`scanfield view RUN|FILE...`: a local page in the browser with volumes, numbers, convergence and figures."""

from __future__ import annotations

import contextlib
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from scanfield.cli.parser import Parser, add_quiet, count
from scanfield.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield view` and returns its exit code."""
    parser = Parser(
        "scanfield view",
        "Shows runs and images in the browser: slices and 3-D, results beside rivals and references, numbers, "
        "convergence, details rendered from the field while you zoom. The page is served to this machine alone, from "
        "an address that holds a secret; nothing is changed. Ctrl-C ends it.",
        examples=[
            "scanfield view run                             one run",
            "scanfield view results                         all runs in a folder, side by side if you like",
            "scanfield view ct.nii.gz liver.ply             files",
            "scanfield reconstruct scan.npz --method scope -o run --view      a run while it is fitted",
        ],
    )
    parser.add_argument("paths", metavar="RUN|FILE", nargs="+", help="RUN folders, folders of runs, images, surfaces")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--port", type=count(), default=0, metavar="N", help="default: a free one")
    add_quiet(parser)
    args = parser.parse(argv[1:])
    if args.port > 65535:
        raise InputError(f"a port is at most 65535, got {args.port}")
    paths = [Path(path).resolve() for path in args.paths]
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder '{path.name}'", where=str(path))

    from scanfield.view.server import serve

    def announce(address: str) -> None:
        print(address, flush=True)
        if not args.quiet:
            print("Ctrl-C ends it.", flush=True)
        if not args.no_browser:
            webbrowser.open(address)

    with contextlib.suppress(KeyboardInterrupt):
        serve(paths, port=args.port, announce=announce)
    return 0
