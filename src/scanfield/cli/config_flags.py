"""A method's `Config` as command-line flags.

Every field is a flag with the text below the field in its class as help; a nested dataclass joins names with a dot
(`--grid.finest-mm`). Flags are written into the namespace under `config.<field>` and end in `config.from_json`, which
checks them like the keys of a JSON file.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scanfield.cli.parser import one_of
from scanfield.errors import InputError, ScanfieldError
from scanfield.methods.config import from_json


def add_config_flags(parser: argparse.ArgumentParser, cls: type[Any], base: Any, title: str) -> None:
    """Adds a flag for every field of `cls`; the help shows the values of `base` as defaults.

    Raises:
        ScanfieldError: a field's flag is already an option of the command.
    """
    group = parser.add_argument_group(title)
    for path, hint, value, text in _leaves(cls, base):
        flag = "--" + path.replace("_", "-")
        options: dict[str, Any] = {
            "dest": f"config.{path}",
            "default": argparse.SUPPRESS,
            "help": f"{text} (default: {_show(value)})".replace("%", "%%"),
        }
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(hint) is tuple:
            options |= {"type": _reader(typing.get_args(hint)[0]), "nargs": "*", "metavar": "VALUE"}
        else:
            options |= {"type": _reader(hint), "metavar": _metavar(hint)}
        try:
            group.add_argument(flag, **options)
        except argparse.ArgumentError:
            raise ScanfieldError(f"{cls.__module__}.Config.{path}: {flag} is an option of the command itself") from None


def flag_values(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as the JSON object they stand for."""
    facts: dict[str, Any] = {}
    for name, value in vars(args).items():
        if name.startswith("config."):
            *parents, leaf = name.removeprefix("config.").split(".")
            inner = facts
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = value
    return facts


def read_config(cls: type[Any], base: Any, file: str | None, flags: dict[str, Any]) -> Any:
    """`base`, overridden by a JSON file, overridden by flags.

    Raises:
        InputError: the file is missing or no JSON object; a key is unknown (the nearest is named) or of another type.
    """
    config = base
    if file is not None:
        try:
            facts = json.loads(Path(file).read_text(encoding="utf-8"), parse_constant=_no_constant)
        except OSError as error:
            raise InputError(f"the configuration cannot be read: {error.strerror}", where=file) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"the configuration is not valid JSON: {error}", where=file) from None
        config = from_json(cls, facts, base=config, where=file)
    return from_json(cls, flags, base=config, where="command line")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _leaves(cls: type[Any], base: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted name, type, value in `base`, help text) of every field that is not itself a dataclass."""
    hints, texts = typing.get_type_hints(cls), attribute_docstrings(cls)
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], getattr(base, field.name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(hint, value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint, value, texts.get(field.name, "")


def attribute_docstrings(cls: type[Any]) -> dict[str, str]:
    """The string below each annotated attribute of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for attribute, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            texts[attribute.target.id] = " ".join(below.value.value.split())
    return texts


def _reader(hint: Any) -> Callable[[str], Any]:
    """Turns a flag's text into the JSON value of the field's type; 'none' stands for null where it is allowed."""
    inner = _without_none(hint)
    if typing.get_origin(inner) is typing.Literal:
        return one_of(*map(str, typing.get_args(inner)))
    words = {int: "a whole number", float: "a number", str: "a text"}

    def read(text: str) -> Any:
        if inner is not hint and text == "none":
            return None
        try:
            value = inner(text)
        except ValueError:
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected {words[inner]}, got '{text}'")
        return value

    return read


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _metavar(hint: Any) -> str:
    inner = _without_none(hint)
    if typing.get_origin(inner) is typing.Literal:
        names = "|".join(map(str, typing.get_args(inner)))
    else:
        names = {int: "N", float: "X", str: "TEXT"}.get(inner, "VALUE")
    return names if inner is hint else f"{names}|none"


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(_show, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)
