"""`scanfield COMMAND ...`: finds the command, runs it, and turns every failure into one message and an exit code.

Exit codes: 0 success, 2 the input is wrong (what, where, how to fix), 1 anything else. A command is a module with
`main(argv) -> exit code`; only the chosen one is imported, and none imports torch before it has work for it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from scanfield.errors import InputError, ScanfieldError, nearest

COMMANDS = {
    "list": ("catalogue", "the methods, by task"),
    "show": ("catalogue", "what a method does, when to choose it, and when not"),
    "cite": ("catalogue", "a method's paper as BibTeX"),
    "simulate": ("simulate", "a real image -> a measurement any method takes"),
    "convert": ("convert", "a scan of another program (RTK) -> a measurement any method takes"),
    "assess": ("assess", "which of several stacks of slices moved least, and which slices are suspicious"),
    "reconstruct": ("reconstruct", "a measurement -> an image, beside its classical rivals"),
    "register": ("register", "two images -> the map between them, beside its classical rivals"),
    "warp": ("warp", "a registration applied to images, labels or points, either way"),
    "dose": ("dose", "a planned dose -> a small file, and what that costs in a planner's terms"),
    "train": ("train", "images of many people -> a model, for methods that learn from them"),
    "segment": ("segment", "an image and a trained model -> classes on any grid, surfaces, uncertainty"),
    "generate": ("generate", "a trained shape model -> new shapes in space and time"),
    "compress": ("compress", "a volume -> a small file, beside standard codecs of the same size"),
    "decompress": ("decompress", "a compressed volume -> an image, whole, in part or at any spacing"),
    "inspect": ("inspect", "what a compressed file holds, and where its bytes are"),
    "render": ("render", "a finished run -> an image on any grid, at any spacing"),
    "resimulate": ("resimulate", "the slices as a finished reconstruction predicts them, and what is left over"),
    "view": ("view", "runs and images in the browser, also while they are fitted"),
    "report": ("render", "write a run's report.html again"),
    "bench": ("bench", "run the published comparisons (list, run, compare)"),
    "demo": ("demo", "from a shipped CT slice to a report, in a few minutes"),
    "doctor": ("doctor", "check this installation"),
}
_USER_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def usage() -> str:
    """The help text of `scanfield` itself."""
    lines = ["usage: scanfield COMMAND [arguments]", "", "Neural fields for medical imaging.", "", "commands:"]
    lines += [f"  {name:<13}{summary}" for name, (_, summary) in COMMANDS.items()]
    lines += [
        "",
        "  scanfield COMMAND --help   what a command takes",
        "  scanfield --version        the installed version",
        "  --debug                    show the traceback of an error (or set SCANFIELD_DEBUG=1)",
        "",
        "start here:",
        "  scanfield demo -o demo",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("SCANFIELD_DEBUG", "") not in ("", "0")
    try:
        with warnings.catch_warnings():
            if not (debug or sys.warnoptions):  # warnings of libraries; ours are part of the result
                warnings.simplefilter("ignore")
            code = _run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after --help
        return int(stop.code or 0)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except KeyboardInterrupt:
        print("scanfield: stopped", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"scanfield: {message}", file=sys.stderr)
        return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from scanfield import __version__

        print(f"scanfield {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise InputError(
            f"unknown command '{name}'{nearest(name, COMMANDS)}", fix="`scanfield --help` lists the commands"
        )
    module = importlib.import_module(f"scanfield.cli.{COMMANDS[name][0]}")
    code: int = module.main(arguments)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """One message and an exit code for any exception."""
    if isinstance(error, ScanfieldError):
        return str(error), error.exit_code
    if _out_of_memory(error):
        fix = "render or reconstruct with a larger --spacing-mm, fewer slices, or on a machine with more memory"
        return f"this machine's memory does not suffice\n  fix:   {fix}", 1
    if isinstance(error, OSError) and error.errno is not None:
        where = f"\n  where: {os.fsdecode(error.filename)}" if error.filename else ""
        return f"{error.strerror}{where}", 2 if error.errno in _USER_ERRNO else 1
    kind, text = type(error).__name__, " ".join(str(error).split())
    hint = "this is a fault of scanfield; --debug shows where it happened, please report it"
    return f"unexpected {kind}: {text[:300]}\n  {hint}", 1


def _out_of_memory(error: Exception) -> bool:
    """MemoryError, and torch's own: an OutOfMemoryError on a GPU, a plain RuntimeError on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "not enough memory" in str(error))


def _silence_stdout() -> None:
    """The reader has gone (`scanfield list | head -1`): nothing may be written at exit either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
