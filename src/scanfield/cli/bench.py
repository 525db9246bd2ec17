"""`scanfield bench list | run | compare`: the evidence behind the methods, measured again on this machine."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanfield.bench import runner
from scanfield.cli.parser import Parser, add_device, add_json, add_quiet, count
from scanfield.cli.text import hanging
from scanfield.errors import InputError, nearest

RESULTS = "benchmarks/results"
USAGE = """\
usage: scanfield bench list
       scanfield bench run METHOD...|all
       scanfield bench compare METHOD

Runs a method's published comparison on real data: a table with its rivals,
and the claimed orderings as checks.

  scanfield bench run --help       what a command takes
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `scanfield bench ...` and returns its exit code."""
    commands = {"list": _list, "run": _run, "compare": _compare}
    arguments = argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in commands:
        name = arguments[0]
        raise InputError(
            f"unknown command 'bench {name}'{nearest(name, commands)}", fix="scanfield bench list|run|compare"
        )
    return commands[arguments[0]](arguments[1:])


def _list(argv: Sequence[str]) -> int:
    parser = Parser("scanfield bench list", "Lists the benchmarks, and which of them changed after their last result.")
    _add_results(parser)
    add_json(parser)
    args = parser.parse(argv)
    summaries = {name: _summary(name) for name in runner.protocol_names()}
    if args.json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
        return 0
    size = max(map(len, summaries), default=0) + 2
    for name, summary in summaries.items():
        changed = " [changed since it was last measured]" if _changed(name, Path(args.results)) else ""
        print(hanging(f"{name:<{size}}", summary + changed))
    return 0


def _changed(name: str, results: Path) -> bool:
    """Whether the last line, if there is one, is of another protocol than today's."""
    lines = runner.history(name, results) if (results / f"{name}.jsonl").is_file() else []
    return any(runner.changed_since(name, result) for result in lines[-1:])


def _add_results(parser: Parser) -> None:
    parser.add_argument("--results", metavar="FOLDER", default=RESULTS, help=f"where they are (default: {RESULTS})")


def _summary(name: str) -> str:
    """The first line of a protocol's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse((runner.PROTOCOLS / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        "scanfield bench run",
        "Runs benchmarks. Exit code 0 if every check holds, 1 if one fails, 2 if one cannot run.",
        examples=[
            "scanfield bench run scope",
            f"scanfield bench run all --append {RESULTS}",
            "scanfield bench run sci --keep kept      # again after an interruption: only what is missing",
        ],
    )
    parser.add_argument("method", metavar="METHOD", nargs="+", help="names of `scanfield bench list`, or all")
    parser.add_argument("--append", metavar="FOLDER", help="add each result as a line to FOLDER/METHOD.jsonl")
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        help="keep the results of independent fits in FOLDER as they come, and take those that are there, if of the "
        "same code, seed and machine: an interrupted run goes on where it was",
    )
    parser.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    args = parser.parse(argv)
    known = runner.protocol_names()
    names = known if args.method == ["all"] else args.method
    for name in names:
        if name not in known:
            raise InputError(f"there is no benchmark '{name}'{nearest(name, known)}", fix="`scanfield bench list`")
    return max((_run_one(name, args) for name in names), default=0)


def _run_one(name: str, args: argparse.Namespace) -> int:
    from scanfield.bench.compare import as_text

    keep = None if args.keep is None else Path(args.keep)
    try:
        observers = () if args.quiet else (_say,)
        result = runner.run_protocol(name, device=args.device, seed=args.seed, observers=observers, keep=keep)
    except InputError as error:
        if len(args.method) == 1 and args.method != ["all"]:
            raise
        print(f"scanfield: {name}: {error}", file=sys.stderr)
        return error.exit_code
    if keep and not result["taken"]["of"] and not args.quiet:
        print(f"  {name} has no independent fits: nothing was kept", file=sys.stderr, flush=True)
    if args.append is not None:
        runner.append(result, Path(args.append))
    if args.json:
        print(json.dumps(result), flush=True)
    elif not args.quiet:
        print(f"{as_text(result)}\n", flush=True)
    return 0 if runner.passed(result) else 1


def _say(event: dict[str, Any]) -> None:
    """A benchmark may take many minutes: says on stderr which of its cases has begun, and how many jobs are done."""
    if "case" in event:
        print(f"  {event['case']} ...", file=sys.stderr, flush=True)
    elif "done" in event:
        before = f" ({event['taken']} of them before)" if event["taken"] else ""
        edited = ", not kept: sources were edited meanwhile" if event["edited"] else ""
        print(f"  {event['done']} of {event['of']} done{before}{edited}", file=sys.stderr, flush=True)


def _compare(argv: Sequence[str]) -> int:
    parser = Parser("scanfield bench compare", "Shows the last two kept results of a benchmark beside each other.")
    parser.add_argument("method", metavar="METHOD", help="one of `scanfield bench list`")
    _add_results(parser)
    args = parser.parse(argv)

    from scanfield.bench.compare import before_after

    kept = runner.history(args.method, Path(args.results))
    if len(kept) < 2:
        raise InputError(
            f"there is one result of '{args.method}', two are needed",
            where=args.results,
            fix=f"scanfield bench run {args.method} --append {args.results}",
        )
    print(before_after(*kept[-2:]))
    return 0
