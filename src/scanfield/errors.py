"""Errors that say what is wrong, where, and how to fix it.

The command line prints an `InputError` as one short message and exits with code 2; it never shows a traceback for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScanfieldError(Exception):
    """Base of all errors this library raises on purpose. Exit code 1 on the command line."""

    exit_code = 1


class InputError(ScanfieldError):
    """The user's input is wrong: a file, a number, a name.

    Args:
        what: what is wrong, with the offending value and the expectation.
        where: the file, key or argument it was found in.
        fix: what to do about it, as a command or a concrete value where possible.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))


class MissingExtra(InputError):
    """An optional dependency is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            fix=f"pip install 'scanfield[{extra}]'",
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
