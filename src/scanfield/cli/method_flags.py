"""What the commands that fit a method have in common: the method's own flags, its presets, and --resume."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scanfield.cli.config_flags import add_config_flags, flag_values, read_config
from scanfield.cli.parser import Parser, add_backend, add_device, add_json, add_quiet, count, one_of
from scanfield.cli.request import Request, check_unchanged, read_request, read_run
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import PRESETS, from_json, preset

R = TypeVar("R", bound=Request)


def add_run_options(parser: Parser) -> None:
    """Adds --method, -o, --force, --preset and --config."""
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


def add_baselines(parser: argparse._ActionsContainer) -> None:
    """Adds --baselines."""
    parser.add_argument(
        "--baselines",
        type=one_of("none", "fast", "all"),
        default="all",
        metavar="none|fast|all",
        help="classical rivals on the same data: the quick ones, or all of them (default: all)",
    )


@dataclass(frozen=True)
class How:
    """How a command runs, whatever it fits."""

    force: bool
    resume: bool
    quiet: bool
    as_json: bool
    view: bool

    @staticmethod
    def of(args: argparse.Namespace, *, resume: bool = False) -> How:
        """From the arguments of a command, or of its --resume."""
        force = False if resume else args.force
        return How(force=force, resume=resume, quiet=args.quiet, as_json=args.json, view=args.view)


def add_how(parser: Parser) -> None:
    """Adds --seed, --device, --backend, --resume, --view, --quiet and --json."""
    how = parser.add_argument_group("how it runs")
    how.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="of every random number (default: 0)")
    add_device(how)
    add_backend(how)
    how.add_argument("--resume", metavar="RUN", help="continue a run; takes everything else from it")
    _add_view(how)
    add_quiet(how)
    add_json(how)


def _add_view(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--view", action="store_true", help="follow the fit in the browser, and stop it there (needs scanfield[view])"
    )


def parse(
    parser: Parser,
    arguments: Sequence[str],
    *,
    method: str | None = None,
    start: Callable[[argparse.Namespace], Any] | None = None,
) -> tuple[argparse.Namespace, Any]:
    """Parses a command line whose flags depend on the method: the arguments and the method's configuration.

    Args:
        method: the method, where it does not follow from --method.
        start: the configuration that the given settings change, from the arguments; None for the preset.

    Raises:
        InputError: as for `Parser.parse`; the method is unknown, or a setting is wrong.
    """
    early = Parser(parser.prog, "", add_help=False)
    early.add_argument("--method")
    early.add_argument("--preset", type=one_of(*PRESETS), default="fast")
    known, _ = early.parse_known_args(list(arguments))
    cls, name = None, known.method if method is None else method
    if name is not None:
        cls = api.load(api.card(name).name).Config
        title = f"settings of {name} (defaults of --preset {known.preset})"
        add_config_flags(parser, cls, preset(cls, known.preset), title)
    args = parser.parse(arguments)
    assert cls is not None  # --method is required
    base = None if start is None else start(args)
    if base is None:
        base = preset(cls, args.preset or known.preset)
    return args, read_config(cls, base, args.config, flag_values(args))


def asked(args: argparse.Namespace, argv: Sequence[str], inputs: list[str]) -> dict[str, Any]:
    """The part of a `Request` that all commands share."""
    return {
        "command": shlex.join(["scanfield", *argv]),
        "inputs": inputs,
        "method": args.method,
        "preset": args.preset,
        "seed": args.seed,
        "device": args.device,
        "baselines": args.baselines,
        "backend": args.backend,
    }


def resumes(arguments: Sequence[str]) -> bool:
    """Whether a command line continues a run."""
    return any(a == "--resume" or a.startswith("--resume=") for a in arguments)


def resume(cls: type[R], arguments: Sequence[str], fit: Callable[[R, Any, Path, How], int]) -> int:
    """Continues a run, and returns the exit code. Errors: as for `resumed`."""
    found = resumed(cls, arguments)
    if found is None:
        return 0
    args, request, config = found
    return fit(request, config, Path(args.resume), How.of(args, resume=True))


def resumed(cls: type[R], arguments: Sequence[str]) -> tuple[argparse.Namespace, R, Any] | None:
    """The arguments, the request and the configuration of the run to continue; None (and a line) if it is complete.

    Raises:
        InputError: there is no such run, another command started it, or its inputs have changed.
    """
    prog = f"scanfield {cls.program}"
    parser = Parser(f"{prog} --resume", "Continues a run with the settings it was started with.", add_help=False)
    parser.add_argument("--resume", metavar="RUN", required=True)
    add_quiet(parser)
    add_json(parser)
    _add_view(parser)
    try:
        args = parser.parse(arguments)
    except InputError as error:
        fix = f"{prog} --resume RUN takes only --quiet, --json and --view; everything else comes from the run"
        raise InputError(error.what, fix=fix) from None
    folder = Path(args.resume)
    facts = read_run(folder)
    if facts.get("status") == "complete":
        print(f"{folder} is complete: nothing to resume.")
        return None
    where = str(folder / "run.json")
    request = read_request(cls, facts, where)
    try:
        started = {entry["sha256"] for entry in facts["inputs"]}
        settings = dict(facts["config"])
    except (KeyError, TypeError, ValueError):
        raise InputError("this run does not say how it was started", where=where, fix="start it again") from None
    check_unchanged(request, started, where)
    return args, request, from_json(api.load(request.method).Config, settings, where=where)
