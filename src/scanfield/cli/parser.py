"""Arguments as argparse takes them, errors as this library words them: one `InputError`, the nearest name in it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from scanfield.cli.text import paragraph, width
from scanfield.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are `InputError`s. Options are never abbreviated."""

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        takes: str | None = None,
        examples: Sequence[str] = (),
        add_help: bool = True,
    ) -> None:
        """`takes` is the usage line after `prog`, where the full list of options would be too long."""
        epilog = "\n".join(["examples:", *(f"  {line}" for line in examples)]) if examples else None
        super().__init__(
            prog=prog,
            usage=None if takes is None else f"{prog} {takes}",
            description=paragraph(description),
            epilog=epilog,
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "), fix=f"`{self.prog} --help` shows what it takes")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses everything or names the first argument that is not known.

        Raises:
            InputError: an argument is unknown (the nearest is named), missing or has an impossible value.
        """
        args, unknown = self.parse_known_args(list(argv))
        if unknown:
            name = unknown[0].split("=")[0]
            kind = "option" if name.startswith("-") else "argument"
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown {kind} '{name}'{nearest(name, known)}")
        return args


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=width())


def one_of(*names: str) -> Callable[[str], str]:
    """Argument type: one of these words."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(names)}{nearest(text, names)}")
        return text

    return convert


def number(*, above: float | None = None, least: float | None = None, most: float = math.inf) -> Callable[[str], float]:
    """Argument type: a finite number, greater than `above`, or from `least` to `most`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected a finite number, got '{text}'")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"must be greater than {above:g}, got {text}")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, got {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:g}, got {text}")
        return value

    return convert


def count(*, least: int = 1) -> Callable[[str], int]:
    """Argument type: a whole number of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return convert


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """Adds --quiet."""
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_backend(parser: argparse._ActionsContainer) -> None:
    """Adds --backend."""
    parser.add_argument(
        "--backend",
        type=one_of("auto", "reference", "cpu", "triton"),
        default="auto",
        metavar="auto|reference|cpu|triton",
        help="what computes the networks and grids (default: auto, the fastest here; reference: plain torch)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Adds --device."""
    parser.add_argument(
        "--device",
        type=one_of("auto", "cpu", "cuda"),
        default="auto",
        metavar="auto|cpu|cuda",
        help="where to compute (default: auto, a GPU if there is one)",
    )
