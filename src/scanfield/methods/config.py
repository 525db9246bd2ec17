"""Method configurations: frozen dataclasses that travel as JSON. No torch in here."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from scanfield.errors import InputError, nearest

C = TypeVar("C")

PRESETS = ("tiny", "fast", "paper")


def preset(cls: type[C], name: str) -> C:
    """The configuration called 'tiny' (seconds), 'fast' (minutes on a CPU) or 'paper' (the published setting, `cls()`).

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'{nearest(name, PRESETS)}", fix=f"use {', '.join(PRESETS)}")
    config: C = cls() if name == "paper" else getattr(cls, name)()
    return config


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(cls: type[C], facts: Any, *, base: C | None = None, where: str = "config") -> C:
    """A configuration from JSON; keys that are absent keep the values of `base` (default: `cls()`).

    Raises:
        InputError: unknown key (naming the nearest) or a value of the wrong type.
    """
    start = cls() if base is None else base
    if not isinstance(facts, Mapping):
        raise InputError("a configuration must be a JSON object", where=where)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in facts.items():
        if key not in hints:
            raise InputError(
                f"unknown configuration key '{key}'{nearest(key, hints)}",
                where=where,
                fix=f"known keys: {', '.join(sorted(hints))}",
            )
        values[key] = _convert(value, hints[key], getattr(start, key), f"{where}.{key}")
    return dataclasses.replace(start, **values)  # type: ignore[type-var]


def _convert(value: Any, hint: Any, current: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, base=current, where=where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _convert(value, inner[0], current, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"'{value}' is not one of {', '.join(map(str, arguments))}", where=where)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"expected a list, got {value!r}", where=where)
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(hints) != len(value):
            raise InputError(f"expected {len(hints)} values, got {value!r}", where=where)
        return tuple(_convert(v, h, None, where) for v, h in zip(value, hints, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"expected a finite number, got {value}", where=where)
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise InputError(f"expected {getattr(hint, '__name__', hint)}, got {value!r}", where=where)
